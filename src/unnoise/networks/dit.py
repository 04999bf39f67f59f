"""The diffusion transformer of Peebles & Xie (2023): patches in, adaLN-Zero blocks, patches out.

    tokens = patchify(x) + positions
    c      = embed(t) + embed(label) + embed(pooled text)
    block:   tokens += gate * attention(scale * norm(tokens) + shift);  the same with an MLP;  six modulations from c
    out    = unpatchify(linear(scale * norm(tokens) + shift))

Text may also join as extra tokens behind the patches (the paper's "in-context conditioning"); they are dropped before the output.
Module names are those of the authors' checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.networks.attention import attention
from unnoise.networks.layers import TimestepMLP, position_table, unpatchify, whole_patches


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the paper: S 384x12, B 768x12, L 1024x24, XL 1152x28 (width x depth), 64 to 72 channels a head."""

    kind: ClassVar[str] = "dit"

    in_channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    num_classes: int = 0  # 0: no labels; else one more row stands for "no class"
    learn_sigma: bool = True  # twice the channels out: the second half is the variance
    context_width: int = 0  # width of text tokens; 0: none
    pooled_width: int = 0  # width of the pooled text vector; 0: none

    def build(self) -> DiT:
        return DiT(self)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attention(q, k, v, self.heads))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (b, n, width)


class LabelEmbed(nn.Module):
    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class DiT(nn.Module):
    """x (b, c, h, w), timestep (b,), Cond -> (b, c or 2c, h, w). Positions are computed, so h and w are any multiples of the patch;
    the frozen `pos_embed` of the authors' files is this table."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        width, out = config.width, config.in_channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed(config.patch, config.in_channels, width)
        self.t_embedder = TimestepMLP(width)
        self.y_embedder = LabelEmbed(config.num_classes, width) if config.num_classes else None
        self.pooled_embedder = nn.Linear(config.pooled_width, width) if config.pooled_width else None
        self.context_embedder = nn.Linear(config.context_width, width) if config.context_width else None
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch**2 * out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: xavier, small embeddings, and zeros where a block must start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.x_embedder.proj.bias))
        embeddings = [self.t_embedder.mlp[0], self.t_embedder.mlp[2], *([self.y_embedder.embedding_table] if self.y_embedder else [])]
        for module in embeddings:
            nn.init.normal_(module.weight, std=0.02)
        for module in [
            *(cast(Block, block).adaLN_modulation[-1] for block in self.blocks),
            self.final_layer.adaLN_modulation[-1],
            self.final_layer.linear,
        ]:
            nn.init.zeros_(module.weight)

    def condition(self, t: Tensor, cond: Cond) -> Tensor:
        """The vector c (b, width) that modulates every block."""
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond.need("labels", "DiT"))
        if self.pooled_embedder is not None:
            c = c + self.pooled_embedder(cond.need("pooled", "DiT"))
        return c

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        cond = Cond() if cond is None else cond
        whole_patches(x, self.config.patch)
        rows, cols = x.shape[2] // self.config.patch, x.shape[3] // self.config.patch
        tokens = self.x_embedder(x)
        tokens = tokens + position_table(self.config.width, rows, cols, x.device).to(tokens)
        if self.context_embedder is not None:
            tokens = torch.cat([tokens, self.context_embedder(cond.need("tokens", "DiT"))], dim=1)
        c = self.condition(t, cond)
        for block in self.blocks:
            tokens = block(tokens, c)
        tokens = self.final_layer(tokens[:, : rows * cols], c)
        return unpatchify(tokens, self.config.patch, rows, cols)
