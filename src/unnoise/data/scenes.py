"""Scenes: one or more pictures of things on a background, drawn at the size of the training pictures.

Where things stand follows from the caption alone (two things stand side by side, the one named first on the left), so that a text encoder
can learn it from few pictures. Nothing is mirrored: a caption does not say which way a thing looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from unnoise.data import colours

UNIT = 64  # boxes are in 64ths of the side


@dataclass(frozen=True)
class Placed:
    """A thing in a scene: the number of its picture, its new colour if it has one, its square box (left, top, side) in 64ths."""

    index: int
    colour: str | None
    box: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Things from back to front. `ground`: a name of colours.COLOURS or of GROUNDS; None is white."""

    things: tuple[Placed, ...]
    ground: str | None = None


WHOLE = (0, 0, 64)
INSIDE = (7, 7, 50)  # leaves a margin in which the background is seen
STANDING = (11, 5, 42)  # leaves the ground below
LAYOUTS: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: (INSIDE,),
    2: ((1, 17, 30), (33, 17, 30)),
    3: ((17, 2, 30), (1, 33, 30), (33, 33, 30)),
    4: ((1, 1, 30), (33, 1, 30), (1, 33, 30), (33, 33, 30)),
}
STACKED = ((17, 1, 30), (17, 33, 30))  # the first above the second
WORN = ((10, 20, 44), (16, 0, 32))  # who wears it, and what is on the head
# The colour of the upper part, of the lower part, and how many 64ths from the top the lower part begins; a hill is round.
GROUNDS: dict[str, tuple[str, str, int]] = {
    "hill": ("bbddf5", "77b255", 40),
    "grass": ("ffffff", "77b255", 46),
    "snow": ("bbddf5", "ffffff", 46),
    "sand": ("bbddf5", "ffe8b6", 46),
    "sea": ("bbddf5", "55acee", 40),
    "sky": ("8ccaf7", "8ccaf7", 64),
    "night": ("1c2a4d", "1c2a4d", 64),
}


def draw(scene: Scene, rgba: np.ndarray) -> np.ndarray:
    """The scene as (size, size, 4) in 0..1 from the pictures (n, size, size, 4) uint8; a scene of one whole thing stays transparent."""
    size = rgba.shape[1]
    if scene.ground is None and len(scene.things) == 1 and scene.things[0].box == WHOLE:
        return _painted(rgba[scene.things[0].index], scene.things[0].colour)
    canvas = _ground(scene.ground, size)
    for thing in scene.things:
        left, top, side = (round(value * size / UNIT) for value in thing.box)
        picture = _painted(rgba[thing.index], thing.colour)
        small = Image.fromarray((picture * 255).round().astype(np.uint8)).resize((side, side), Image.Resampling.LANCZOS)
        canvas.alpha_composite(small, (left, top))
    return np.asarray(canvas) / np.float32(255)


def _painted(picture: np.ndarray, colour: str | None) -> np.ndarray:
    unit = picture / np.float32(255)
    return unit if colour is None else colours.repaint(unit, colours.COLOURS[colour]).astype(np.float32)


def _ground(name: str | None, size: int) -> Image.Image:
    if name is None:
        return Image.new("RGBA", (size, size), "white")
    if name in colours.COLOURS:
        red, green, blue = (round(255 * value) for value in colours.COLOURS[name].rgb)
        return Image.new("RGBA", (size, size), (red, green, blue))
    upper, lower, start = GROUNDS[name]
    big = Image.new("RGBA", (4 * size, 4 * size), f"#{upper}")  # drawn large and reduced: a smooth edge
    top = 4 * size * start // UNIT
    if name == "hill":
        ImageDraw.Draw(big).ellipse((-size, top, 5 * size, top + 6 * size), f"#{lower}")
    else:
        ImageDraw.Draw(big).rectangle((0, top, 4 * size, 4 * size), f"#{lower}")
    return big.resize((size, size), Image.Resampling.BOX)
