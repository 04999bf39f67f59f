"""The data source "emoji-scenes": the pictures of the built-in set with captions as people speak, and scenes composed of them on the fly.

A batch is a pure function of (seed, step), as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unnoise.data import emoji, scenes, words
from unnoise.data.compose import Composer
from unnoise.data.pictures import Pictures, shuffled, to_tensor
from unnoise.errors import DataError

LEARNT = 60_000  # captions that a tokenizer is learnt from


def composer(excluded: frozenset[str] = frozenset()) -> Composer:
    """The composer of the built-in set. Raises MissingExtra."""
    return Composer(words.things(emoji.entries()), excluded)


def prompts(file: Path) -> list[str]:
    """The first column of a table of prompts, without its head. Raises DataError."""
    if not file.is_file():
        raise DataError(f"no prompts at {file}: expected a table whose first column holds captions to exclude")
    return [line.split("\t")[0] for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def excluding(files: tuple[Path, ...]) -> frozenset[str]:
    """Every prompt of these tables, in lower case."""
    return frozenset(prompt.lower() for file in files for prompt in prompts(file))


@dataclass(frozen=True)
class SceneBatches:
    """Batches of a run: whole shuffled passes over the pictures, of which a share gives way to a scene."""

    pictures: Pictures
    compose: Composer
    size: int
    seed: int

    def __call__(self, step: int) -> tuple[Tensor, list[str]]:
        """Pictures (size, 3, h, w) in -1..1 and their captions, for this step."""
        random = np.random.default_rng([self.seed, step])
        drawn = [self.compose(index, random) for index in shuffled(len(self.pictures), self.size, self.seed, step)]
        return torch.stack([to_tensor(scenes.draw(scene, self.pictures.rgba)) for scene, _ in drawn]), [caption for _, caption in drawn]


def vocabulary(compose: Composer) -> Iterator[str]:
    """Captions that a tokenizer is learnt from: every name and keyword, then composed ones in their own proportion."""
    for thing in compose.things:
        for named in thing.words.values():
            yield from (*named.names, *named.nouns * 5, *named.hints, *(word for word, _ in named.keywords))
    random = np.random.default_rng(0)
    for number in range(LEARNT):
        yield compose(number % len(compose.things), random)[1]
