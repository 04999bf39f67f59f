"""The parts that the U-Net and the autoencoder are built from: residual blocks, attention over the picture, resampling.

Module names are those of diffusers without its lists of one (`to_out.0` is `to_out`, `downsamplers.0` is `downsample`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.networks.attention import attention


@dataclass(frozen=True)
class Style:
    """What all residual blocks of one network have in common."""

    groups: int = 32
    eps: float = 1e-5
    emb_width: int = 0  # width of the time embedding; 0: the block takes none
    scale_shift: bool = False  # norm(h) (1 + scale) + shift instead of norm(h + emb)
    dropout: float = 0.0
    group_width: int = 1  # channels that a group has at least: 4 in EDM, which then has fewer groups

    def norm(self, width: int) -> nn.GroupNorm:
        return nn.GroupNorm(min(self.groups, width // self.group_width), width, eps=self.eps)


class EmbeddingMLP(nn.Module):
    """(b, c_in) -> (b, c_out): what the time, or a pooled vector, passes through once."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x))), emb))), x (b, c_in, h, w) -> (b, c_out, h, w) (Ho et al. 2020, appendix B).

    resample "down" halves the picture and "up" doubles it, between the first activation and its convolution and on the skip
    (BigGAN's block, which ADM resamples with).
    """

    def __init__(self, style: Style, c_in: int, c_out: int, resample: Literal["down", "up"] | None = None):
        super().__init__()
        self.style, self.resample = style, resample
        self.norm1 = style.norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(style.emb_width, (2 if style.scale_shift else 1) * c_out) if style.emb_width else None
        self.norm2 = style.norm(c_out)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        h = self._resize(F.silu(self.norm1(x)), size)
        h = self._embed(self.conv1(h), emb)
        return self.conv_shortcut(self._resize(x, size)) + self.conv2(self.dropout(F.silu(h)))

    def _embed(self, h: Tensor, emb: Tensor | None) -> Tensor:
        if self.time_emb_proj is None:
            return self.norm2(h)
        assert emb is not None  # a network with times embeds them
        added = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        if not self.style.scale_shift:
            return self.norm2(h + added)
        scale, shift = added.chunk(2, dim=1)
        return self.norm2(h) * (1 + scale) + shift

    def _resize(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return enlarge(x, size) if self.resample == "up" else x


def enlarge(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Nearest neighbours, to twice the size or to `size`: a skip from a picture of odd sides is one pixel short of twice."""
    return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")


class Downsample(nn.Module):
    """Half the size by a strided convolution. `corner` pads right and below only, as TensorFlow does: DDPM and the autoencoders."""

    def __init__(self, width: int, *, corner: bool = False):
        super().__init__()
        self.corner = corner
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if corner else 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.corner else x)


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(enlarge(x, size))


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (b, h*w, c)


def to_picture(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)


class AttentionBlock(nn.Module):
    """x + self-attention over all pixels (b, c, h, w): DDPM, ADM, unconditional LDM and the autoencoders."""

    def __init__(self, style: Style, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.group_norm = style.norm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        h = to_tokens(self.group_norm(x))
        h = self.to_out(attention(self.to_q(h), self.to_k(h), self.to_v(h), self.heads))
        return x + to_picture(h, x)


class Attention(nn.Module):
    """Queries from x (b, n, width); keys and values from the context (b, m, context_width), or from x again."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return self.to_out(attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): out(a gelu(b)) with a, b = proj(x)."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        return self.out(a * F.gelu(b))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each behind a norm and added."""

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context_width, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x + transformer blocks over the pixels of x (b, c, h, w), which attend to tokens (b, n, context_width)
    (Rombach et al. 2022, section 3.3).

    The two projections are 1x1 convolutions in SD 1 and linear layers in SD 2 and SDXL: the same product, other tensor shapes.
    """

    def __init__(self, style: Style, width: int, context_width: int, *, heads: int, depth: int, linear: bool):
        super().__init__()
        self.norm = nn.GroupNorm(style.groups, width, eps=1e-6)  # 1e-6 here even where the residual blocks have 1e-5
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, context_width, heads) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        h = _project(self.proj_in, to_tokens(self.norm(x)))
        for block in self.transformer_blocks:
            h = block(h, tokens)
        return x + to_picture(_project(self.proj_out, h), x)


def _project(layer: nn.Linear | nn.Conv2d, tokens: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return layer(tokens)
    return layer(tokens.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)  # the pixels as a picture one column wide
