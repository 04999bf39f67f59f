"""Textual inversion (Gal et al. 2022): the vectors of one new word are trained, and nothing else.

They stand behind the token table and are not part of it, so its rows have no gradient, no moments and no weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unnoise.checkpoints.adapters.words import ENCODERS, Embedding
from unnoise.checkpoints.adapters.words import vectors as word_vectors
from unnoise.checkpoints.store import write
from unnoise.errors import ArgumentError
from unnoise.pipeline.conditionings import CONDITIONINGS
from unnoise.pipeline.model import Model
from unnoise.training import texts
from unnoise.training.trainee import Trainee, Values, denoiser, trained

TABLE = "text_model.embeddings.token_embedding.weight"
KEYS = {place: key for key, place in ENCODERS.items()}  # of a file, for models with two encoders


def words(model: Model, word: str, initializer: str, count: int = 1) -> Trainee:
    """Train `count` vectors of `word` in each of the model's CLIP text encoders; they start as copies of the initializer's.

    A prompt that has the word, such as `trainee.encode(["a photo of <cat>"])`, brings a gradient. The initializer must be one token.
    Parameters are named "place.word". `save` writes {word: (n, width)} for one encoder, {clip_l, clip_g} for two, where the file's name is
    the word. Raises ArgumentError for a model without CLIP, a word that its tokenizer knows, or an initializer of several tokens.
    """
    by_clip = "clip_skip" in CONDITIONINGS[model.spec.conditioning].reads
    places = [place for place in ("text_encoder", "text_encoder_2") if by_clip and place in model.networks]
    if not places:
        raise ArgumentError(f"got {model.spec.name}, which reads no prompts by CLIP: textual inversion needs a CLIP text encoder")
    if count < 1:
        raise ArgumentError(f"got count {count}: expected a whole number of vectors above 0")
    if word in model.tokenizers[places[0]].words:
        raise ArgumentError(f"got the word {word!r}, which this model has learned already: choose another one")
    start = {place: _initial(model, place, initializer).expand(count, -1) for place in places}
    parameters = trained(model, ((f"{place}.{word}", nn.Parameter(rows.clone().float())) for place, rows in start.items()))
    by_place = {place: parameters[f"{place}.{word}"] for place in places}
    encoders = {place: model.networks[place] for place in places}
    numbered = word_vectors([Embedding(word, {KEYS[place]: rows for place, rows in start.items()})], encoders, model.encode.words)
    tokenizers = {**model.tokenizers, **{place: model.tokenizers[place].with_words(new.ids) for place, new in numbered.items()}}

    def vectors() -> Mapping[str, Tensor]:
        """The words that the model knew already keep their ids, so they stand in front."""
        before = model.encode.words
        return {place: torch.cat([before[place].to(new), new]) if place in before else new for place, new in by_place.items()}

    def save(path: Path, values: Values | None = None) -> None:
        found = {place: (values or parameters)[f"{place}.{word}"].detach() for place in places}
        named = {word if len(places) == 1 else KEYS[place]: rows for place, rows in found.items()}
        write.tensors(path, named)

    return Trainee(model, denoiser(model), parameters, save, texts.encoder(model, tokenizers=tokenizers, words=vectors))


def _initial(model: Model, place: str, initializer: str) -> Tensor:
    """The row (1, width) of the initializer in the token table."""
    groups = model.tokenizers[place].groups(initializer)
    ids = [token for group in groups for token in group]
    if len(ids) != 1:
        raise ArgumentError(f"got initializer {initializer!r}, which is {len(ids)} tokens: expected a word that is one, such as 'cat'")
    return model.networks[place].get_parameter(TABLE)[ids[0]][None].detach()
