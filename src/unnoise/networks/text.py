"""The CLIP text encoder (Radford et al. 2021): a causal transformer over tokens, read out at the end-of-text token.

Module names are those of the published `text_encoder` folders. The same class carries CLIP ViT-L, OpenCLIP H and bigG, and the small
encoder of the built-in model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.attention import attention


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class CLIPTextConfig:
    """Defaults: the text tower of CLIP ViT-L/14 (123,060,480 parameters)."""

    kind: ClassVar[str] = "clip"

    vocab: int = 49408
    length: int = 77  # positions
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: str = "quick_gelu"
    projection: int = 0  # width of the projected pooled vector; 0: none
    end_token: int = 49407

    def build(self) -> CLIPTextEncoder:
        return CLIPTextEncoder(self)


class TextStates(NamedTuple):
    hidden: list[Tensor]  # layers + 1 of (b, n, width): the embeddings, then after each layer, before the final norm
    last: Tensor  # (b, n, width) after the final norm
    pooled: Tensor  # (b, width): `last` at the first end token
    projected: Tensor | None  # (b, projection)
    context: Tensor  # (b, n, width): the token states that a denoiser reads, as `skip` and `norm` of the call say


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=self.causal))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, activation: str, *, causal: bool, eps: float):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = SelfAttention(width, heads, causal=causal)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The transformer of either of CLIP's towers. Only the text's is causal: a token sees those before it."""

    def __init__(self, layers: int, width: int, heads: int, inner: int, activation: str, *, causal: bool, eps: float = 1e-5):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, inner, activation, causal=causal, eps=eps) for _ in range(layers))


class Embeddings(nn.Module):
    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.length, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, ids: Tensor, words: Tensor | None = None) -> Tensor:
        size, places = self.token_embedding.num_embeddings, self.position_embedding.num_embeddings
        if ids.shape[1] > places:
            raise ArgumentError(f"got {ids.shape[1]} tokens in a row, expected at most {places}: cut the text into chunks")
        x = self.token_embedding(ids if words is None else ids.clamp(max=size - 1))
        if words is not None:  # as if the words stood below the table, without a copy of it
            rows = words.to(x)[(ids - size).clamp(min=0)]
            x = torch.where((ids >= size)[..., None], rows, x)
        return x + self.position_embedding(torch.arange(ids.shape[1], device=ids.device))


class TextModel(nn.Module):
    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config.layers, config.width, config.heads, config.mlp, config.activation, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.width)


class CLIPTextEncoder(nn.Module):
    """ids (b, n) -> TextStates.

    words (m, width): vectors of textual inversion (Gal et al. 2022). Ids from `vocab` on mean them, as if they were further rows of the
    token table; `Tokenizer.with_words` gives such ids.

    skip: the context is so many layers below the last; norm: whether it passes the final norm. Stable Diffusion 1: skip 0, and `clip_skip`
    of a request is this skip, with the final norm. 2: skip 1 of 24 layers, with the norm (diffusers' folders keep 23 layers: skip 0). SDXL
    and 3: skip 1 without the norm, and clip_skip comes on top. Raises ArgumentError for layers that are not there.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, ids: Tensor, words: Tensor | None = None, *, skip: int = 0, norm: bool = True) -> TextStates:
        if not 0 <= skip <= self.config.layers:
            raise ArgumentError(f"got clip_skip {skip}: expected 0 to {self.config.layers}, the layers of this text encoder")
        hidden = [self.text_model.embeddings(ids, words)]
        for layer in self.text_model.encoder.layers:
            hidden.append(layer(hidden[-1]))
        last = self.text_model.final_layer_norm(hidden[-1])
        end = (ids == self.config.end_token).int().argmax(dim=1)  # the first end token: later ones are padding
        pooled = last[torch.arange(len(ids), device=ids.device), end]
        projected = self.text_projection(pooled) if self.text_projection else None
        context = hidden[-1 - skip]
        if norm:
            context = self.text_model.final_layer_norm(context) if skip else last
        return TextStates(hidden, last, pooled, projected, context)
