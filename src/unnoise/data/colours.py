"""Painting the main colour of a flat picture another one, so that captions such as "purple butterfly" have a picture.

The main colour is the commonest one. Pixels of its hue are mapped by their luminance on the ramp black - new colour - white, with the main
colour landing on the new one; other hues (a car's windows) stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Colour:
    """Words of one colour, and its value in sRGB, 0..1."""

    words: dict[str, tuple[str, ...]]
    rgb: tuple[float, float, float]


def _colour(hex_value: str, en: str, *ko: str) -> Colour:
    red, green, blue = (int(hex_value[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return Colour({"en": tuple(en.split("/")), "ko": ko}, (red, green, blue))


COLOURS = {
    "red": _colour("dd2e44", "red", "빨간", "빨간색", "붉은"),
    "orange": _colour("f4900c", "orange", "주황색", "주황", "오렌지색"),
    "yellow": _colour("ffcc4d", "yellow", "노란", "노란색"),
    "green": _colour("5c913b", "green", "초록색", "초록", "녹색"),
    "blue": _colour("3b88c3", "blue", "파란", "파란색", "푸른"),
    "purple": _colour("8d5fc7", "purple", "보라색", "보라", "보랏빛"),
    "pink": _colour("f4a0c0", "pink", "분홍색", "분홍", "핑크색"),
    "brown": _colour("8a4b2f", "brown", "갈색"),
    "black": _colour("2b2f34", "black", "검은", "검은색", "검정"),
    "white": _colour("e6e7e8", "white", "하얀", "흰색", "흰"),
    "gray": _colour("99aab5", "gray/grey", "회색"),
}
LANGUAGES = ("en", "ko")
_LUMA = np.array([0.299, 0.587, 0.114])
_WORDS = {
    "en": re.compile(r"\b(" + "|".join(w for c in COLOURS.values() for w in c.words["en"]) + r")\b ?"),
    "ko": re.compile("(" + "|".join(sorted((w for c in COLOURS.values() for w in c.words["ko"]), key=len, reverse=True)) + ") "),
}


def without_colour(caption: str, language: str) -> str:
    """The caption without its colour words: "red apple" -> "apple"; "" where nothing is left."""
    return _WORDS[language].sub("", caption).strip()


def repaint(picture: Array, colour: Colour) -> Array:
    """(h, w, 4) float in 0..1 -> the same with its main colour replaced. Transparency stays."""
    rgb, alpha = picture[..., :3], picture[..., 3]
    if alpha.max() < 0.5:
        return picture
    main = main_colour(rgb[alpha > 0.5])
    weight = _likeness(rgb, main)[..., None]
    painted = _ramp(rgb @ _LUMA, float(np.clip(main @ _LUMA, 0.15, 0.85)), np.array(colour.rgb))
    return np.concatenate([rgb + weight * (painted - rgb), picture[..., 3:]], axis=-1)


def main_colour(pixels: Array) -> Array:
    """The mean of the fullest of 5x5x5 boxes of the colour cube. pixels (n, 3) -> (3,)."""
    boxes = np.minimum((pixels * 5).astype(int), 4) @ np.array([25, 5, 1])
    return pixels[boxes == np.bincount(boxes).argmax()].mean(axis=0)


def _likeness(rgb: Array, main: Array) -> Array:
    """1 where a pixel has the main colour's hue (or its lack of one), 0 where it has another; (h, w)."""
    colourful = _smooth(_chroma(rgb), 0.08, 0.25)
    if _chroma(main) < 0.15:
        return 1 - colourful
    cos = np.cos(_hue(rgb) - _hue(main))
    return colourful * _smooth(cos, np.cos(np.radians(55)), np.cos(np.radians(25)))


def _ramp(luma: Array, middle: float, colour: Array) -> Array:
    """black at 0, the colour at `middle`, white at 1; luma (h, w) -> (h, w, 3)."""
    low = np.clip(luma / middle, 0, 1)[..., None] * colour
    return low + np.clip((luma - middle) / (1 - middle), 0, 1)[..., None] * (1 - colour)


def _chroma(rgb: Array) -> Array:
    return rgb.max(axis=-1) - rgb.min(axis=-1)


def _hue(rgb: Array) -> Array:
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)


def _smooth(x: Array, low: float, high: float) -> Array:
    part = np.clip((x - low) / (high - low), 0, 1)
    return part * part * (3 - 2 * part)
