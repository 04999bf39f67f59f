"""Scenes are drawn where the layout says, from the very pixels of the pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unnoise.data import colours, emoji, scenes
from unnoise.data.scenes import Placed, Scene


@pytest.fixture(scope="module")
def rgba() -> np.ndarray:
    """Twemoji's apple, cat and top hat."""
    files = {entry.code: entry.file for entry in emoji.entries()}
    pictures = [Image.open(files[code]).convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS) for code in ("1f34e", "1f408", "1f3a9")]
    return np.stack([np.asarray(picture) for picture in pictures])


def test_one_whole_thing_is_its_picture(rgba):
    drawn = scenes.draw(Scene((Placed(0, None, scenes.WHOLE),)), rgba)
    assert np.array_equal(drawn, rgba[0] / np.float32(255))


def test_two_things_stand_side_by_side(rgba):
    drawn = scenes.draw(Scene(tuple(Placed(i, None, box) for i, box in zip((0, 1), scenes.LAYOUTS[2], strict=True))), rgba)
    assert drawn.shape == (64, 64, 4) and (drawn[..., 3] == 1).all()
    small = Image.fromarray(rgba[1]).resize((30, 30), Image.Resampling.LANCZOS)
    right = Image.new("RGBA", (30, 30), "white")
    right.alpha_composite(small)
    assert np.array_equal((drawn[17:47, 33:63] * 255).round().astype(np.uint8), np.asarray(right))
    assert (drawn[:17] == 1).all() and (drawn[47:] == 1).all()


def test_a_painted_thing_and_a_background(rgba):
    drawn = scenes.draw(Scene((Placed(0, "green", scenes.INSIDE),), "blue"), rgba)
    assert np.allclose(drawn[2, 2, :3], colours.COLOURS["blue"].rgb, atol=1 / 255)
    middle = drawn[20:44, 20:44, :3].reshape(-1, 3).mean(axis=0)
    assert np.argmax(middle) == 1  # the apple is green


def test_grounds_have_a_sky_and_a_ground(rgba):
    for name in scenes.GROUNDS:
        drawn = scenes.draw(Scene((Placed(2, None, scenes.STANDING),), name), rgba)
        same = np.array_equal(drawn[1, 1], drawn[62, 1])
        assert same == (name in ("sky", "night")), name


def test_every_layout_stays_inside_and_apart():
    for number, boxes in scenes.LAYOUTS.items():
        covered = np.zeros((64, 64), int)
        for left, top, side in boxes:
            assert min(left, top) >= 0 and max(left, top) + side <= 64
            covered[top : top + side, left : left + side] += 1
        assert len(boxes) == number and covered.max() == 1


def test_a_scene_of_another_size(rgba):
    small = rgba[:, ::2, ::2]
    assert scenes.draw(Scene(tuple(Placed(0, None, box) for box in scenes.LAYOUTS[4])), small).shape == (32, 32, 4)
