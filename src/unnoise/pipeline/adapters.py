"""A model with adapters on: LoRA files and textual inversion, on copies that share the base weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor

from unnoise.checkpoints.adapters import cache
from unnoise.checkpoints.adapters.files import Adapter, apply
from unnoise.checkpoints.adapters.words import Embedding, vectors
from unnoise.checkpoints.adapters.words import read as read_words
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import ArgumentError
from unnoise.networks.tokenizers import Tokenizer
from unnoise.runtime.placement import Networks


@dataclass(frozen=True)
class Adapted:
    """Networks and tokenizers with adapters on; words: vectors of new tokens, by the place of their text encoder."""

    networks: Networks
    tokenizers: dict[str, Tokenizer]
    words: dict[str, Tensor]
    told: tuple[str, ...]


def pairs(given: Any) -> list[tuple[str | Path | Adapter, float]]:
    """What `generate` was given as lora: a file, a pair of file and scale, or a list of either."""
    items = given if isinstance(given, list) else [given]
    found = [item if isinstance(item, tuple) else (item, 1.0) for item in items]
    for item, pair in zip(items, found, strict=True):
        if len(pair) != 2 or not isinstance(pair[0], str | Path | Adapter) or not _scale(pair[1]):
            of = "" if item is given else f" in lora {given!r}"
            raise ArgumentError(f"got {'lora ' if not of else ''}{item!r}{of}: expected a file, a pair (FILE, SCALE), or a list of either")
    return [(file, float(scale)) for file, scale in found]


def _scale(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def put_on(networks: Networks, tokenizers: Mapping[str, Tokenizer], before: Mapping[str, Tensor], given: Any, strict: bool) -> Adapted:
    """Raises FileError for a file of another family, or one with keys that fit nowhere."""
    parts = {place: network for place, network in networks.items() if place not in ("autoencoder", "preview")}
    read = [(one if isinstance(one, Adapter) else cache.read(one, parts, strict=strict), scale) for one, scale in pairs(given)]
    changed = apply(parts, [(adapter, scale) for adapter, scale in read])
    told = tuple(f"{adapter.path}: {', '.join(adapter.kinds)} on {adapter.matched} modules at {scale:g}" for adapter, scale in read)
    new = tuple(word for adapter, _ in read for word in adapter.embeddings)
    return _with_words(networks.replaced(changed), dict(tokenizers), before, new, told)


def learned(
    networks: Networks, tokenizers: Mapping[str, Tokenizer], before: Mapping[str, Tensor], path: str | Path, word: str | None
) -> Adapted:
    """Textual inversion: the words of a file. before: vectors of the words that the model knows already."""
    return _with_words(networks, dict(tokenizers), before, read_words(Weights.open(path), word), ())


def _with_words(
    networks: Networks,
    tokenizers: dict[str, Tokenizer],
    before: Mapping[str, Tensor],
    new: tuple[Embedding, ...],
    told: tuple[str, ...],
) -> Adapted:
    encoders = {place: network for place, network in networks.items() if place.startswith("text_encoder")}
    words = vectors(new, encoders, before) if new else {}
    for place, own in words.items():
        tokenizers[place] = tokenizers[place].with_words(own.ids)
    told = told + tuple(f"the word {embedding.word!r}" for embedding in new)
    return Adapted(networks, tokenizers, {**before, **{place: own.vectors for place, own in words.items()}}, told)
