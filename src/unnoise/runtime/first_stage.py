"""Pictures to latents and back, one at a time: the same to the last bit in any batch, in the memory of one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unnoise.errors import NonFiniteError
from unnoise.runtime.placement import Networks

WHOLE = 96  # latents a side that are decoded in one piece; above, in tiles of TILE
TILE = 24  # as benchmarks/decode.py measures: a strip is as large as 24x24 latents


class Scaled(Protocol):
    """As much of an autoencoder's config as is needed here."""

    scale: float
    shift: float


class Decoded(NamedTuple):
    pictures: Tensor  # (b, 3, h, w) about -1..1, float32
    dtype: torch.dtype  # what it took: a half precision that overflowed is not the model's


@dataclass(frozen=True)
class Stage:
    """The autoencoder of a model, where its networks run."""

    networks: Networks

    @property
    def config(self) -> Scaled:
        """The autoencoder's config, which has the scale and shift of its latents."""
        return self.networks.config("autoencoder")  # pyright: ignore[reportReturnType]

    @property
    def dtype(self) -> torch.dtype:
        return self.networks.placement.dtype

    def encode(self, x: Tensor, noise: Tensor) -> Tensor:
        """Encode pictures (b, 3, h, w) in -1..1, drawn by unit noise of the latents' shape: (b, c, h', w') as the diffusion model sees
        them. Raises NonFiniteError."""
        rows = []
        with self.networks.on("autoencoder") as stage:
            for picture, unit in zip(x.split(1), noise.split(1), strict=True):
                posterior = stage(picture.to(self.dtype), "encode", tile=_tile(max(unit.shape[2:])))
                rows.append(self.scaled(posterior.sample(unit.to(self.dtype))).float())
        return finite(torch.cat(rows), "autoencoder: the image's latents are not finite")

    def decode(self, latents: Tensor) -> Decoded:
        """Decode latents; where half precision overflows (SDXL's autoencoder does in float16) again in float32. Raises NonFiniteError."""
        with self.networks.on("autoencoder") as stage:
            pictures = self._decode(stage, latents, self.dtype)
            if self.dtype == torch.float32 or bool(torch.isfinite(pictures).all()):
                return Decoded(finite(pictures, "autoencoder: the decoded picture is not finite"), self.dtype)
            finite(latents, "denoiser: the latents to decode are not finite")
            pictures = self._decode(copy.deepcopy(stage).float(), latents, torch.float32)
        return Decoded(finite(pictures, "autoencoder: the decoded picture is not finite, in float32 too"), torch.float32)

    def _decode(self, stage: nn.Module, latents: Tensor, dtype: torch.dtype) -> Tensor:
        rows = []
        for row in latents.split(1):
            z = row.to(dtype) / self.config.scale + self.config.shift
            rows.append(stage(z, "decode", tile=_tile(max(row.shape[2:]))).float())
        return torch.cat(rows)

    def scaled(self, z: Tensor) -> Tensor:
        """Return latents as the diffusion model sees them."""
        return (z - self.config.shift) * self.config.scale


def _tile(side: int) -> int:
    return TILE if side > WHOLE else 0


def finite(x: Tensor, complaint: str) -> Tensor:
    """x, or NonFiniteError: a picture of NaN is never written."""
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(complaint)
    return x
