"""The U-Net of DDPM, ADM, latent diffusion, Stable Diffusion 1 and 2, and SDXL: one figure, different sizes.

    emb   = mlp(sinusoids(t) + proj(sinusoids(guidance scale))) + embed(label) + mlp(pooled vector)
    down:   [residual block, attention] x blocks, each kept for the way up; then half the size
    middle: residual block, attention, residual block
    up:     [residual block of what was kept beside it, attention] x (blocks + 1); then twice the size

Attention is over pixels only (DDPM, ADM), or over pixels and then text (latent diffusion and after), wherever the level has a depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.blocks import (
    AttentionBlock,
    Downsample,
    EmbeddingMLP,
    ResidualBlock,
    SpatialTransformer,
    Style,
    Upsample,
)
from unnoise.networks.layers import timestep_embedding, whole_patches


@dataclass(frozen=True)
class UNetConfig:
    """Defaults: Stable Diffusion 1 (859,520,964 parameters)."""

    kind: ClassVar[str] = "unet"

    in_channels: int = 4  # of x and of what the condition adds to it
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)  # channels of each level, the largest picture first
    blocks: int = 2  # residual blocks a level on the way down; one more on the way up
    depths: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks behind each residual block; without text 1 is an attention block
    mid_depth: int = 1
    heads: int = 8  # in every attention, unless
    head_width: int = 0  # channels a head is set
    context_width: int = 768  # width of text tokens; 0: attention among pixels only
    linear_projection: bool = False  # of the transformers: SD 2 and SDXL
    pooled_width: int = 0  # width of a vector that joins the time embedding: pooled text and sizes in SDXL
    guidance_width: int = 0  # sinusoids of the guidance scale, where guidance was distilled into the network: LCM has 256
    num_classes: int = 0  # labels that join the time embedding: ADM; this number itself is no label, as EDM trains it
    learn_sigma: bool = False  # twice the channels out: the second half is the variance
    scale_shift: bool = False  # time scales and shifts the second norm: IDDPM, ADM
    resample: Literal["conv", "residual"] = "conv"  # residual: ADM
    corner_pad: bool = False  # downsampling pads right and below only, as TensorFlow: DDPM
    time_shift: float = 0.0  # of the sinusoids' frequencies, and
    time_cos_first: bool = True  # their order: DDPM has 1.0 and False
    waves: int = 0  # how many sinusoids, a quarter of the embedding's width; 0: widths[0]. ADM-512, whose first level is narrower, has more
    groups: int = 32
    group_width: int = 1  # channels that a group of group norm has at least: 4 in EDM
    eps: float = 1e-5  # of group norms: DDPM has 1e-6
    dropout: float = 0.0
    patch: int = 1  # pixels a side that become channels before the first convolution, and pixels again at the end (Hoogeboom et al. 2023)

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ArgumentError(f"got {len(self.depths)} depths for {len(self.widths)} widths: give one depth a level, 0 for no attention")
        if not self.context_width and max(*self.depths, self.mid_depth) > 1:
            raise ArgumentError(f"got depths {self.depths} without text: attention blocks have depth 1; set context_width")
        attended = [w for w, depth in zip(self.widths, self.depths, strict=True) if depth] + [self.widths[-1]] * bool(self.mid_depth)
        odd = [w for w in self.widths if w < self.group_width or w % min(self.groups, w // self.group_width)]
        odd += [w for w in attended if w % (self.head_width or self.heads)]
        if odd:
            raise ArgumentError(
                f"widths {sorted(set(odd))} do not divide into {self.groups} groups or whole heads: change one of the three"
            )

    def build(self) -> UNet:
        return UNet(self)

    @property
    def wave_width(self) -> int:
        return self.waves or self.widths[0]

    @property
    def emb_width(self) -> int:
        return 4 * self.wave_width

    @property
    def style(self) -> Style:
        return Style(self.groups, self.eps, self.emb_width, self.scale_shift, self.dropout, self.group_width)

    def attend(self, width: int, depth: int) -> nn.Module | None:
        heads = width // self.head_width if self.head_width else self.heads
        if depth == 0:
            return None
        if self.context_width == 0:
            return AttentionBlock(self.style, width, heads)
        return SpatialTransformer(self.style, width, self.context_width, heads=heads, depth=depth, linear=self.linear_projection)


class DownBlock(nn.Module):
    """x -> what every block gives, the halved picture last. The deepest level does not halve."""

    def __init__(self, config: UNetConfig, c_in: int, level: int):
        super().__init__()
        width = config.widths[level]
        self.resnets, self.attentions = _level(config, [c_in] + [width] * (config.blocks - 1), level)
        self.downsample = _downsample(config, width) if level + 1 < len(config.widths) else None

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None) -> list[Tensor]:
        kept = []
        for resnet, attend in zip_longest(self.resnets, self.attentions):
            x = resnet(x, emb)
            x = attend(x, tokens) if attend is not None else x
            kept.append(x)
        return [*kept, self.downsample(x, emb)] if self.downsample is not None else kept


class MidBlock(nn.Module):
    def __init__(self, config: UNetConfig):
        super().__init__()
        width = config.widths[-1]
        self.resnets = nn.ModuleList(ResidualBlock(config.style, width, width) for _ in range(2))
        self.attentions = _attentions(config, width, config.mid_depth, 1)

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None) -> Tensor:
        x = self.resnets[0](x, emb)
        for attend in self.attentions:
            x = attend(x, tokens)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """x, and from the end of `kept` as many pictures as there are blocks -> the doubled picture. The largest level does not double."""

    def __init__(self, config: UNetConfig, inputs: list[int], level: int):
        super().__init__()
        self.resnets, self.attentions = _level(config, inputs, level)
        self.upsample = _upsample(config, config.widths[level]) if level else None

    def forward(self, x: Tensor, kept: list[Tensor], emb: Tensor, tokens: Tensor | None) -> Tensor:
        for resnet, attend in zip_longest(self.resnets, self.attentions):
            x = resnet(torch.cat([x, kept.pop()], dim=1), emb)
            x = attend(x, tokens) if attend is not None else x
        return self.upsample(x, emb, kept[-1].shape[2:]) if self.upsample is not None else x


def _level(config: UNetConfig, inputs: list[int], level: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Residual blocks, which take `inputs` channels, and the attention behind each (or behind none)."""
    width, depth = config.widths[level], config.depths[level]
    resnets = nn.ModuleList(ResidualBlock(config.style, c_in, width) for c_in in inputs)
    return resnets, _attentions(config, width, depth, len(inputs))


def _attentions(config: UNetConfig, width: int, depth: int, count: int) -> nn.ModuleList:
    """None where the depth is 0."""
    made = [config.attend(width, depth) for _ in range(count)]
    return nn.ModuleList([module for module in made if module is not None])


def _downsample(config: UNetConfig, width: int) -> nn.Module:
    if config.resample == "residual":
        return ResidualBlock(config.style, width, width, "down")
    return Downsample(width, corner=config.corner_pad)


def _upsample(config: UNetConfig, width: int) -> nn.Module:
    return ResidualBlock(config.style, width, width, "up") if config.resample == "residual" else Upsample(width)


class Encoder(nn.Module):
    """The embedding, the way down and the middle: what a U-Net and its ControlNets have in common. Never built by itself."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.time_embedding = EmbeddingMLP(config.wave_width, config.emb_width)
        self.guidance_proj = nn.Linear(config.guidance_width, config.wave_width, bias=False) if config.guidance_width else None
        self.class_embedding = nn.Embedding(config.num_classes, config.emb_width) if config.num_classes else None
        self.add_embedding = EmbeddingMLP(config.pooled_width, config.emb_width) if config.pooled_width else None
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, widths[max(i - 1, 0)], i) for i in range(len(widths)))
        self.mid_block = MidBlock(config)

    def embed(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the vector (b, emb_width) that enters every residual block, in the dtype of x."""
        config = self.config
        waves = timestep_embedding(t, config.wave_width, shift=config.time_shift, cos_first=config.time_cos_first)
        waves = waves.to(x.dtype)
        if self.guidance_proj is not None:
            waves = waves + self.guidance_proj(guidance_embedding(cond.need("guidance", "U-Net"), config.guidance_width).to(waves))
        emb = self.time_embedding(waves)
        if self.class_embedding is not None:
            labels, last = cond.need("labels", "U-Net"), config.num_classes - 1
            rows = self.class_embedding(labels.clamp(max=last))
            emb = emb + torch.where((labels > last)[:, None], 0.0, rows)  # no label is a row of zeros
        if self.add_embedding is not None:
            emb = emb + self.add_embedding(cond.need("pooled", "U-Net"))
        return emb

    def text(self, cond: Cond) -> Tensor | None:
        return cond.need("tokens", "U-Net") if self.config.context_width else None

    def enter(self, x: Tensor) -> Tensor:
        """The first convolution, (b, widths[0], h/patch, w/patch)."""
        whole_patches(x, self.config.patch)
        return self.conv_in(F.pixel_unshuffle(x, self.config.patch))

    def descend(self, x: Tensor, emb: Tensor, tokens: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """x behind the first convolution -> all that the way down keeps, x first, and what the middle gives."""
        kept = [x]
        for down in self.down_blocks:
            kept += down(kept[-1], emb, tokens)
        return kept, self.mid_block(kept[-1], emb, tokens)


class UNet(Encoder):
    """x (b, c, h, w), timestep (b,), Cond -> (b, c or 2c, h, w). Sides are whole patches, and
    one that does not halve evenly is rounded on the way."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        widths = config.widths
        self.up_blocks = nn.ModuleList(UpBlock(config, inputs, i) for i, inputs in _up_inputs(config))
        self.conv_norm_out = config.style.norm(widths[0])
        out = config.out_channels * (2 if config.learn_sigma else 1) * config.patch**2
        self.conv_out = nn.Conv2d(widths[0], out, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start_as_identity(self, self.conv_out)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, *, residuals: Sequence[Tensor | None] = ()) -> Tensor:
        """residuals: what ControlNets add, one to each picture that the way down keeps, and the last to the middle's; see `Controlled`."""
        cond = Cond() if cond is None else cond
        emb, tokens = self.embed(x, t, cond), self.text(cond)
        if cond.concat is not None:
            x = torch.cat([x, cond.concat.to(x)], dim=1)
        kept, x = self.descend(self.enter(x), emb, tokens)
        if residuals:
            *kept, x = (h if added is None else h + added for h, added in zip([*kept, x], residuals, strict=True))
        for up in self.up_blocks:
            x = up(x, kept, emb, tokens)
        return F.pixel_shuffle(self.conv_out(F.silu(self.conv_norm_out(x))), self.config.patch)


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Sinusoids of w = scale - 1, in thousandths (Meng et al. 2023, as latent consistency models have it), (b, width)."""
    return timestep_embedding(1000 * (scale.float() - 1), width, shift=1.0, cos_first=False)


def start_as_identity(network: Encoder, *more: nn.Module) -> None:
    """Zeros where a branch joins its skip, and in `more`, such as the output: an untrained U-Net is the identity and answers zero."""
    last = {ResidualBlock: "conv2", AttentionBlock: "to_out", SpatialTransformer: "proj_out"}
    layers = [getattr(module, last[type(module)]) for module in network.modules() if type(module) in last]
    for p in nn.ModuleList([*layers, *more]).parameters():
        nn.init.zeros_(p)


def kept_widths(config: UNetConfig) -> list[int]:
    """Channels of all that the way down keeps, in order."""
    levels = [[width] * (config.blocks + (i + 1 < len(config.widths))) for i, width in enumerate(config.widths)]
    return [config.widths[0], *chain.from_iterable(levels)]


def _up_inputs(config: UNetConfig) -> list[tuple[int, list[int]]]:
    """(level, channels that enter each of its blocks on the way up), the smallest picture first."""
    widths, n, kept = config.widths, config.blocks, kept_widths(config)
    x, inputs = widths[-1], []
    for i in reversed(range(len(widths))):
        inputs.append((i, [(widths[i] if block else x) + kept.pop() for block in range(n + 1)]))
        x = widths[i]
    return inputs
