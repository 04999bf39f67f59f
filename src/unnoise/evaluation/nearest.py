"""Whether a model draws what a caption says: the training picture nearest to its result should be the caption's own, or share its noun.

The feature space: the picture over white, averaged to 16x16 cells of sRGB values in -1..1; distances are Euclidean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unnoise.data import colours
from unnoise.data.pictures import Pictures, to_tensor
from unnoise.pipeline.model import Model

CELLS = 16


@dataclass(frozen=True)
class Match:
    """What one caption led to."""

    caption: str
    found: str  # the caption of the nearest training picture
    own: bool
    noun: bool  # own, or the same noun

    def __bool__(self) -> bool:
        return self.noun


def features(pictures: Tensor) -> Tensor:
    """(n, 3, h, w) in -1..1 -> (n, 768)."""
    return F.adaptive_avg_pool2d(pictures.float().clamp(-1, 1), CELLS).flatten(1)


def noun(caption: str) -> str:
    """The last word, in both languages the thing itself; of a flag its country, so that not every flag equals every other."""
    if caption.startswith("flag of "):
        return caption.removeprefix("flag of ")
    if caption.startswith("깃발 "):
        return caption.removeprefix("깃발 ")
    return caption.split(" (")[0].split(" ")[-1]


def agreement(model: Model, pictures: Pictures, language: str, count: int, *, seed: int = 0, steps: int | None = None) -> list[Match]:
    """Draw `count` captions of the data set, evenly spread over it, and look up the training picture nearest to each result."""
    chosen = np.linspace(0, len(pictures) - 1, count).round().astype(int)
    names = [captions[language][0] for captions in pictures.captions]
    drawn = draw(model, [names[i] for i in chosen], seed=seed, steps=steps)
    nearest = torch.cdist(features(drawn), features(pictures.on_white())).argmin(dim=1).tolist()
    return [_match(names, int(i), found) for i, found in zip(chosen, nearest, strict=True)]


def chance(pictures: Pictures, language: str, count: int, *, seed: int = 0) -> float:
    """The share that a model would reach by drawing training pictures at random."""
    random = np.random.default_rng(seed)
    names = [captions[language][0] for captions in pictures.captions]
    pairs = random.integers(0, len(names), (100 * count, 2)).tolist()
    return sum(bool(_match(names, i, j)) for i, j in pairs) / len(pairs)


def _match(names: list[str], own: int, found: int) -> Match:
    return Match(names[own], names[found], own == found, own == found or noun(names[own]) == noun(names[found]))


@dataclass(frozen=True)
class Composition:
    """What a caption of a colour and a thing led to, among all training pictures painted in all colours."""

    caption: str
    colour: str
    thing: str  # the caption of the nearest picture
    right: bool


def composition(model: Model, pictures: Pictures, wanted: dict[str, tuple[str, str]], *, seed: int = 0) -> list[Composition]:
    """`wanted` maps a caption to (colour, noun in English), such as "파란 자동차" to ("blue", "car")."""
    painted = painted_features(pictures)  # (n, colours, 768)
    drawn = features(draw(model, list(wanted), seed=seed))
    found = torch.cdist(drawn, painted.flatten(0, 1)).argmin(dim=1).tolist()
    rows = []
    for (caption, (colour, thing)), place in zip(wanted.items(), found, strict=True):
        index, painted_as = divmod(place, len(colours.COLOURS))
        names = pictures.captions[index]["en"]
        seen = list(colours.COLOURS)[painted_as]
        rows.append(Composition(caption, seen, names[0], seen == colour and any(thing in name.split() for name in names)))
    return rows


def painted_features(pictures: Pictures) -> Tensor:
    """Every picture in every colour; (n, colours, 768)."""
    rows = []
    for picture in pictures.rgba:
        unit = picture / np.float32(255)
        rows.append(features(torch.stack([to_tensor(colours.repaint(unit, colour)) for colour in colours.COLOURS.values()])))
    return torch.stack(rows)


def draw(model: Model, captions: list[str], *, seed: int = 0, steps: int | None = None) -> Tensor:
    """One picture a caption, (n, 3, h, w) in -1..1."""
    return model.generate(captions, seed=seed, num_inference_steps=steps).latents.cpu()
