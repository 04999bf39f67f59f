"""The text encoder of LDM's text-to-image model (Rombach et al. 2022, section 4.3.1): a transformer trained with it from the start.

It only has BERT's vocabulary: layer norms stand before the branches (pre-norm), and padding is attended to like any token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.networks.attention import attention


@dataclass(frozen=True)
class BertConfig:
    """Defaults: the encoder of the 1.4B text-to-image model (542,895,360 parameters)."""

    kind: ClassVar[str] = "bert"

    vocab: int = 30522
    length: int = 77  # positions
    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_width: int = 64  # 8 x 64 is less than the width
    mlp: int = 5120

    def build(self) -> BertEncoder:
        return BertEncoder(self)


class SelfAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class Layer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = SelfAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class BertEncoder(nn.Module):
    """ids (b, n) -> (b, n, width)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.embed_positions = nn.Embedding(config.length, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width)
        for embedding in (self.embed_tokens, self.embed_positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids) + self.embed_positions(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)
