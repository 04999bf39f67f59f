"""The prompts of benchmarks/prompts, the pictures that answer them, and whether a drawn picture is one of these."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unnoise.data import colours, scenes
from unnoise.data.pictures import Pictures, to_tensor
from unnoise.data.scenes import Placed, Scene
from unnoise.evaluation import nearest

FOLDER = Path(__file__).resolve().parent / "prompts"
OTHER_COLOURS = ("white", "blue", "green", "yellow", "black", "red")


@dataclass(frozen=True)
class Prompt:
    """A prompt, the codes that are accepted for each of its things, the colour of the first one, the background."""

    text: str
    things: tuple[tuple[str, ...], ...]
    colour: str
    background: str

    def accepts(self, codes: Sequence[str]) -> bool:
        """Whether these things, in any order, are those of the prompt."""
        pairs = (zip(order, self.things, strict=True) for order in itertools.permutations(codes))
        return len(codes) == len(self.things) and any(all(code in accepted for code, accepted in pair) for pair in pairs)


@dataclass(frozen=True)
class Answer:
    """A picture that a prompt may lead to: its things by code, the colour that they were painted, its background."""

    codes: tuple[str, ...]
    colour: str
    background: str
    picture: Tensor  # (3, h, w) in -1..1


@dataclass(frozen=True)
class Verdict:
    """Whether the things are right by the trunk, and the colours by 16x16 cells of sRGB among pictures of the right things."""

    text: str
    found: tuple[str, ...]
    things: bool
    colours: bool

    def __bool__(self) -> bool:
        return self.things and self.colours


def read(name: str) -> list[Prompt]:
    """A table of the folder `prompts`."""
    rows = (line.split("\t") for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()[1:])
    return [Prompt(text, tuple(tuple(map(code, thing.split())) for thing in things.split(" + ")), *rest) for text, things, *rest in rows]


def code(text: str) -> str:
    return "-".join(f"{ord(char):x}" for char in text if char != "\ufe0f")


class Gallery:
    """Pictures that prompts may lead to: every training picture, and right and wrong scenes of the prompts."""

    def __init__(self, data: Pictures, codes: list[str], prompts: Sequence[Prompt]):
        self.data, self.places = data, {code: place for place, code in enumerate(codes)}
        plain = (Answer((code,), "", "", picture) for code, picture in zip(codes, data.on_white(), strict=True))
        composed = {scene: None for prompt in prompts for scene in self._scenes(prompt)}
        self.answers = [*plain, *(self._answer(scene, codes) for scene in composed)]

    def _scenes(self, prompt: Prompt) -> Iterator[Scene]:
        """The prompt's scenes, one thing on every ground, and near misses: another number, other colours and backgrounds."""
        first = [self.places[things[0]] for things in prompt.things]
        chosen = [[self.places[code] for code in things[:2]] for things in prompt.things]
        same = len(set(prompt.things)) == 1
        groups = [list(group) for group in itertools.product(*chosen) if not same or len(set(group)) == 1]
        groups += [[one] * number for one in first for number in (1, 2, 3, 4)] if len(first) > 1 else []
        yield from (_scene(first, "", ground, (scenes.STANDING,)) for ground in scenes.GROUNDS if len(first) == 1)
        painted = sorted({"", prompt.colour, *(OTHER_COLOURS if prompt.colour else ())})
        grounds = sorted({"", prompt.background, *(OTHER_COLOURS if prompt.background else ())})
        for group, colour, ground in itertools.product(groups, painted, grounds):
            layouts = [scenes.LAYOUTS[len(group)], *([scenes.STACKED, scenes.WORN] if len(group) == 2 and not same else [])]
            for boxes in layouts if len(group) > 1 or ground else [(scenes.WHOLE,)]:
                yield _scene(group, colour, ground, boxes)
                if len(group) == 2 and not same:
                    yield _scene(group[::-1], colour, ground, boxes)

    def _answer(self, scene: Scene, codes: list[str]) -> Answer:
        picture = to_tensor(scenes.draw(scene, self.data.rgba))
        colour = next((thing.colour for thing in scene.things if thing.colour), "") or ""
        return Answer(tuple(codes[thing.index] for thing in scene.things), colour, scene.ground or "", picture)

    def right(self, prompt: Prompt) -> Tensor:
        """A picture that answers the prompt as it should be answered, (3, h, w)."""
        if len(prompt.things) == 1:
            scene = _scene([self.places[prompt.things[0][0]]], prompt.colour, prompt.background, (scenes.WHOLE,))
            return to_tensor(scenes.draw(scene, self.data.rgba))
        asked = (prompt.colour, prompt.background)
        return next(a.picture for a in self.answers if (a.colour, a.background) == asked and prompt.accepts(a.codes))

    def judge(self, prompts: Sequence[Prompt], drawn: Tensor, features: Tensor, gallery: Tensor) -> list[Verdict]:
        """drawn (n, 3, h, w) with their features, and the features of all answers."""
        found = (features @ gallery.T).argmax(dim=1).tolist()
        return [self._judge(prompt, picture, self.answers[place]) for prompt, picture, place in zip(prompts, drawn, found, strict=True)]

    def _judge(self, prompt: Prompt, picture: Tensor, found: Answer) -> Verdict:
        return Verdict(prompt.text, found.codes, prompt.accepts(found.codes), self._colours(prompt, picture))

    def _colours(self, prompt: Prompt, picture: Tensor) -> bool:
        """Whether, of the pictures of the right things in all colours, the one nearest in 16x16 cells has the prompt's colours."""
        if not prompt.colour and not prompt.background:
            return True
        candidates = self._coloured(prompt)
        cells = nearest.features(torch.stack([answer.picture for answer in candidates]))
        best = candidates[int(torch.cdist(nearest.features(picture[None]), cells).argmin())]
        return best.background == prompt.background and prompt.colour in ("", best.colour)

    def _coloured(self, prompt: Prompt) -> list[Answer]:
        """The accepted things in every colour (a picture as it is has the colour that it comes nearest to) on every background."""
        found = []
        for name in prompt.things[0]:
            place = self.places[name]
            for colour in ("", *colours.COLOURS) if prompt.colour else ("",):
                seen = colour or natural(self.data.rgba[place])
                for ground in ("", *colours.COLOURS) if prompt.background else ("",):
                    scene = _scene([place], colour, ground, (scenes.INSIDE if ground else scenes.WHOLE,))
                    found.append(Answer((name,), seen, ground, to_tensor(scenes.draw(scene, self.data.rgba))))
        return found


def natural(rgba: np.ndarray) -> str:
    """The name of the colour nearest to a picture's main one, in sRGB."""
    unit = rgba / np.float32(255)
    main = colours.main_colour(unit[..., :3][unit[..., 3] > 0.5])
    return min(colours.COLOURS, key=lambda name: float(((np.array(colours.COLOURS[name].rgb) - main) ** 2).sum()))


def _scene(group: list[int], colour: str, ground: str, boxes: Sequence[tuple[int, int, int]]) -> Scene:
    """`colour` paints every thing where they are the same, else the first."""
    painted = [colour if i == 0 or len(set(group)) == 1 else "" for i in range(len(group))]
    if ground and boxes == (scenes.WHOLE,):
        boxes = (scenes.INSIDE,)
    return Scene(tuple(Placed(place, c or None, box) for place, c, box in zip(group, painted, boxes, strict=True)), ground or None)
