"""A contact sheet: several pictures in a grid with a small caption below each. Pillow alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FONTS = (  # by file name, found where the system keeps fonts; a caption is drawn with the first that has all its characters
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKkr-Regular.otf",
    "NotoSansKR-Regular.otf",
    "NotoSansKR-Regular.ttf",
    "NanumGothic.ttf",
    "NanumBarunGothic.ttf",
    "malgun.ttf",
    "AppleSDGothicNeo.ttc",
    "AppleGothic.ttf",
    "UnDotum.ttf",
    "unifont.otf",
    "Arial Unicode.ttf",
)
TEXT, GAP = 12, 8  # pixels
SMALLEST, LARGEST = 128, 512  # a cell's longest side
WIDEST = 4096  # of a sheet
PAPER, INK = (255, 255, 255), (60, 60, 60)


def sheet(images: Sequence[Image.Image], captions: Sequence[str] = (), columns: int | None = None) -> Image.Image:
    """One picture of all pictures, row by row. `captions`: one a picture, or none.

    A word that no font here can draw is left out, so a Korean caption needs a Korean font on this machine.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = cell(images, columns)
    below = TEXT + GAP if captions else 0
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + below + GAP) + GAP), PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + below + GAP)
        page.paste(fitted(image, width, height), (left, top))
        if captions:
            write(page, captions[index], left, top + height + GAP // 2, width)
    return page


def cell(images: Sequence[Image.Image], columns: int) -> tuple[int, int]:
    """Width and height of every cell: the largest picture, enlarged by a whole number or made smaller to fit the sheet."""
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    longest = max(width, height)
    room = max(16, min(LARGEST, WIDEST // columns - GAP))
    scale = min(room / longest, 1.0) if longest >= SMALLEST else max(1, min(math.ceil(SMALLEST / longest), room // longest))
    return max(1, round(width * scale)), max(1, round(height * scale))


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at the cell's size, its shape kept; enlarged pixels stay square so that the sheet shows what was made."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def write(page: Image.Image, caption: str, left: int, top: int, width: int) -> None:
    """The caption on one line, cut to the cell's width."""
    font, text = drawable(" ".join(caption.split()))
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 and has(font, "…") else text[:-1]
    ImageDraw.Draw(page).text((left, top), text, INK, font)


def drawable(caption: str) -> tuple[Font, str]:
    """The font that draws most of the caption's words, the first of equals, and those words."""
    best, kept = own(), ""
    for font in itertools.chain([best], filter(None, map(load, FONTS))):
        words = " ".join(word for word in caption.split() if all(has(font, character) for character in word))
        if len(words) > len(kept):
            best, kept = font, words
        if kept == caption:
            break
    return best, kept


@cache
def own() -> Font:
    """The font that comes with Pillow: plain Latin letters and digits."""
    return ImageFont.load_default(TEXT)


@cache
def load(name: str) -> Font | None:
    """The font of that file name, or None where this machine has none."""
    try:
        return ImageFont.truetype(name, TEXT)
    except (OSError, ImportError):
        return None


@cache
def has(font: Font, character: str) -> bool:
    """Whether the font draws the character: one that it lacks looks like one that no font has."""
    if isinstance(font, ImageFont.ImageFont):  # Pillow's bitmap font, used where FreeType is missing
        return character.isascii()
    return character == " " or stamp(font, character) != stamp(font, "\U0010ffff")


def stamp(font: Font, character: str) -> bytes:
    """The character's pixels."""
    page = Image.new("L", (2 * TEXT, 2 * TEXT))
    ImageDraw.Draw(page).text((2, 2), character, 255, font)
    return page.tobytes()
