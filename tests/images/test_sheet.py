"""Contact sheets: every picture lies where it should; captions are drawn where a font can, and left out where none can."""

from __future__ import annotations

import pytest
from PIL import Image

from unnoise.images import sheet as module
from unnoise.images.sheet import FONTS, GAP, PAPER, TEXT, drawable, load, sheet

COLOURS = ["red", "green", "blue", "orange", "purple", "black", "cyan"]


def plain(width: int, height: int, count: int) -> list[Image.Image]:
    return [Image.new("RGB", (width, height), COLOURS[i % len(COLOURS)]) for i in range(count)]


def ink(page: Image.Image, row_top: int, row_bottom: int) -> bool:
    return page.crop((0, row_top, page.width, row_bottom)).getcolors(maxcolors=1 << 20) != [(page.width * (row_bottom - row_top), PAPER)]


@pytest.mark.parametrize("count, columns, rows", [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (9, 3, 3)])
def test_pictures_lie_row_by_row(count, columns, rows):
    images = plain(128, 128, count)
    page = sheet(images)
    assert page.size == (columns * 136 + GAP, rows * 136 + GAP)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        box = (GAP + column * 136, GAP + row * 136)
        assert page.crop((*box, box[0] + 128, box[1] + 128)).tobytes() == image.tobytes()


def test_small_pictures_are_enlarged_by_whole_pixels():
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    page = sheet([image])
    assert page.crop((GAP, GAP, GAP + 128, GAP + 128)).resize((64, 64), Image.Resampling.NEAREST).tobytes() == image.tobytes()


@pytest.mark.parametrize("size, count", [((1024, 1024), 100), ((2048, 512), 3), ((64, 64), 1000), ((1, 1), 2), ((3000, 1), 4)])
def test_a_sheet_stays_of_a_size_that_can_be_opened(size, count):
    page = sheet(plain(*size, count), ["caption"] * count)
    assert max(page.size) <= 5200 and min(page.size) > 0


def test_unlike_shapes_share_a_sheet():
    assert sheet([Image.new("RGB", (64, 128)), Image.new("L", (128, 64)), Image.new("RGBA", (32, 32))]).size == (280, 280)


def test_a_caption_lies_below_its_picture():
    page = sheet(plain(128, 128, 2), ["7 a red apple", ""])
    below = (GAP + 128 + 1, page.height)
    assert ink(page, *below)
    assert page.crop((144, below[0], page.width, page.height)).getcolors() == [((page.width - 144) * (page.height - below[0]), PAPER)]


def test_a_long_caption_stays_in_its_cell():
    page = sheet(plain(128, 128, 2), ["word " * 40, ""])
    gap = page.crop((GAP + 128, GAP + 128, GAP + 128 + GAP, page.height))
    assert len(gap.getcolors()) == 1


def test_words_without_a_font_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "load", lambda name: None)
    assert drawable("7 빨간 apple 🍎")[1] == "7 apple"
    page = sheet(plain(128, 128, 2), ["빨간 사과", "파란 자동차"])
    assert not ink(page, GAP + 128 + 1, page.height)


def korean_font() -> bool:
    return any((font := load(name)) is not None and module.has(font, "가") for name in FONTS)


@pytest.mark.skipif(not korean_font(), reason="this machine has no Korean font")
def test_korean_is_drawn_where_a_font_can():
    assert drawable("빨간 사과")[1] == "빨간 사과"
    assert ink(sheet(plain(128, 128, 1), ["빨간 사과"]), GAP + 128 + 1, GAP + 128 + TEXT)


def test_line_ends_in_a_caption_are_spaces():
    assert sheet(plain(128, 128, 1), ["a\nb\tc"]).tobytes() == sheet(plain(128, 128, 1), ["a b c"]).tobytes()
