"""NCSN++ and DDPM++, the U-Nets of score SDEs (Song et al. 2021, section 4.4 and appendix H) and of EDM (Karras et al. 2022, table 7).

    emb   = mlp(waves(t) + embed(label) + embed(augmentation))
    down:   [residual block, attention] x blocks, each kept for the way up; then half the size
    middle: residual block, attention, residual block
    up:     [residual block of what was kept beside it] x (blocks + 1), attention behind the last; then twice the size

The figure is DDPM's, with less attention on the way up; the changes, in the paper's order:

| change                                                | field    | DDPM | DDPM++   | NCSN++   |
|-------------------------------------------------------|----------|------|----------|----------|
| a low-pass filter (1,3,3,1) at every change of size   | blur     |      |          | yes      |
| sums with a skip are divided by sqrt(2)               | rescale  |      | yes      | yes      |
| residual blocks change the size, not convolutions     | resample | conv | residual | residual |
| more residual blocks a level                          | blocks   | 2    | 4        | 4        |
| the picture itself joins every level on the way down  | pyramid  |      |          | yes      |
| waves of random frequencies, for continuous noise     | fourier  |      |          | yes      |

EDM's `SongUNet` and score_sde's `NCSNpp` compute the same; EDM's ADM is `UNet`. What surrounds the network (c_noise, sigma in the
denominator, 2x - 1) is no part of it: a `Prediction` and a `Schedule` do that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.blocks import AttentionBlock, Downsample, EmbeddingMLP, Style, Upsample, enlarge
from unnoise.networks.layers import timestep_embedding


@dataclass(frozen=True)
class NCSNppConfig:
    """Defaults: DDPM++ for CIFAR-10 as EDM has it (55,732,739 parameters)."""

    kind: ClassVar[str] = "ncsnpp"

    in_channels: int = 3
    out_channels: int = 3
    stem: int = 128  # channels of the first convolution; the time embedding is four times as wide
    widths: tuple[int, ...] = (256, 256, 256)  # channels of each level, the largest picture first
    blocks: int = 4  # residual blocks a level on the way down; one more on the way up
    attend: tuple[bool, ...] = (False, True, False)  # levels with attention: those of 16x16 pixels
    fourier: bool = False
    blur: bool = False
    pyramid: bool = False
    rescale: bool = True
    resample: Literal["conv", "residual"] = "residual"
    group_width: int = 4  # channels in a group of group norm, while that makes fewer than 32; 1 for DDPM, which always has 32
    num_classes: int = 0  # labels that join the waves
    augment_width: int = 0  # width of the vector that describes an augmentation (Karras et al. 2022, appendix F.2): 9 in EDM
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.attend) != len(self.widths):
            raise ArgumentError(f"got attend for {len(self.attend)} levels and {len(self.widths)} widths: give one of each a level")
        channels = {self.stem, *self.widths, *(c for _, inputs in _up_inputs(self) for c in inputs)}
        odd = sorted(c for c in channels if c < self.group_width or c % self.groups(c))
        if odd or self.stem % 2:
            got = f"got stem {self.stem} and widths {self.widths}, which give group norm {odd or self.stem} channels, also in sums"
            raise ArgumentError(f"{got}: choose multiples of 32")

    def build(self) -> NCSNpp:
        return NCSNpp(self)

    @property
    def emb_width(self) -> int:
        return 4 * self.stem

    @property
    def wave_width(self) -> int:
        return 2 * self.stem if self.fourier else self.stem  # a sine and a cosine of `stem` frequencies, or half as many

    @property
    def scale(self) -> float:
        """What a sum with a skip is multiplied by: 1/sqrt(2) keeps its variance."""
        return math.sqrt(0.5) if self.rescale else 1.0

    def groups(self, width: int) -> int:
        return min(32, width // self.group_width)

    def norm(self, width: int) -> nn.GroupNorm:
        return nn.GroupNorm(self.groups(width), width, eps=1e-6)


Resize = Literal["down", "up"]


def soften(x: Tensor) -> Tensor:
    """Taps (1, 2, 1)/4 along both sides, the mean of two neighbours twice: one pixel less at every border."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2, stride=1)


def resized(x: Tensor, to: Resize, blur: bool) -> Tensor:
    """Half or twice the picture (b, c, h, w). Blurred, the mean of two pixels or their repetition (taps 1, 1) has the taps (1, 3, 3, 1),
    which are (1, 2, 1) after (1, 1); beyond the border is 0 (StyleGAN 2, Karras et al. 2020)."""
    if to == "up":
        x = enlarge(x)
    if blur:
        x = soften(F.pad(x, (1, 1, 1, 1)))
    return F.avg_pool2d(x, 2) if to == "down" else x


class Fourier(nn.Module):
    """Waves of t (b,) -> (b, 2n) with n frequencies 2 pi w, w ~ N(0, 16²) drawn once (Tancik et al. 2020, as in Song et al. 2021)."""

    def __init__(self, n: int):
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(n) * 16)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fourier:
        """Moves with the network, but stays in float32: angles are hundreds of radians, and bfloat16 would round them by whole radians."""
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != exact.dtype:
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        angles = t.to(self.frequencies)[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """scale (skip(x) + conv(silu(norm(conv(silu(norm(x))) + emb)))), x (b, c_in, h, w) -> (b, c_out, h, w).

    A block that changes the size does so before its first convolution and on the skip (BigGAN's block); the skip is then projected, too.
    """

    def __init__(self, config: NCSNppConfig, c_in: int, c_out: int, resize: Resize | None = None):
        super().__init__()
        self.scale, self.blur = config.scale, config.blur
        self.resize: Resize | None = resize
        self.norm1 = config.norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.emb_width, c_out)
        self.norm2 = config.norm(c_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if resize or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.scale * (self.conv_shortcut(self._resize(x)) + h)

    def _resize(self, x: Tensor) -> Tensor:
        return x if self.resize is None else resized(x, self.resize, self.blur)


class Attend(nn.Module):
    """scale (x + attention among all pixels), one head."""

    def __init__(self, config: NCSNppConfig, width: int):
        super().__init__()
        self.scale = config.scale
        self.block = AttentionBlock(Style(config.groups(width), eps=1e-6), width, heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.block(x)


class Pyramid(nn.Module):
    """The picture of the level before, convolved and halved: what joins the next level (c_in to c_out channels).

    The filter sees the convolution's values beyond the border, so the picture is padded once, for both.
    """

    def __init__(self, c_in: int, c_out: int, blur: bool):
        super().__init__()
        self.blur = blur
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=2 if blur else 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return F.avg_pool2d(soften(h) if self.blur else h, 2)


class DownBlock(nn.Module):
    """x -> what every block gives, the halved picture last. The deepest level does not halve.

    With a pyramid, the halved picture is joined by the pyramid of the level above, and is the pyramid of the next.
    """

    def __init__(self, config: NCSNppConfig, c_in: int, level: int):
        super().__init__()
        width = config.widths[level]
        self.scale = config.scale
        self.resnets = nn.ModuleList(Block(config, c, width) for c in [c_in] + [width] * (config.blocks - 1))
        self.attentions = nn.ModuleList(Attend(config, width) for _ in self.resnets if config.attend[level])
        last = level + 1 == len(config.widths)
        self.downsample = None if last else _downsample(config, width)
        above = config.widths[level - 1] if level else config.in_channels
        self.pyramid = Pyramid(above, width, config.blur) if config.pyramid and not last else None

    def forward(self, x: Tensor, pyramid: Tensor, emb: Tensor) -> tuple[list[Tensor], Tensor]:
        kept = []
        for resnet, attend in zip_longest(self.resnets, self.attentions):
            x = resnet(x, emb)
            x = attend(x) if attend is not None else x
            kept.append(x)
        if self.downsample is None:
            return kept, pyramid
        x = self.downsample(x, emb)
        if self.pyramid is not None:
            x = pyramid = self.scale * (x + self.pyramid(pyramid))
        return [*kept, x], pyramid


class MidBlock(nn.Module):
    def __init__(self, config: NCSNppConfig):
        super().__init__()
        width = config.widths[-1]
        self.resnets = nn.ModuleList(Block(config, width, width) for _ in range(2))
        self.attention = Attend(config, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.resnets[1](self.attention(self.resnets[0](x, emb)), emb)


class UpBlock(nn.Module):
    """x, and from the end of `kept` as many pictures as there are blocks -> the doubled picture. The largest level does not double."""

    def __init__(self, config: NCSNppConfig, inputs: list[int], level: int):
        super().__init__()
        width = config.widths[level]
        self.resnets = nn.ModuleList(Block(config, c, width) for c in inputs)
        self.attention = Attend(config, width) if config.attend[level] else None
        self.upsample = _upsample(config, width) if level else None

    def forward(self, x: Tensor, kept: list[Tensor], emb: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(torch.cat([x, kept.pop()], dim=1), emb)
        if self.attention is not None:
            x = self.attention(x)
        return self.upsample(x, emb) if self.upsample is not None else x


def _downsample(config: NCSNppConfig, width: int) -> nn.Module:
    return Downsample(width, corner=True) if config.resample == "conv" else Block(config, width, width, "down")


def _upsample(config: NCSNppConfig, width: int) -> nn.Module:
    return Upsample(width) if config.resample == "conv" else Block(config, width, width, "up")


class NCSNpp(nn.Module):
    """x (b, c, h, w), t (b,), Cond -> (b, c, h, w). Sides halve evenly at every level.

    t is what the authors embed: c_noise in EDM, log sigma for score_sde's VE process, 999 t for its VP.
    Cond: `labels` (b,), where `num_classes` itself is no label; `pooled` (b, augment_width), the augmentation, None for none.
    """

    def __init__(self, config: NCSNppConfig):
        super().__init__()
        self.config = config
        stem, waves, widths = config.stem, config.wave_width, config.widths
        self.fourier = Fourier(stem) if config.fourier else None
        self.class_embedding = nn.Linear(config.num_classes, waves) if config.num_classes else None
        self.augment_embedding = nn.Linear(config.augment_width, waves, bias=False) if config.augment_width else None
        self.time_embedding = EmbeddingMLP(waves, config.emb_width)
        self.conv_in = nn.Conv2d(config.in_channels, stem, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, c_in, i) for i, c_in in enumerate((stem, *widths[:-1])))
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, inputs, i) for i, inputs in _up_inputs(config))
        self.conv_norm_out = config.norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform of variance 1/mean(fan_in, fan_out), and zeros where a branch joins its skip and at the output."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        last = {Block: "conv2", AttentionBlock: "to_out"}
        for layer in [*(getattr(m, last[type(m)]) for m in self.modules() if type(m) in last), self.conv_out]:
            nn.init.zeros_(layer.weight)

    def embed(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the vector (b, 4 stem) that enters every residual block, in the dtype of x."""
        waves = timestep_embedding(t, self.config.stem, shift=1.0, cos_first=False) if self.fourier is None else self.fourier(t)
        emb = waves.to(x.dtype)
        if self.class_embedding is not None:
            n = self.config.num_classes
            one_hot = F.one_hot(cond.need("labels", "NCSN++"), n + 1)[:, :n]  # label n is a row of zeros
            emb = emb + self.class_embedding(one_hot.to(emb) * math.sqrt(n))
        if self.augment_embedding is not None and cond.pooled is not None:
            emb = emb + self.augment_embedding(cond.pooled.to(emb))
        return self.time_embedding(emb)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        cond = Cond() if cond is None else cond
        self._halves(x)
        emb = self.embed(x, t, cond)
        kept, pyramid = [self.conv_in(x)], x
        for down in self.down_blocks:
            level, pyramid = down(kept[-1], pyramid, emb)
            kept += level
        x = self.mid_block(kept[-1], emb)
        for up in self.up_blocks:
            x = up(x, kept, emb)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _halves(self, x: Tensor) -> None:
        side = 2 ** (len(self.config.widths) - 1)
        if x.shape[2] % side or x.shape[3] % side:
            raise ArgumentError(f"got x of {x.shape[2]}x{x.shape[3]}, expected multiples of {side}: this network halves them evenly")


def _up_inputs(config: NCSNppConfig) -> list[tuple[int, list[int]]]:
    """(level, channels that enter each of its blocks on the way up), the smallest picture first."""
    widths, last = config.widths, len(config.widths) - 1
    kept = [config.stem]  # channels of what the way down keeps
    for i, width in enumerate(widths):
        kept += [width] * (config.blocks + (i < last))
    x, inputs = widths[-1], []
    for i in range(last, -1, -1):
        inputs.append((i, [(widths[i] if block else x) + kept.pop() for block in range(config.blocks + 1)]))
        x = widths[i]
    return inputs
