"""Pictures to latents and back, one at a time: the same to the last bit in any batch, in the memory of one."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unnoise.errors import NonFiniteError

WHOLE = 96  # latents a side that are decoded in one piece; above, in tiles of TILE
TILE = 24  # as benchmarks/decode.py measures: a strip is as large as 24x24 latents


class Decoded(NamedTuple):
    pictures: Tensor  # (b, 3, h, w) about -1..1, float32
    dtype: torch.dtype  # what it took: a half precision that overflowed is not the model's


def encode(stage: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """Latents (b, c, h', w') of pictures (b, 3, h, w) in -1..1, drawn by unit noise of their shape, as the diffusion model sees them."""
    dtype = next(stage.parameters()).dtype
    rows = []
    for picture, unit in zip(x.split(1), noise.split(1), strict=True):
        posterior = stage.encode(picture.to(dtype), tile=_tile(max(unit.shape[2:])))
        rows.append(stage.scaled(posterior.sample(unit.to(dtype))).float())
    return finite(torch.cat(rows), "autoencoder: the image's latents are not finite")


def decode(stage: nn.Module, latents: Tensor) -> Decoded:
    """Where half precision overflows (SDXL's autoencoder does in float16) the same again in float32. Raises NonFiniteError."""
    dtype = next(stage.parameters()).dtype
    pictures = _decode(stage, latents, dtype)
    if bool(torch.isfinite(pictures).all()) or dtype == torch.float32:
        return Decoded(finite(pictures, "autoencoder: the decoded picture is not finite"), dtype)
    finite(latents, "denoiser: the latents to decode are not finite")
    pictures = _decode(copy.deepcopy(stage).float(), latents, torch.float32)
    return Decoded(finite(pictures, "autoencoder: the decoded picture is not finite, in float32 too"), torch.float32)


def _decode(stage: nn.Module, latents: Tensor, dtype: torch.dtype) -> Tensor:
    rows = [stage.decode(stage.unscaled(row.to(dtype)), tile=_tile(max(row.shape[2:]))).float() for row in latents.split(1)]
    return torch.cat(rows)


def _tile(side: int) -> int:
    return TILE if side > WHOLE else 0


def finite(x: Tensor, complaint: str) -> Tensor:
    """x, or NonFiniteError: a picture of NaN is never written."""
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(complaint)
    return x
