"""The encoder of T5 v1.1 (Raffel et al. 2020; v1.1: gated GELU of Shazeer 2020): the third text encoder of Stable Diffusion 3.

    bias = table[bucket(j - i)]                     (1, heads, n, n), of the first layer, added to every layer's logits
    layer:  x += o(softmax(q kᵀ + bias) v)          no division by the root of d: it is in the weights
            x += wo(gelu(wi_0 x) * wi_1 x)          each behind a root-mean-square norm
    out  = norm(x)

Parameter names are those of the published `text_encoder_3` folders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.networks.attention import attention


@dataclass(frozen=True)
class T5Config:
    """Defaults: T5 v1.1 XXL (4,762,310,656 parameters)."""

    kind: ClassVar[str] = "t5"

    vocab: int = 32128  # rows of the table; the tokenizer uses 32,100
    width: int = 4096
    layers: int = 24
    heads: int = 64
    head_width: int = 64  # heads * head_width may differ from width
    mlp: int = 10240
    buckets: int = 32
    max_distance: int = 128  # in tokens; all that is farther shares a bucket

    def build(self) -> T5Encoder:
        return T5Encoder(self)


class RMSNorm(nn.Module):
    """x / √(mean x² + 1e-6) * weight: no mean is taken off; in float32 whatever the weights are."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(self.weight.dtype)


def buckets(n: int, count: int, max_distance: int, device: torch.device | None = None) -> Tensor:
    """The bucket of every pair (i, j) of n positions: (n, n) int64.

    Half of the `count` buckets are for j > i. In each half the first half is one bucket a distance, the others grow with its logarithm.
    """
    place = torch.arange(n, device=device)
    offset = place[None] - place[:, None]  # j - i
    half, exact = count // 2, count // 4
    distance = offset.abs()
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class SelfAttention(nn.Module):
    def __init__(self, config: T5Config, *, biased: bool):
        super().__init__()
        self.config = config
        inner = config.heads * config.head_width
        self.q, self.k, self.v = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.width, bias=False)
        if biased:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def bias(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the first block adds to the logits, (1 or b, heads, n, n), for the others too."""
        pairs = buckets(x.shape[1], self.config.buckets, self.config.max_distance, x.device)
        bias = self.relative_attention_bias(pairs).permute(2, 0, 1)[None]
        bias = bias if mask is None else bias.masked_fill(~mask.bool()[:, None, None], torch.finfo(bias.dtype).min)
        return bias.to(x.dtype)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.o(attention(self.q(x), self.k(x), self.v(x), self.config.heads, mask=bias, scale=1.0))


class AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, *, biased: bool):
        super().__init__()
        self.SelfAttention = SelfAttention(config, biased=biased)
        self.layer_norm = RMSNorm(config.width)

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = self.SelfAttention.bias(x, mask) if bias is None else bias
        return x + self.SelfAttention(self.layer_norm(x), bias), bias


class GatedMLP(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.width, config.mlp, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        if h.dtype == torch.float16:  # in XXL what comes out exceeds 65,504
            return F.linear(h.float(), self.wo.weight.float())
        return self.wo(h)


class MLPLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = GatedMLP(config)
        self.layer_norm = RMSNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """x, mask and the bias, None in the first block, which makes it -> x and the bias for the next one."""

    def __init__(self, config: T5Config, *, biased: bool):
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, biased=biased), MLPLayer(config)])

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        attend, mlp = self.layer
        attended: tuple[Tensor, Tensor] = attend(x, mask, bias)
        return mlp(attended[0]), attended[1]


class Stack(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.block: Any = nn.ModuleList(Block(config, biased=i == 0) for i in range(config.layers))
        self.final_layer_norm = RMSNorm(config.width)


class T5Encoder(nn.Module):
    """ids (b, n) -> (b, n, width), behind the final norm."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab, config.width)
        self.encoder = Stack(config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (b, n): true or 1 where a token may be attended to.

        Stable Diffusion 3 gives none, so that padding is attended to; PixArt and others give one.
        """
        x, bias = self.shared(ids), None
        for block in self.encoder.block:
            x, bias = block(x, mask, bias)
        return self.encoder.final_layer_norm(x)
