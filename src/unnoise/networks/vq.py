"""The vector-quantised autoencoder of latent diffusion (Rombach et al. 2022, section 3.1): the KL autoencoder with a codebook in place of
a variance. VQ-f4 is the first stage of LDM-4.

    encode: encoder, 1x1 conv                                   latents are not quantised: a diffusion model learns them as they are
    decode: nearest code of every latent, 1x1 conv, decoder     so that quantisation is a part of the decoder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.autoencoder import AutoencoderConfig, Decoder, Encoder, Posterior, Way

CELLS = 4096  # latents that are compared with the codebook at once: 128 MiB of distances to 8192 codes


@dataclass(frozen=True)
class VQConfig:
    """Defaults: VQ-f4 of LDM-4 (55,298,206 parameters and a codebook of 24,576)."""

    kind: ClassVar[str] = "vq"

    in_channels: int = 3
    latent_channels: int = 3  # and of a code
    codes: int = 8192
    widths: tuple[int, ...] = (128, 256, 512)  # channels of each level, the largest picture first
    blocks: int = 2  # residual blocks a level of the encoder; the decoder has one more
    scale: float = 1.0  # a diffusion model sees (z - shift) scale
    shift: float = 0.0
    groups: int = 32

    def build(self) -> VQAutoencoder:
        return VQAutoencoder(self)

    @property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def halves(self) -> AutoencoderConfig:
        """What the encoder and the decoder are built from."""
        return AutoencoderConfig(self.in_channels, self.latent_channels, self.widths, self.blocks, groups=self.groups)


class Codebook(nn.Module):
    """z (b, c, h, w) -> the nearest code of every latent, (b, c, h, w). Distances are taken in float32."""

    def __init__(self, codes: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def indices(self, z: Tensor) -> Tensor:
        """The number of the nearest code, (b, h, w)."""
        codes = self.embedding(torch.arange(self.embedding.num_embeddings, device=z.device)).float()
        cells = z.movedim(1, -1).flatten(0, -2).float()
        length = codes.square().sum(1)  # |z - e|² = |e|² - 2 z e + |z|², and the last is the same for all codes
        nearest = [torch.addmm(length, part, codes.T, alpha=-2).argmin(1) for part in cells.split(CELLS)]
        return torch.cat(nearest).view(len(z), *z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        return self.embedding(self.indices(z)).movedim(-1, 1).to(z.dtype)


class VQAutoencoder(nn.Module):
    """Pictures (b, 3, h, w) in [-1, 1] to latents (b, latent_channels, h/factor, w/factor) and back; the surface of `Autoencoder`,
    and its strips.

    Raises ArgumentError for pictures whose sides are no multiples of the factor.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        channels, halves = config.latent_channels, config.halves
        self.encoder = Encoder(halves)
        self.encoder.conv_out = nn.Conv2d(config.widths[-1], channels, 3, padding=1)  # a mean alone
        self.decoder = Decoder(halves)
        self.quantize = Codebook(config.codes, channels)
        self.quant_conv = nn.Conv2d(channels, channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, way: Way, *, tile: int = 0) -> Posterior | Tensor:
        """Go one way: so a module around this one that only passes its arguments on, or compiles this method, serves both."""
        return self.encode(x, tile=tile) if way == "encode" else self.decode(x, tile=tile)

    def encode(self, x: Tensor, *, tile: int = 0) -> Posterior:
        """A posterior without spread: its sample is its mean."""
        factor = self.config.factor
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ArgumentError(f"got a picture of {x.shape[3]}x{x.shape[2]}, expected multiples of {factor}: resize or crop it")
        mean = self.quant_conv(self.encoder(x, tile=tile))
        return Posterior(mean, torch.full_like(mean, -torch.inf))

    def decode(self, z: Tensor, *, tile: int = 0, quantize: bool = True) -> Tensor:
        """quantize: take the nearest codes first, as the authors do; without, what lies between codes is kept."""
        return self.decoder(self.post_quant_conv(self.quantize(z) if quantize else z), tile=tile)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as the diffusion model sees them."""
        return (z - self.config.shift) * self.config.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        return latents / self.config.scale + self.config.shift
