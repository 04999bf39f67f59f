"""The multimodal diffusion transformer of Esser et al. (2024), figure 2: Stable Diffusion 3 and 3.5.

    c     = embed(t) + embed(pooled text)                               (b, width), modulates every block
    text  = linear(text tokens)                                         (b, n, width)
    image = patchify(x) + positions                                     (b, rows*cols, width)
    block:  text and image each with weights of their own, but one attention over both, text first
    x     = unpatchify(linear(modulated norm(image)))

Text and image each pass through a `Stream`: adaLN-Zero as in DiT, cut in two where the streams meet. Nothing reads the text after the last
block, so there its stream only gives queries, keys and values ("pre-only"). Stable Diffusion 3.5 divides queries and keys by their root
mean square; its medium size lets the image also attend to itself alone in the first blocks ("dual attention", MMDiT-X).
Module names are those of the authors' checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.attention import attention
from unnoise.networks.dit import MLP, FinalLayer, PatchEmbed, modulate
from unnoise.networks.layers import TimestepMLP, position_table, unpatchify, whole_patches
from unnoise.transfer import moved


@dataclass(frozen=True)
class MMDiTConfig:
    """Stable Diffusion 3 medium as it stands. Sizes follow the depth d: width 64 d, d heads (section 4).

    3.5 large: depth 38, qk_norm. 3.5 medium: depth 24, qk_norm, dual_blocks 13, positions 384.
    """

    kind: ClassVar[str] = "mmdit"

    in_channels: int = 16
    patch: int = 2
    width: int = 1536
    depth: int = 24
    heads: int = 24
    context_width: int = 4096  # of text tokens
    pooled_width: int = 2048  # of the pooled text vector
    positions: int = 192  # side of the table of positions, in patches: the largest picture
    qk_norm: bool = False
    dual_blocks: int = 0  # so many blocks, from the first, have dual attention

    def build(self) -> MMDiT:
        return MMDiT(self)


class Attention(nn.Module):
    """Queries, keys and values of one stream; what they are attended with is the block's business."""

    def __init__(self, config: MMDiTConfig, *, pre_only: bool = False):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q, self.ln_k = (nn.RMSNorm(width // self.heads, eps=1e-6) if config.qk_norm else nn.Identity() for _ in range(2))
        self.proj = nn.Identity() if pre_only else nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (b, n, width) each
        return self._per_head(self.ln_q, q), self._per_head(self.ln_k, k), v

    def _per_head(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.unflatten(-1, (self.heads, -1))).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        """Attention of the stream to itself alone."""
        return self.proj(attention(*self.project(x), self.heads))


class Stream(nn.Module):
    """The text's half of a joint block, or the image's: `enter` stands before the attention that both share, `leave` behind it."""

    def __init__(self, config: MMDiTConfig, *, pre_only: bool = False, dual: bool = False):
        super().__init__()
        width = config.width
        self.modulations = 2 if pre_only else 9 if dual else 6
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(config, pre_only=pre_only)
        self.attn2 = Attention(config) if dual else None
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Identity() if pre_only else MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.modulations * width))

    def enter(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
        """(q, k, v) for the joint attention, and the modulations that are left for behind it."""
        shift, scale, *rest = self.adaLN_modulation(c).chunk(self.modulations, dim=-1)
        return self.attn.project(modulate(self.norm1(x), shift, scale)), rest

    def leave(self, x: Tensor, attended: Tensor, rest: list[Tensor]) -> Tensor:
        """x with what it attended to, and the MLP. A pre-only stream has nothing left, and ends here as it came."""
        if not rest:
            return x
        gate1, shift2, scale2, gate2, *dual = rest
        joined = x + gate1[:, None] * self.attn.proj(attended)
        if self.attn2 is not None:
            shift, scale, gate = dual
            joined = joined + gate[:, None] * self.attn2(modulate(self.norm1(x), shift, scale))  # it sees x as the joint attention did
        return joined + gate2[:, None] * self.mlp(modulate(self.norm2(joined), shift2, scale2))


class JointBlock(nn.Module):
    """Figure 2b."""

    def __init__(self, config: MMDiTConfig, *, last: bool, dual: bool):
        super().__init__()
        self.heads = config.heads
        self.context_block = Stream(config, pre_only=last)
        self.x_block = Stream(config, dual=dual)

    def forward(self, text: Tensor, image: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        of_text, text_rest = self.context_block.enter(text, c)
        of_image, image_rest = self.x_block.enter(image, c)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(of_text, of_image, strict=True))
        to_text, to_image = attention(q, k, v, self.heads).split([text.shape[1], image.shape[1]], dim=1)
        return self.context_block.leave(text, to_text, text_rest), self.x_block.leave(image, to_image, image_rest)


class PooledMLP(nn.Module):
    """The pooled text vector, (b, pooled_width) -> (b, width)."""

    def __init__(self, pooled_width: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.mlp(pooled)


class MMDiT(nn.Module):
    """x (b, c, h, w), timestep (b,) of 0 to 1000, Cond with tokens (b, n, context_width) and pooled (b, pooled_width) -> velocity
    eps - x_0 (b, c, h, w).

    h and w are any multiples of the patch up to the table of positions, of which the middle is used (section 5.3.2). The table is a buffer:
    sin-cos here, and the authors' own in their files. Raises ArgumentError for other sizes, missing conditions and layers it lacks.
    """

    pos_embed: Tensor  # (1, positions², width)

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        width, depth = config.width, config.depth
        self.x_embedder = PatchEmbed(config.patch, config.in_channels, width)
        self.t_embedder = TimestepMLP(width)
        self.y_embedder = PooledMLP(config.pooled_width, width)
        self.context_embedder = nn.Linear(config.context_width, width)
        self.register_buffer("pos_embed", position_table(width, config.positions, config.positions)[None])
        self.joint_blocks = nn.ModuleList(JointBlock(config, last=i == depth - 1, dual=i < config.dual_blocks) for i in range(depth))
        self.final_layer = FinalLayer(width, config.patch**2 * config.in_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in DiT: xavier, small embeddings, and zeros where a block must start as the identity."""
        for name, p in self.named_parameters():
            if name.endswith(("bias", "adaLN_modulation.1.weight", "final_layer.linear.weight")):
                nn.init.zeros_(p)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(p, std=0.02)
            elif p.ndim > 1:  # the norms of queries and keys stay at one
                nn.init.xavier_uniform_(p.flatten(1))

    def positions(self, rows: int, cols: int) -> Tensor:
        """The middle of the table, (1, rows*cols, width): a picture's centre has one position, whatever its shape."""
        return middle(self.pos_embed, rows, cols, self.config.patch)

    def embed(self, x: Tensor) -> Tensor:
        """Patches with their positions, (b, rows*cols, width)."""
        whole_patches(x, self.config.patch)
        image = self.x_embedder(x)
        return image + self.positions(x.shape[2] // self.config.patch, x.shape[3] // self.config.patch).to(image)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Cond | None = None,
        *,
        residuals: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Skip-layer guidance (Stable Diffusion 3.5 medium) leaves out blocks: those that `cond.skip` (b, depth) names, with what is added
        behind them. residuals: what ControlNets add behind each block, (b, rows*cols, width) or None; see `runtime/control.py`."""
        cond = Cond() if cond is None else cond
        skip = _skipped(cond, self.config.depth)
        image = self.embed(x)
        text = self.context_embedder(cond.need("tokens", "MMDiT"))
        c = self.t_embedder(t) + self.y_embedder(cond.need("pooled", "MMDiT"))
        for i, (block, added) in enumerate(zip_longest(self.joint_blocks, residuals)):
            left_out = skip[i]
            if left_out is True:
                continue
            before = text, image
            text, image = block(text, image, c)
            image = image if added is None else image + added
            if isinstance(left_out, Tensor):
                text, image = (torch.where(left_out, old, new) for old, new in zip(before, (text, image), strict=True))
        return unpatchify(self.final_layer(image, c), self.config.patch, x.shape[2] // self.config.patch, x.shape[3] // self.config.patch)


def middle(table: Tensor, rows: int, cols: int, patch: int) -> Tensor:
    """Of a square table of positions (1, side², width) the middle, (1, rows*cols, width). Raises ArgumentError beyond its sides."""
    side = math.isqrt(table.shape[1])
    if max(rows, cols) > side:
        raise ArgumentError(f"got x of {rows * patch}x{cols * patch}, expected at most {side * patch} a side: the positions end there")
    top, left = (side - rows) // 2, (side - cols) // 2
    return table.unflatten(1, (side, side))[:, top : top + rows, left : left + cols].flatten(1, 2)


def _skipped(cond: Cond, depth: int) -> list[bool | Tensor]:
    """For each block whether all rows leave it out, or none, or which, (b, 1, 1) on the tokens' device. Raises ArgumentError."""
    if cond.skip is None:
        return [False] * depth
    if cond.skip.shape[1] != depth:
        raise ArgumentError(f"got skip for {cond.skip.shape[1]} blocks: this network has {depth}, expected one column for each")
    rows = moved(cond.skip, cond.need("tokens", "MMDiT").device)[..., None, None]
    return [bool(column.all()) or (bool(column.any()) and rows[:, i]) for i, column in enumerate(cond.skip.unbind(1))]
