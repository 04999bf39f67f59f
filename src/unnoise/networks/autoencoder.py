"""The KL autoencoder of latent diffusion (Rombach et al. 2022): a picture to the mean and variance of a small grid of latents, and back.

    encode: conv, levels of residual blocks that halve the picture, attention in the middle, conv to (mean, logvar)
    decode: conv, attention in the middle, levels of residual blocks that double it, conv to a picture

Each half has an inner part on the grid of latents, which attends over the whole grid, and an outer part of convolutions alone, which
takes nearly all of the memory and may run in strips of rows; those lie with their channels last, where convolutions are fastest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.blocks import AttentionBlock, Downsample, ResidualBlock, Style, Upsample
from unnoise.networks.tiling import activated, held, residual, strip_height

Way = Literal["encode", "decode"]  # pictures to latents, or back


@dataclass(frozen=True)
class AutoencoderConfig:
    """Defaults: kl-f8 of Stable Diffusion 1 and 2 (83,653,863 parameters)."""

    kind: ClassVar[str] = "autoencoder"

    in_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)  # channels of each level, the largest picture first
    blocks: int = 2  # residual blocks a level of the encoder; the decoder has one more
    quant_convs: bool = True  # 1x1 convolutions on both sides of the latents; SD 3 has none
    scale: float = 0.18215  # a diffusion model sees (z - shift) scale, of about unit variance
    shift: float = 0.0
    groups: int = 32

    def build(self) -> Autoencoder:
        return Autoencoder(self)

    @property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def style(self) -> Style:
        return Style(self.groups, eps=1e-6)


class Posterior(NamedTuple):
    """A normal distribution for every latent."""

    mean: Tensor  # (b, latent_channels, h/factor, w/factor)
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, for noise of unit variance."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class DownBlock(nn.Module):
    def __init__(self, style: Style, c_in: int, width: int, blocks: int, *, halve: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(style, width if i else c_in, width) for i in range(blocks))
        self.downsample = Downsample(width, corner=True) if halve else nn.Identity()


class UpBlock(nn.Module):
    def __init__(self, style: Style, c_in: int, width: int, blocks: int, *, double: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(style, width if i else c_in, width) for i in range(blocks))
        self.upsample = Upsample(width) if double else nn.Identity()


class MidBlock(nn.Module):
    def __init__(self, style: Style, width: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(style, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([AttentionBlock(style, width, heads=1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        style, widths = config.style, config.widths
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(style, widths[max(i - 1, 0)], width, config.blocks, halve=i + 1 < len(widths)) for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(style, widths[-1])
        self.conv_norm_out = style.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, *, tile: int = 0) -> Tensor:
        """A picture to (mean, logvar) side by side; in strips if it is larger than `tile` by `tile` latents."""
        factor = 2 ** (len(self.down_blocks) - 1)
        rows = strip_height(x.shape[2] // factor, x.shape[3] // factor, tile)
        return self.inner(self.outer_in_strips(x, rows * factor) if rows else self.outer(x)).contiguous()

    def outer(self, x: Tensor) -> Tensor:
        """A picture to features on the grid of latents."""
        x = self.conv_in(x)
        for down in self._downs()[:-1]:
            for resnet in down.resnets:
                x = resnet(x)
            x = down.downsample(x)
        return x

    @torch.no_grad()
    def outer_in_strips(self, picture: Tensor, step: int) -> Tensor:
        x = held(channels_last(picture), step).then(self.conv_in, reach=1).hold()
        for down in self._downs()[:-1]:
            for resnet in down.resnets:
                x = residual(cast(ResidualBlock, resnet), x)
            x = x.then(down.downsample, reach=1, cells=(2, 1)).hold()
        return x.all()

    def _downs(self) -> list[DownBlock]:
        return [cast(DownBlock, block) for block in self.down_blocks]

    def inner(self, x: Tensor) -> Tensor:
        for resnet in self._downs()[-1].resnets:
            x = resnet(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        style, widths = config.style, config.widths[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(style, widths[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(style, widths[max(i - 1, 0)], width, config.blocks + 1, double=i + 1 < len(widths)) for i, width in enumerate(widths)
        )
        self.conv_norm_out = style.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor, *, tile: int = 0) -> Tensor:
        """Latents to a picture; in strips if they are more than `tile` by `tile`."""
        rows = strip_height(z.shape[2], z.shape[3], tile)
        return self.outer_in_strips(self.inner(channels_last(z)), rows).contiguous() if rows else self.outer(self.inner(z))

    def inner(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for resnet in self._ups()[0].resnets:
            x = resnet(x)
        return x

    def _ups(self) -> list[UpBlock]:
        return [cast(UpBlock, block) for block in self.up_blocks]

    def outer(self, x: Tensor) -> Tensor:
        """Features on the grid of latents to a picture."""
        for below, up in itertools.pairwise(self._ups()):
            x = below.upsample(x)
            for resnet in up.resnets:
                x = resnet(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    @torch.no_grad()
    def outer_in_strips(self, features: Tensor, step: int) -> Tensor:
        x = held(features, step)
        for below, up in itertools.pairwise(self._ups()):
            x = x.then(transposed(cast(Upsample, below.upsample)), reach=1, cells=(1, 2))
            if up is not self.up_blocks[-1]:  # there they would be twice as large as anything else: computed again when asked
                x = x.hold()
            for resnet in up.resnets:
                x = residual(cast(ResidualBlock, resnet), x)
        return activated(self.conv_norm_out, x).then(self.conv_out, reach=1).hold().all()


def transposed(upsample: Upsample) -> Callable[[Tensor], Tensor]:
    """The same to rounding as one transposed convolution, of 4 products a pixel instead of 9.

    Weights that meet the same neighbour are summed beforehand: (c_out, c_in, 3, 3) become (c_in, c_out, 4, 4), mirrored.
    """
    weight, bias = upsample.conv.weight, upsample.conv.bias
    sums = 4 * F.avg_pool2d(weight.float(), 2, stride=1, padding=1)
    return partial(F.conv_transpose2d, weight=sums.flip(2, 3).transpose(0, 1).to(weight.dtype), bias=bias, stride=2, padding=1)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Autoencoder(nn.Module):
    """Pictures (b, 3, h, w) in [-1, 1] to latents (b, latent_channels, h/factor, w/factor) and back.

    Both directions take `tile`: 0 works on all at once, as the authors do; otherwise the outer part works on strips of rows, each as large
    as `tile` by `tile` latents. Strips give the same to rounding, on a CPU in less time, and need room for two of the largest features
    (b, widths[0], h, w) beside a strip. No gradient passes through them.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.quant_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.quant_convs else nn.Identity()

    def forward(self, x: Tensor, way: Way, *, tile: int = 0) -> Posterior | Tensor:
        """Go one way: so a module around this one that only passes its arguments on, or compiles this method, serves both."""
        return self.encode(x, tile=tile) if way == "encode" else self.decode(x, tile=tile)

    def encode(self, x: Tensor, *, tile: int = 0) -> Posterior:
        factor = self.config.factor
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ArgumentError(f"got a picture of {x.shape[3]}x{x.shape[2]}, expected multiples of {factor}: resize or crop it")
        mean, logvar = self.quant_conv(self.encoder(x, tile=tile)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor, *, tile: int = 0) -> Tensor:
        return self.decoder(self.post_quant_conv(z), tile=tile)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as the diffusion model sees them."""
        return (z - self.config.shift) * self.config.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.config.scale + self.config.shift
