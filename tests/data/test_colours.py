"""Repainting: the main colour becomes the wanted one, everything else stays, and a caption never says what the picture lacks."""

from __future__ import annotations

import numpy as np
import pytest

from unnoise.data import colours, emoji
from unnoise.data.colours import COLOURS, main_colour, repaint, without_colour


def car(body=(0.86, 0.18, 0.27), window=(0.35, 0.7, 0.95)) -> np.ndarray:
    """A body, a window of another hue, a lighter stripe of the body's hue, half transparent edges, nothing around it. (16, 16, 4)"""
    picture = np.zeros((16, 16, 4))
    picture[3:13, 2:14] = (*body, 1)
    picture[4:6, 2:14, :3] = np.clip(np.array(body) * 1.15, 0, 1)
    picture[7:9, 5:11] = (*window, 1)
    picture[3, 2:14, 3] = 0.4
    return picture


@pytest.mark.parametrize("name", COLOURS)
def test_the_main_colour_becomes_the_wanted_one(name):
    wanted = np.array(COLOURS[name].rgb)
    painted = repaint(car(), COLOURS[name])
    np.testing.assert_allclose(painted[10, 6, :3], wanted, atol=0.03)
    np.testing.assert_allclose(main_colour(painted[painted[..., 3] > 0.5][:, :3]), wanted, atol=0.08)


@pytest.mark.parametrize("name", COLOURS)
def test_transparency_and_other_hues_stay(name):
    before, after = car(), repaint(car(), COLOURS[name])
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    np.testing.assert_allclose(after[7:9, 5:11], before[7:9, 5:11], atol=1e-6)
    assert after.min() >= 0 and after.max() <= 1


def test_lighter_parts_stay_lighter():
    painted = repaint(car(), COLOURS["green"])
    luma = painted[..., :3] @ [0.299, 0.587, 0.114]
    assert luma[4, 6] > luma[10, 6] + 0.01


def test_a_grey_picture_is_painted_and_its_colourful_parts_stay():
    picture = car(body=(0.6, 0.62, 0.63))
    painted = repaint(picture, COLOURS["red"])
    np.testing.assert_allclose(painted[10, 6, :3], COLOURS["red"].rgb, atol=0.05)
    np.testing.assert_allclose(painted[7:9, 5:11], picture[7:9, 5:11], atol=1e-6)


def test_an_empty_picture_stays():
    empty = np.zeros((4, 4, 4))
    assert repaint(empty, COLOURS["red"]) is empty


@pytest.mark.parametrize(
    "caption, language, expected",
    [
        ("red apple", "en", "apple"),
        ("apple", "en", "apple"),
        ("tired face", "en", "tired face"),
        ("evergreen tree", "en", "evergreen tree"),
        ("blue and grey book", "en", "and book"),
        ("orange", "en", ""),
        ("빨간 사과", "ko", "사과"),
        ("빨간색 사과", "ko", "사과"),
        ("펄럭이는 검은색 상자", "ko", "펄럭이는 상자"),
        ("사과", "ko", "사과"),
        ("갈색", "ko", "갈색"),  # not a colour of something
    ],
)
def test_without_colour(caption, language, expected):
    assert without_colour(caption, language) == expected


@pytest.fixture(scope="module")
def names() -> list[tuple[str, str]]:
    return [(name, language) for entry in emoji.entries() for language in ("en", "ko") for name in entry.captions[language]]


def test_no_name_keeps_a_colour_word(names):
    """Of the eleven colours; "blond" and the like are no paint."""
    for name, language in names:
        left = set(without_colour(name, language).lower().split())
        words = {word for colour in COLOURS.values() for word in colour.words[language]}
        assert not left & words or len(left) == 1, name


def test_every_picture_of_the_set_takes_the_colour_that_its_caption_says():
    """Over a sample of the real pictures, the median of what was the main colour. One that is almost black or white is held to less:
    the ramp from black to white through the new colour ends near it."""
    from PIL import Image

    far, ends = [], []
    for index, entry in enumerate(emoji.entries()[::40]):
        with Image.open(entry.file) as image:
            picture = np.asarray(image.convert("RGBA")) / 255
        main = main_colour(picture[picture[..., 3] > 0.5][:, :3])
        name = list(colours.COLOURS)[index % len(COLOURS)]
        painted = repaint(picture, COLOURS[name])
        near = (np.abs(picture[..., :3] - main).max(axis=-1) < 0.1) & (picture[..., 3] > 0.5)
        error = np.abs(np.median(painted[near][:, :3], axis=0) - COLOURS[name].rgb).max()
        (far if 0.15 <= main @ [0.299, 0.587, 0.114] <= 0.85 else ends).append(error)
    assert len(far) > 30 and np.mean(np.array(far) < 0.1) > 0.95, sorted(far)[-8:]
    assert max(ends) < 0.5
