"""The text encoders of a model with their tokenizers, and the rows of conditions that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError, NonFiniteError
from unnoise.families.spec import ModelSpec
from unnoise.networks.text import TextStates
from unnoise.networks.tokenizers import Tokenizer
from unnoise.pipeline import prompts
from unnoise.pipeline.prompts import Piece
from unnoise.runtime.placement import Networks


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told beside the text, in pixels: (height, width), (top, left), (height, width); the refiner is told a score instead."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    aesthetic_score: float = 6.0


@dataclass(frozen=True)
class Caption:
    """One side of one picture in words, numbers and a label. text None: no prompt at all, which SDXL answers with zeros."""

    text: str | None
    height: int
    width: int
    sizes: Sizes
    label: int | None = None
    clip_skip: int = 0
    weights: bool = True  # whether (x:1.2) is a weight or text
    t5_length: int | None = None

    def pieces(self) -> list[Piece]:
        """Return the text with its weights; without them brackets are text."""
        text = self.text or ""
        return prompts.parse(text) if self.weights else [Piece(text, 1.0)]


@dataclass(frozen=True)
class Encoder:
    """Makes captions into conditions, one row each, by the function of the model's conditioning."""

    spec: ModelSpec
    networks: Networks
    tokenizers: Mapping[str, Tokenizer]
    row: Callable[[Encoder, Caption], Cond]  # see `conditionings.py`
    words: Mapping[str, Tensor] = field(default_factory=dict)  # vectors of learned words, by place

    def __call__(self, captions: Sequence[Caption]) -> Cond:
        """Encode captions one by one, so that a row is the same to the last bit in any batch. Raises NonFiniteError."""
        made = {caption: self.row(self, caption) for caption in dict.fromkeys(captions)}
        for row in made.values():
            if any(value is not None and not bool(torch.isfinite(value).all()) for value in (row.tokens, row.pooled)):
                raise NonFiniteError("text encoder: the states of the prompt are not finite")
        return Cond.stack([made[caption] for caption in captions])

    @property
    def device(self) -> torch.device:
        return self.networks.placement.device

    @property
    def dtype(self) -> torch.dtype:
        return self.networks.placement.dtype

    def has(self, place: str) -> bool:
        return place in self.networks

    def need(self, place: str) -> nn.Module:
        """Return a text encoder that the model cannot do without. Raises ArgumentError where the file had none."""
        if place not in self.networks:
            raise ArgumentError(f"this {self.spec.name} has no {place}: load it with parts={{{place!r}: FILE}}")
        return self.networks[place]

    def states(self, place: str, caption: Caption, skip: int, *, norm: bool = True) -> tuple[Tensor, TextStates]:
        """Return the context `skip` layers below the last, weighted, all chunks in one row (1, k n, width); and the chunks' states."""
        self.need(place)
        chunks = prompts.chunk(caption.pieces(), self.tokenizers[place])
        with self.networks.on(place) as encoder:
            states = encoder(chunks.ids.to(self.device), self.words.get(place), skip=skip, norm=norm)
        return prompts.weighted(states.context, chunks.weights.to(self.device)).flatten(0, 1)[None], states
