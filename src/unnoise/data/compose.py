"""Composes captions as people write them, each with the scene that it describes: one thing, several, two side by side or stacked,
colours and backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from unnoise.data import colours, phrases, scenes
from unnoise.data.scenes import Placed, Scene
from unnoise.data.words import Thing

T = TypeVar("T")
SHARES = {"single": 0.44, "painted": 0.12, "count": 0.13, "pair": 0.13, "stacked": 0.05, "worn": 0.03, "trio": 0.02, "placed": 0.08}
GROUND = 0.15  # share of these that stand on a background of one colour, `placed` and most single things aside
PAINTED = 0.2  # share of the things in scenes that get another colour and its word
HATS = ("1f3a9", "1f452", "1f9e2", "1f451", "1f393")
WEARERS = ("animal-mammal", "animal-bird", "face", "cat", "monkey", "person")  # kinds
TRIES = 20


@dataclass(frozen=True)
class Part:
    """A thing that a caption names: its number, its noun in the caption's language, its colour if it was painted."""

    index: int
    noun: str
    colour: str | None = None


@dataclass(frozen=True)
class Composer:
    """Calls give a scene and its caption. `excluded`: captions that are never given, in lower case."""

    things: Sequence[Thing]
    excluded: frozenset[str] = frozenset()

    @cached_property
    def common(self) -> list[int]:
        return [index for index, thing in enumerate(self.things) if thing.common]

    @cached_property
    def hats(self) -> list[int]:
        return [index for index in self.common if self.things[index].code in HATS]

    @cached_property
    def wearers(self) -> list[int]:
        """Animals and people, which may wear a hat."""
        return [
            i for i in self.common if self.things[i].kind.startswith(("animal-mammal", "animal-bird", "face", "cat", "monkey", "person"))
        ]

    def __call__(self, index: int, random: np.random.Generator) -> tuple[Scene, str]:
        """A scene with its caption in either language; a caption about one thing is about the thing `index`.

        Raises RuntimeError where every caption drawn is excluded, which takes a list of nearly all of them.
        """
        for _ in range(TRIES):
            language = _pick(colours.LANGUAGES, random)
            scene, caption = self._compose(index, language, random)
            if caption.lower() not in self.excluded:
                return scene, caption
        raise RuntimeError(f"{TRIES} captions of {self.things[index].code} were all excluded")

    def _compose(self, index: int, language: str, random: np.random.Generator) -> tuple[Scene, str]:
        kind = str(random.choice(list(SHARES), p=list(SHARES.values())))
        if kind == "single" or (kind == "painted" and "flag" in self.things[index].kind):
            return self._single(index, language, random)
        if kind == "painted":
            return self._painted(index, language, random)
        if kind == "placed":
            return self._placed(language, random)
        placed, caption = getattr(self, f"_{kind}")(language, random)
        return _on_colour(placed, caption, language, random)

    def _single(self, index: int, language: str, random: np.random.Generator) -> tuple[Scene, str]:
        words, place = self.things[index].words[language], random.random()
        if place < 0.2 and words.keywords:
            weights = np.array([weight for _, weight in words.keywords])
            name = words.keywords[int(random.choice(len(weights), p=weights / weights.sum()))][0]
        elif words.nouns and place < 0.55:
            name = _pick(words.nouns, random)
        else:
            name = words.names[0] if place < 0.8 else _pick(words.names, random)
        if random.random() < 0.12:
            name = self._with_hint(name, index, language, random)
        if random.random() < 0.12:
            name = f"{_pick(phrases.forms('adjective', language), random)} {name}"
        kind = "clause" if random.random() < 0.2 else "single"
        return Scene((Placed(index, None, scenes.WHOLE),)), phrases.single(_pick(phrases.forms(kind, language), random), name)

    def _with_hint(self, name: str, index: int, language: str, random: np.random.Generator) -> str:
        """The name with another word of the same thing before or behind it: "cat animal"."""
        words = self.things[index].words[language]
        hints = [word for word in (*words.hints, *(word for word, _ in words.keywords)) if word != name]
        if not hints:
            return name
        hint = _pick(hints, random)
        return f"{name} {hint}" if random.random() < 0.5 else f"{hint} {name}"

    def _painted(self, index: int, language: str, random: np.random.Generator) -> tuple[Scene, str]:
        part = self._part(index, language, random, painted=1.0)
        placed = (Placed(index, part.colour, scenes.WHOLE),)
        kind = "clause" if random.random() < 0.1 else "single"
        caption = phrases.single(_pick(phrases.forms(kind, language), random), part.noun)
        return _on_colour(placed, caption, language, random)

    def _placed(self, language: str, random: np.random.Generator) -> tuple[Scene, str]:
        ground = _pick(tuple(scenes.GROUNDS), random)
        part = self._any(language, random)
        box = scenes.INSIDE if ground in ("sky", "night") else scenes.STANDING
        caption = _pick(phrases.forms(ground, language), random).format(_article(part.noun, language, random))
        return Scene((Placed(part.index, part.colour, box),), ground), caption

    def _count(self, language: str, random: np.random.Generator) -> tuple[tuple[Placed, ...], str]:
        number = int(random.choice([2, 3, 4], p=[0.5, 0.3, 0.2]))
        part = self._any(language, random)
        placed = tuple(Placed(part.index, part.colour, box) for box in scenes.LAYOUTS[number])
        word = phrases.NUMBERS[language][number][int(random.random() < 0.2)]
        if language == "en":
            return placed, f"{word} {phrases.plural(part.noun)}"
        counter, space = self.things[part.index].counter, "" if word.isdigit() else " "
        turned = random.random() < 0.25
        return placed, f"{word}{space}{counter}의 {part.noun}" if turned else f"{part.noun} {word}{space}{counter}"

    def _pair(self, language: str, random: np.random.Generator) -> tuple[tuple[Placed, ...], str]:
        a, b = self._any(language, random), self._any(language, random)
        placed = _placing((a, b), scenes.LAYOUTS[2])
        if language == "en":
            bare = random.random() < 0.25
            first, second = (part.noun if bare else phrases.with_article(part.noun) for part in (a, b))
            return placed, _pick(phrases.forms("and", "en"), random).format(a=first, b=second)
        return placed, f"{_with_and(a.noun, random)} {b.noun}"

    def _stacked(self, language: str, random: np.random.Generator) -> tuple[tuple[Placed, ...], str]:
        a, b = self._any(language, random), self._any(language, random)
        kind = "above" if random.random() < 0.7 else "below"
        caption = _pick(phrases.forms(kind, language), random).format(
            a=_article(a.noun, language, random), b=_article(b.noun, language, random)
        )
        return _placing((a, b), scenes.STACKED), caption

    def _worn(self, language: str, random: np.random.Generator) -> tuple[tuple[Placed, ...], str]:
        wearer = self._part(_pick(self.wearers, random), language, random)
        hat = self._part(_pick(self.hats, random), language, random)
        caption = _pick(phrases.forms("wearing", language), random).format(
            a=_article(wearer.noun, language, random),
            b=_article(hat.noun, language, random),
            ul="을" if phrases.ends_in_consonant(hat.noun) else "를",
        )
        return _placing((wearer, hat), scenes.WORN), caption

    def _trio(self, language: str, random: np.random.Generator) -> tuple[tuple[Placed, ...], str]:
        parts = [self._any(language, random) for _ in range(3)]
        placed = _placing(parts, scenes.LAYOUTS[3])
        if language == "en":
            a, b, c = (_article(part.noun, "en", random) for part in parts)
            return placed, f"{a}, {b} and {c}"
        a, b, c = (part.noun for part in parts)
        return placed, f"{a}, {_with_and(b, random)} {c}"

    def _any(self, language: str, random: np.random.Generator) -> Part:
        return self._part(_pick(self.common, random), language, random)

    def _part(self, index: int, language: str, random: np.random.Generator, painted: float = PAINTED) -> Part:
        words = self.things[index].words[language]
        noun = words.nouns[0] if words.nouns and random.random() < 0.7 else _pick(words.nouns or words.names[:1], random)
        plain = colours.without_colour(noun, language)
        if random.random() >= painted or not plain:
            return Part(index, noun)
        colour = _pick(tuple(colours.COLOURS), random)
        return Part(index, f"{_pick(colours.COLOURS[colour].words[language], random)} {plain}", colour)


def _pick(values: Sequence[T], random: np.random.Generator) -> T:
    return values[int(random.integers(len(values)))]


def _article(noun: str, language: str, random: np.random.Generator) -> str:
    return phrases.with_article(noun) if language == "en" and random.random() < 0.8 else noun


def _with_and(noun: str, random: np.random.Generator) -> str:
    """A Korean noun with one of the particles that mean "and"."""
    place = random.random()
    if place < 0.6:
        return phrases.particle(noun, "과", "와")
    return phrases.particle(noun, "이랑", "랑") if place < 0.8 else f"{noun}하고"


def _placing(parts: Sequence[Part], boxes: Sequence[tuple[int, int, int]]) -> tuple[Placed, ...]:
    return tuple(Placed(part.index, part.colour, box) for part, box in zip(parts, boxes, strict=True))


def _on_colour(placed: tuple[Placed, ...], caption: str, language: str, random: np.random.Generator) -> tuple[Scene, str]:
    """A share of scenes on a background of one colour, another one than that of a thing."""
    if random.random() >= GROUND:
        return Scene(placed), caption
    used = {thing.colour for thing in placed}
    ground = _pick([name for name in colours.COLOURS if name not in used], random)
    inside = tuple(Placed(t.index, t.colour, scenes.INSIDE if t.box == scenes.WHOLE else t.box) for t in placed)
    words = colours.COLOURS[ground].words[language]
    return Scene(inside, ground), _pick(phrases.forms("coloured", language), random).format(caption, colour=_pick(words, random))
