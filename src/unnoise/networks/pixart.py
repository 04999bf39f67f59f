"""PixArt-Sigma (Chen et al. 2024): a diffusion transformer that attends to text, its blocks modulated by one vector for all of them.

    tokens  = patchify(x) + positions
    context = mlp(text states)
    t0      = embed(t);  t6 = linear(silu(t0)), six vectors              adaLN-single (Chen et al. 2023, section 2.3)
    block:    shift1, scale1, gate1, shift2, scale2, gate2 = table + t6
              tokens += gate1 * attention(scale1 * norm(tokens) + shift1)
              tokens += cross_attention(tokens, context)
              tokens += gate2 * mlp(scale2 * norm(tokens) + shift2)
    out     = unpatchify(linear(scale * norm(tokens) + shift)),  shift, scale = table + t0

Positions are counted in units of the training grid, so that those of a finer grid lie closer (section 3.3). Module names are those of the
authors' checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.networks.attention import attention
from unnoise.networks.dit import MLP, Attention, PatchEmbed
from unnoise.networks.layers import TimestepMLP, unpatchify, whole_patches


@dataclass(frozen=True)
class PixArtConfig:
    """Defaults: PixArt-Sigma-XL-2-1024-MS (610,856,096 parameters)."""

    kind: ClassVar[str] = "pixart"

    in_channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    context_width: int = 4096  # of text tokens
    learn_sigma: bool = True  # twice the channels out: the second half is the variance
    grid: int = 64  # patches a side of the training pictures
    position_scale: float = 2.0  # by which positions are divided; 1 at 512, 2 at 1024

    def build(self) -> PixArt:
        return PixArt(self)


def positions(width: int, rows: int, cols: int, extent: float) -> Tensor:
    """Fixed sin-cos positions (rows*cols, width) of a grid that spans `extent` units a side: the first half encodes the column."""

    def axis(n: int) -> Tensor:
        omega = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        angles = (torch.arange(n, dtype=torch.float64) * (extent / n))[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (n, width/2)

    column, row = axis(cols)[None].expand(rows, -1, -1), axis(rows)[:, None].expand(-1, cols, -1)
    return torch.cat([column, row], dim=-1).reshape(rows * cols, width).float()


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv_linear(context).chunk(2, dim=-1)
        return self.proj(attention(self.q_linear(x), k, v, self.heads))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, context: Tensor, t6: Tensor) -> Tensor:
        """x (b, n, width), context (b, m, width), t6 (b, 6, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + t6).chunk(6, dim=1)  # each (b, 1, width)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        x = x + self.cross_attn(x, context)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, t0: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t0[:, None]).chunk(2, dim=1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class TextProjection(nn.Module):
    def __init__(self, context_width: int, width: int):
        super().__init__()
        self.y_proj = nn.ModuleDict({"fc1": nn.Linear(context_width, width), "fc2": nn.Linear(width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        return self.y_proj["fc2"](nn.functional.gelu(self.y_proj["fc1"](tokens), approximate="tanh"))


class PixArt(nn.Module):
    """x (b, c, h, w), timestep (b,), Cond with tokens (b, m, context_width) -> (b, c or 2c, h, w). h and w are multiples of the patch."""

    def __init__(self, config: PixArtConfig):
        super().__init__()
        self.config = config
        width, out = config.width, config.in_channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed(config.patch, config.in_channels, width)
        self.t_embedder = TimestepMLP(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = TextProjection(config.context_width, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch**2 * out)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        config = self.config
        whole_patches(x, config.patch)
        rows, cols = x.shape[2] // config.patch, x.shape[3] // config.patch
        tokens = self.x_embedder(x)
        tokens = tokens + positions(config.width, rows, cols, config.grid / config.position_scale).to(tokens)
        context = self.y_embedder(cond.need("tokens", "PixArt"))
        t0 = self.t_embedder(t)
        t6 = self.t_block(t0).unflatten(1, (6, config.width))
        for block in self.blocks:
            tokens = block(tokens, context, t6)
        return unpatchify(self.final_layer(tokens, t0), config.patch, rows, cols)
