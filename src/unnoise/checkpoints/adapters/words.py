"""Textual inversion (Gal et al. 2022): files of new words, each one or several vectors for a model's text encoders.

    {"<word>": (w,) or (n, w)}                        diffusers' learned_embeds, several words a file
    {"emb_params": (n, w)}                            AUTOMATIC1111; the word is the file's name
    {"clip_l": (n, 768), "clip_g": (n, 1280)}         SDXL and Stable Diffusion 3; the word is the file's name
    {"bundle_emb.<word>.string_to_param.*": (n, w)}   words inside an adapter's file; cloneofsimo has them as "<word>" there

A word stands for as many ids as it has vectors, those behind the vocabulary: `Tokenizer.with_words` knows the ids, and the text encoder is
called with the vectors as `words`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError

ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's second encoder"}
UNNAMED = ("*", "emb_params", "string_to_param", "string_to_param.*", "embedding", "embeddings")


@dataclass(frozen=True)
class Embedding:
    """A word. By text encoder ("clip_l", ...), or under "" where the file leaves it to the width: vectors (n, width)."""

    word: str
    vectors: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        """Ids that the word takes."""
        return next(iter(self.vectors.values())).shape[0]


class Words(NamedTuple):
    """New words for one text encoder."""

    ids: dict[str, list[int]]  # what `Tokenizer.with_words` takes
    vectors: Tensor  # (m, width): what the text encoder takes as `words`; its row i is the id vocabulary + i


def read(weights: Weights, word: str | None = None) -> tuple[Embedding, ...]:
    """The words of a file. word: another name for the only one. Raises FileError."""
    found = _words(weights, list(weights), Path(weights.path).stem)
    left = set(weights) - {key for keys in found.values() for key in keys.values()}
    if left or not found:
        known = "expected one tensor of vectors (n, width) a word, emb_params, or clip_l and clip_g"
        raise FileError(f"{weights.path} is no file of textual inversion: {f'got {min(left)}, ' if left else ''}{known}")
    if word is not None and len(found) > 1:
        raise FileError(f"{weights.path} has {len(found)} words, {', '.join(list(found)[:3])}: one name cannot stand for all")
    return tuple(Embedding(word or name, _vectors(weights, keys)) for name, keys in found.items())


def bundled(weights: Weights, keys: Iterable[str]) -> tuple[tuple[Embedding, ...], list[str]]:
    """The words that an adapter's file brings with it, among `keys`; and the keys that are no words."""
    keys = list(keys)
    own = [key for key in keys if key.startswith("bundle_emb.") or weights.metadata.get(key) == "<embed>"]
    found = _words(weights, own, "")
    taken = {key for parts in found.values() for key in parts.values()}
    words = tuple(Embedding(name, _vectors(weights, parts)) for name, parts in found.items())
    return words, [key for key in keys if key not in taken]


def _words(weights: Weights, keys: Sequence[str], stem: str) -> dict[str, dict[str, str]]:
    """{word: {encoder, or "": key}} of those keys that are vectors."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        bundle = re.match(r"^bundle_emb\.(.+?)\.(string_to_param\.\*|emb_params|clip_l|clip_g|t5xxl)$", key)
        word, part = (bundle[1], bundle[2]) if bundle else (stem, key)
        if part in ENCODERS:
            found.setdefault(word, {})[part] = key
        elif 1 <= len(weights.shapes[key]) <= 2 and weights.dtypes[key].is_floating_point:
            found[word if bundle or part in UNNAMED else key] = {"": key}
    return found


def _vectors(weights: Weights, keys: Mapping[str, str]) -> dict[str, Tensor]:
    found = {encoder: weights.read(key) for encoder, key in keys.items()}
    vectors = {encoder: tensor[None] if tensor.ndim == 1 else tensor for encoder, tensor in found.items()}
    if any(not torch.isfinite(tensor).all() for tensor in vectors.values()):
        raise FileError(f"{weights.path}: {', '.join(keys.values())} holds NaN or infinity: the file is broken, train or download it again")
    if len({len(tensor) for tensor in vectors.values()}) > 1:
        raise FileError(f"{weights.path} has unlike numbers of vectors for its encoders: {[tuple(t.shape) for t in vectors.values()]}")
    return vectors


def vectors(
    embeddings: Sequence[Embedding], encoders: Mapping[str, nn.Module], before: Mapping[str, Tensor] | None = None
) -> dict[str, Words]:
    """For each text encoder at hand, by place: ids for its tokenizer and vectors for its forward.

    before: vectors of earlier words, which come first and keep their ids.
    T5, of which few files know, reads the word as it is written. Raises FileError for vectors of a width that the model does not have,
    which names the family that has it, and for a word that stands there twice.
    """
    names = [embedding.word for embedding in embeddings]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FileError(f"two embeddings are called {twice!r}: read one of them with another word")
    rows: dict[str, list[tuple[str, Tensor]]] = {}
    for embedding in embeddings:
        for place, vectors in _placed(embedding, encoders).items():
            rows.setdefault(place, []).append((embedding.word, vectors))
    return {place: _numbered(own, _table(encoders[place]), (before or {}).get(place)) for place, own in rows.items()}


def _numbered(rows: Sequence[tuple[str, Tensor]], table: Tensor, before: Tensor | None) -> Words:
    earlier = table[:0] if before is None else before
    ids, first = {}, len(table) + len(earlier)
    for word, vectors in rows:
        ids[word] = list(range(first, first + len(vectors)))
        first += len(vectors)
    return Words(ids, torch.cat([earlier.to(table), *(vectors.to(table) for _, vectors in rows)]).detach())


def _placed(embedding: Embedding, encoders: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    clips = {place: _table(encoder).shape[1] for place, encoder in encoders.items() if place != "text_encoder_3"}
    named = {ENCODERS[name]: vectors for name, vectors in embedding.vectors.items() if name}
    if not named:  # one tensor is for the one encoder of a model; those of more have a tensor for each
        named = dict.fromkeys(clips, embedding.vectors[""])
    placed = {place: vectors for place, vectors in named.items() if place in encoders}
    for place, width in clips.items():
        if place not in placed or placed[place].shape[1] != width:
            raise FileError(_refusal(embedding, clips))
    return placed


def _refusal(embedding: Embedding, clips: Mapping[str, int]) -> str:
    widths = [vectors.shape[1] for vectors in embedding.vectors.values()]
    known = "SDXL or Stable Diffusion 3" if len(widths) > 1 else WIDTHS.get(widths[0], "")
    family = f" ({known})" if known else ""
    expected = " and ".join(map(str, clips.values()))
    got = " and ".join(map(str, widths))
    own = f"this model's text encoders take {expected}"
    return f"the embedding {embedding.word!r} has vectors of width {got}{family}, and {own}: use one that was trained for it"


def _table(encoder: nn.Module) -> Tensor:
    """The token table, which is every text encoder's first."""
    table = next((module for module in encoder.modules() if isinstance(module, nn.Embedding)), None)
    if table is None:
        raise FileError(f"got a {type(encoder).__name__} as text encoder, expected one with a table of tokens")
    return table.weight
