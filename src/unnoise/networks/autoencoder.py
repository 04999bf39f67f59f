"""The KL autoencoder of latent diffusion (Rombach et al. 2022): a picture to the mean and variance of a small grid of latents, and back.

    encode: conv, levels of residual blocks that halve the picture, attention in the middle, conv to (mean, logvar)
    decode: conv, attention in the middle, levels of residual blocks that double it, conv to a picture

Each half has an inner part on the grid of latents, which attends over the whole grid, and an outer part of convolutions alone, which
holds nearly all of the memory and may run in tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.blocks import AttentionBlock, Downsample, Norm, ResidualBlock, Style, Upsample
from unnoise.networks.tiling import Stage, through


@dataclass(frozen=True)
class AutoencoderConfig:
    """Defaults: kl-f8 of Stable Diffusion 1 and 2 (83,653,863 parameters)."""

    in_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)  # channels of each level, the largest picture first
    blocks: int = 2  # residual blocks a level of the encoder; the decoder has one more
    quant_convs: bool = True  # 1x1 convolutions on both sides of the latents; SD 3 has none
    scale: float = 0.18215  # a diffusion model sees (z - shift) scale, of about unit variance
    shift: float = 0.0
    groups: int = 32

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

    def outer(self) -> list[Stage]:
        """A picture to features on the grid of latents."""
        entry, cells, stages = self.conv_in, (1, 1), []
        for down in self.down_blocks[:-1]:
            stages += _level(entry, cells, down.resnets)
            entry, cells = down.downsample, (2, 1)
        return [*stages, _stage(entry, None, cells)]

    def inner(self, x: Tensor) -> Tensor:
        for resnet in self.down_blocks[-1].resnets:
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

    def inner(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for resnet in self.up_blocks[0].resnets:
            x = resnet(x)
        return x

    def outer(self) -> list[Stage]:
        """Features on the grid of latents to a picture."""
        stages = []
        for below, up in itertools.pairwise(self.up_blocks):
            stages += _level(below.upsample, (1, 2), up.resnets)
        return [*stages, Stage(self._finish)]

    def _finish(self, x: Tensor, norm: Norm) -> Tensor:
        return self.conv_out(F.silu(norm(self.conv_norm_out, x)))


def _level(entry: nn.Module, cells: tuple[int, int], resnets: Iterable[ResidualBlock]) -> list[Stage]:
    """One stage a residual block; what leads into the level goes with the first."""
    first, *others = resnets
    return [_stage(entry, first, cells), *(_stage(None, block, (1, 1)) for block in others)]


def _stage(entry: nn.Module | None, block: ResidualBlock | None, cells: tuple[int, int]) -> Stage:
    def run(x: Tensor, norm: Norm) -> Tensor:
        x = x if entry is None else entry(x)
        return x if block is None else block(x, norm=norm)

    return Stage(run, cells)


class Autoencoder(nn.Module):
    """Pictures (b, 3, h, w) in [-1, 1] to latents (b, latent_channels, h/factor, w/factor) and back.

    Both directions take `tile`, the side in latents of the pieces that the outer part works on; 0 works on all at once. Tiles give the
    same result to rounding. They need room for two of the largest features beside one piece, against four or more at once, for about
    twice the work.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.quant_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.quant_convs else nn.Identity()

    def encode(self, x: Tensor, *, tile: int = 0) -> Posterior:
        factor = self.config.factor
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ArgumentError(f"got a picture of {x.shape[3]}x{x.shape[2]}, expected multiples of {factor}: resize or crop it")
        h = through(self.encoder.outer(), x, tile=tile, pixels=factor)
        mean, logvar = self.quant_conv(self.encoder.inner(h)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor, *, tile: int = 0) -> Tensor:
        h = self.decoder.inner(self.post_quant_conv(z))
        return through(self.decoder.outer(), h, tile=tile, pixels=1)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as the diffusion model sees them."""
        return (z - self.config.shift) * self.config.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.config.scale + self.config.shift
