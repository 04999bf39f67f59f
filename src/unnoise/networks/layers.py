"""Small parts that several networks share: time embeddings, patches, position tables."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from unnoise.errors import ArgumentError


def timestep_embedding(t: Tensor, width: int, *, shift: float = 0.0, cos_first: bool = True, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of t (b,) -> (b, width), computed in float32 at least (Ho et al. 2020, after Vaswani et al. 2017).

    Frequencies max_period^(-i / (width/2 - shift)). Latent diffusion, ADM and DiT: shift 0, cosines first. DDPM: shift 1, sines first.
    """
    half = width // 2
    dtype = torch.promote_types(t.dtype, torch.float32) if t.is_floating_point() else torch.float32
    i = torch.arange(half, device=t.device, dtype=dtype)
    angles = t.to(dtype)[:, None] * torch.exp(-math.log(max_period) / (half - shift) * i)
    waves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


def position_table(width: int, rows: int, cols: int, device: torch.device | None = None) -> Tensor:
    """Fixed sin-cos positions of a grid (rows*cols, width): the first half encodes the column, the second the row (MAE, DiT).

    device: the one that it is made on; None is torch's default. On Apple's GPUs, which have no float64, it is made on the CPU and copied.
    """
    maker = torch.device("cpu") if device is not None and device.type == "mps" else device

    def axis(n: int) -> Tensor:
        omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device=maker) / (width / 4))
        angles = torch.arange(n, dtype=torch.float64, device=maker)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (n, width/2)

    column, row = axis(cols)[None].expand(rows, -1, -1), axis(rows)[:, None].expand(-1, cols, -1)
    return torch.cat([column, row], dim=-1).reshape(rows * cols, width).float().to(device)


def built_from(config: object, network: nn.Module) -> nn.Module:
    """Return the module that was built from `config`, inside whatever wraps it. Raises ArgumentError where there is none."""
    for module in network.modules():
        if getattr(module, "config", None) == config:
            return module
    raise ArgumentError(f"got a {type(network).__name__} in which nothing was built from {config}: expected the network of this config")


def whole_patches(x: Tensor, patch: int) -> None:
    """Refuse a picture whose sides are not whole patches."""
    if x.shape[2] % patch or x.shape[3] % patch:
        raise ArgumentError(f"got x of {x.shape[2]}x{x.shape[3]}, expected multiples of {patch}, the side of this network's patches")


def unpatchify(tokens: Tensor, patch: int, rows: int, cols: int) -> Tensor:
    """(b, rows*cols, patch*patch*c) -> (b, c, rows*patch, cols*patch); channels vary fastest in a token."""
    b, _, width = tokens.shape
    c = width // patch**2
    x = tokens.view(b, rows, cols, patch, patch, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, rows * patch, cols * patch)


class TimestepMLP(nn.Module):
    """Sinusoids, then two linear layers: (b,) -> (b, width)."""

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        waves = timestep_embedding(t, self.frequencies)
        return self.mlp(waves.to(cast(nn.Linear, self.mlp[0]).weight.dtype))
