"""The tiny autoencoders of the TAESD family (madebyollin): latents to pictures with 1.2 million parameters a half, for previews.

    encode: conv, three times (halve, three blocks), conv to latents
    decode: tanh clamp, conv, three times (three blocks, double), block, conv to a picture

Nothing is drawn and nothing is scaled: the latents are those that the diffusion model sees. taesd, taesdxl: 4 channels; taesd3, taef1: 16;
taef2: 32, whose blocks on the grid of latents also see the whole grid through a group norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.autoencoder import Way

LEVELS = 3  # halvings
REACH = 9  # latents around a tile; outside the grid of latents: 1/2 + 9/2 + 10/4 + 5/8 down the decoder, 65 pixels up the encoder


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Defaults: taesd and taesdxl (2,445,063 parameters)."""

    kind: ClassVar[str] = "tiny"

    latent_channels: int = 4
    pooled: bool = False  # taef2: a group norm over the whole grid in the blocks beside the latents
    width: int = 64
    in_channels: int = 3
    scale: float = 1.0  # latents come as the diffusion model sees them
    shift: float = 0.0
    encodes: bool = True  # False: a file of the decoder alone

    def build(self) -> TinyAutoencoder:
        return TinyAutoencoder(self)

    @property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2**LEVELS

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> TinyAutoencoderConfig:
        """The sizes of weights under our names, both halves or one."""
        first, last = weights.get("decoder.1.weight"), weights.get("encoder.14.weight")
        if first is not None:
            width, channels = first.shape[:2]
        elif last is not None:
            channels, width = last.shape[:2]
        else:
            raise ArgumentError("got weights without encoder.14 and decoder.1, expected those of a tiny autoencoder (TAESD)")
        return cls(channels, any(".pool." in name for name in weights), width)


class Latents(NamedTuple):
    """What a tiny encoder gives; it has no variance."""

    mean: Tensor  # (b, latent_channels, h/8, w/8)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        return self.mean


class Clamp(nn.Module):
    """3 tanh(x / 3): latents far out would break the picture."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int, *, pooled: bool = False):
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.pool = Pool(width) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Pool(nn.Sequential):
    """Through its norm every latent hears of the whole grid."""

    def __init__(self, width: int):
        inner = 4 * width
        super().__init__(nn.Conv2d(width, inner, 1, bias=False), nn.GroupNorm(4, inner), nn.ReLU(), nn.Conv2d(inner, width, 1, bias=False))


def encoder(config: TinyAutoencoderConfig) -> nn.Sequential:
    width, layers = config.width, []
    for level in range(LEVELS):
        layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
        layers += [Block(width, pooled=config.pooled and level == LEVELS - 1) for _ in range(3)]
    entry = [nn.Conv2d(config.in_channels, width, 3, padding=1), Block(width)]
    return nn.Sequential(*entry, *layers, nn.Conv2d(width, config.latent_channels, 3, padding=1))


def decoder(config: TinyAutoencoderConfig) -> nn.Sequential:
    width, layers = config.width, []
    for level in range(LEVELS):
        layers += [Block(width, pooled=config.pooled and level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    entry = [Clamp(), nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*entry, *layers, Block(width), nn.Conv2d(width, config.in_channels, 3, padding=1))


INNER = {"encoder": 4, "decoder": 6}  # layers on the grid of latents: the encoder's last, the decoder's first


class TinyAutoencoder(nn.Module):
    """Pictures (b, 3, h, w) in [-1, 1] to latents (b, latent_channels, h/8, w/8) and back; `Autoencoder`'s surface.

    Parameters are called as in the authors' files, encoder.* and decoder.*; their networks work on pictures in [0, 1]. The picture is
    not clamped. `tile`: the side in latents of the pieces that the convolutions work on; 0 works on all at once.
    """

    def __init__(self, config: TinyAutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = encoder(config) if config.encodes else None
        self.decoder = decoder(config)

    def forward(self, x: Tensor, way: Way, *, tile: int = 0) -> Latents | Tensor:
        """Go one way: so a module around this one that only passes its arguments on, or compiles this method, serves both."""
        return self.encode(x, tile=tile) if way == "encode" else self.decode(x, tile=tile)

    def encode(self, x: Tensor, *, tile: int = 0) -> Latents:
        factor = self.config.factor
        if self.encoder is None:
            raise ArgumentError("this tiny autoencoder has its decoder alone: to start from a picture use one with both halves")
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ArgumentError(f"got a picture of {x.shape[3]}x{x.shape[2]}, expected multiples of {factor}: resize or crop it")
        layers, inner = list(self.encoder), -INNER["encoder"]
        h = in_tiles(nn.Sequential(*layers[:inner]), (x + 1) / 2, tile, cells=(factor, 1))
        return Latents(nn.Sequential(*layers[inner:])(h))

    def decode(self, z: Tensor, *, tile: int = 0) -> Tensor:
        layers, inner = list(self.decoder), INNER["decoder"]
        h = nn.Sequential(*layers[:inner])(z)
        return in_tiles(nn.Sequential(*layers[inner:]), h, tile, cells=(1, self.config.factor)) * 2 - 1

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as the diffusion model sees them: these."""
        return (z - self.config.shift) * self.config.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.config.scale + self.config.shift


def in_tiles(layers: nn.Module, x: Tensor, tile: int, cells: tuple[int, int]) -> Tensor:
    """layers(x) by tiles of `tile` latents a side, each with a margin; a latent is cells[0] pixels of x and cells[1] of the result."""
    before, after = cells
    height, width = (side // before for side in x.shape[2:])
    if not 0 < tile < max(height, width):
        return layers(x)
    bands = []
    for row in range(0, height, tile):
        top, row_end = max(row - REACH, 0), min(row + tile, height)
        band = x[:, :, top * before : (row_end + REACH) * before]
        parts = []
        for column in range(0, width, tile):
            left, end = max(column - REACH, 0), min(column + tile, width)
            part = layers(band[:, :, :, left * before : (end + REACH) * before])
            parts.append(part[:, :, (row - top) * after : (row_end - top) * after, (column - left) * after : (end - left) * after])
        bands.append(torch.cat(parts, dim=3))
    return torch.cat(bands, dim=2)


def named(weights: Mapping[str, Tensor], half: str = "") -> dict[str, Tensor]:
    """Published weights under our names.

    The authors' two files have bare numbers, so `half` says which one this is, "encoder" or "decoder". diffusers' one file writes
    encoder.layers.N and decoder.layers.N; its decoder counts without the clamp.
    """

    def name(key: str) -> str:
        key = f"{half}.{key}" if half else key
        key = re.sub(r"^decoder\.layers\.(\d+)", lambda found: f"decoder.{int(found[1]) + 1}", key)
        return re.sub(r"^encoder\.layers\.", "encoder.", key)

    return {name(key): value for key, value in weights.items()}
