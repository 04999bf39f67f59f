"""Image folders in, batches out: what users' folders may look like, and that a batch depends on (seed, step) alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.data import colours, pictures
from unnoise.data.pictures import Batches, Pictures
from unnoise.errors import DataError


def folder(place: Path, rows: list[dict] | None, files: tuple[str, ...] = ("a.png", "b.jpg")) -> Path:
    for index, name in enumerate(files):
        Image.new("RGB", (20 + index, 30), (200, 10 * index, 0)).save(place / name)
    if rows is not None:
        (place / "metadata.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return place


def test_an_ordinary_folder(tmp_path):
    read = pictures.read(folder(tmp_path, [{"file_name": "a.png", "text": "a photo of a cat"}, {"file_name": "b.jpg", "text": "개"}]), 16)
    assert read.captions == [{"text": ("a photo of a cat",)}, {"text": ("개",)}]
    assert read.rgba.shape == (2, 16, 16, 4) and read.rgba[0, 0, 0].tolist() == [200, 0, 0, 255]
    batch, captions = Batches(read, 4, seed=0, repaint=1.0)(0)
    assert sorted(captions) == ["a photo of a cat"] * 2 + ["개"] * 2  # whole texts: nothing is put before them, no colour is swapped
    assert batch.shape == (4, 3, 16, 16) and batch.min() >= -1 and batch.max() <= 1


def test_captions_by_language_and_empty_lines(tmp_path):
    rows = [{"file_name": "a.png", "captions": {"en": ["cat", "kitten"], "ko": ["고양이"]}}]
    index = folder(tmp_path, rows) / "metadata.jsonl"
    index.write_text("\n" + index.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    assert pictures.read(tmp_path, 16).captions == [{"en": ("cat", "kitten"), "ko": ("고양이",)}]


def test_pictures_beside_text_files(tmp_path):
    folder(tmp_path, None, ("b.PNG", "a.webp"))
    (tmp_path / "a.txt").write_text("first, in the order of names\n")
    (tmp_path / "b.txt").write_text("둘째", encoding="utf-8")
    assert pictures.read(tmp_path, 16).captions == [{"text": ("first, in the order of names",)}, {"text": ("둘째",)}]


def test_the_middle_is_kept(tmp_path):
    stripes = Image.new("RGB", (48, 16), "red")
    stripes.paste("blue", (16, 0, 32, 16))
    stripes.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    assert (pictures.read(tmp_path, 16).rgba == [0, 0, 255, 255]).all()


BROKEN = {  # the line, and what the refusal names beside file and number
    "no JSON": ("{", "Expecting"),
    "no object": ("[1]", "expected an object with file_name and text"),
    "no file name": ('{"text": "a"}', "expected an object with file_name and text"),
    "no text": ('{"file_name": "a.png"}', "expected a text beside a.png"),
    "a number for a text": ('{"file_name": "a.png", "text": 3}', "expected a text beside a.png"),
    "captions in one string": ('{"file_name": "a.png", "captions": {"en": "a cat"}}', '{"en": ["a cat"]}'),
    "no captions": ('{"file_name": "a.png", "captions": {}}', '{"en": ["a cat"]}'),
    "no such picture": ('{"file_name": "gone.png", "text": "a"}', "gone.png"),
    "no picture": ('{"file_name": "metadata.jsonl", "text": "a"}', "cannot identify"),
    "half a picture": ('{"file_name": "half.png", "text": "a"}', "truncated"),
    "no UTF-8": (b'{"file_name": "a.png", "text": "\xff"}', "utf-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named(tmp_path, case):
    line, expected = BROKEN[case]
    index = folder(tmp_path, [{"file_name": "a.png", "text": "a"}]) / "metadata.jsonl"
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    index.write_bytes(index.read_bytes() + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2: ") as refused:
        pictures.read(tmp_path, 16)
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_a_picture_without_its_text_is_named(tmp_path):
    folder(tmp_path, None)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"b\.jpg: .*b\.txt"):
        pictures.read(tmp_path, 16)


@pytest.mark.parametrize("make", [lambda place: None, lambda place: (place / "metadata.jsonl").touch()])
def test_an_empty_folder(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match=r"no pictures in .*expected a metadata\.jsonl"):
        pictures.read(tmp_path, 16)


# Batches


def some(n: int, language: str = "en") -> Pictures:
    """n pictures that can be told apart by their grey."""
    rgba = np.full((n, 8, 8, 4), 255, np.uint8)
    rgba[..., :3] = np.arange(n, dtype=np.uint8)[:, None, None, None] * 20
    return Pictures(rgba, [{language: (f"thing {i}", f"alias {i}")} for i in range(n)])


def test_a_batch_is_a_function_of_seed_and_step():
    batches = Batches(some(10), 4, seed=3, repaint=0.5)
    forward = [batches(step) for step in range(5)]
    for step in (4, 0, 2):  # in any order, by another object
        x, captions = Batches(some(10), 4, seed=3, repaint=0.5)(step)
        assert torch.equal(x, forward[step][0]) and captions == forward[step][1]
    assert Batches(some(10), 4, seed=4, repaint=0.5)(0)[1] != forward[0][1]
    assert forward[0][1] != forward[1][1]
    one = [Batches(some(1), 20, seed=seed, repaint=0.5)(0)[1] for seed in (3, 4)]
    assert one[0] != one[1]  # not only the order: the draws too


@pytest.mark.parametrize("n, size", [(10, 4), (3, 8), (5, 5)])
def test_whole_passes_in_new_orders(n, size):
    """Every n drawn pictures in a row are all of them, also where a batch holds parts of two passes, or several passes."""
    drawn = [index for step in range(n * 3) for index in pictures.shuffled(n, size, 0, step)]
    passes = [drawn[start : start + n] for start in range(0, len(drawn), n)]
    assert all(sorted(one) == list(range(n)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_pictures_and_captions_stay_together():
    batches = Batches(some(10, "xx"), 6, seed=1)
    for step in range(20):
        x, captions = batches(step)
        greys = ((x[:, 0, 0, 0] + 1) / 2 * 255 / 20).round().int().tolist()
        assert greys == [int(caption.split()[-1]) for caption in captions]


def test_the_name_is_as_frequent_as_its_aliases_together():
    """With one alias: the name in half of the draws and in half of the other half."""
    captions = [caption for step in range(400) for caption in Batches(some(10, "xx"), 10, seed=2)(step)[1]]
    assert sum(caption.startswith("thing") for caption in captions) / 4000 == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 4000) ** 0.5)


def test_languages_are_drawn_alike():
    both = Pictures(some(4).rgba, [{"en": ("cat",), "ko": ("고양이",)}] * 4)
    korean = sum("고양이" in caption for step in range(100) for caption in Batches(both, 20, seed=0)(step)[1])
    assert korean / 2000 == pytest.approx(0.5, abs=5 * (0.25 / 2000) ** 0.5)


def test_repainted_pictures_say_one_colour_and_the_others_are_as_they_were():
    apple = np.zeros((8, 8, 4), np.uint8)
    apple[2:6, 2:6] = (221, 46, 68, 255)
    batches = Batches(Pictures(apple[None], [{"en": ("red apple",), "ko": ("빨간 사과",)}]), 50, seed=0, repaint=0.5)
    original, seen, painted = pictures.to_tensor(apple / np.float32(255)), set(), 0
    for step in range(20):
        for x, caption in zip(*batches(step), strict=True):
            words = set(caption.split())
            said = [name for name, colour in colours.COLOURS.items() if words & {*colour.words["en"], *colour.words["ko"]}]
            assert len(said) == 1, caption
            rgb = (x[:, 3, 3].numpy() + 1) / 2
            assert np.abs(rgb - colours.COLOURS[said[0]].rgb).max() < 0.12, caption
            seen.add(said[0])
            painted += not torch.equal(x, original)
    assert seen == set(colours.COLOURS)
    assert painted / 1000 == pytest.approx(0.5, abs=5 * (0.25 / 1000) ** 0.5)


def test_flags_and_names_that_are_only_a_colour_keep_their_paint():
    """A flag in other colours is another flag; of "orange" nothing would be left to paint."""
    green = np.full((1, 8, 8, 4), 100, np.uint8)
    for name, language in (("flag of Norway", "en"), ("깃발 노르웨이", "ko"), ("orange", "en"), ("Hund", "de")):
        batches = Batches(Pictures(green, [{language: (name,)}]), 30, seed=0, repaint=1.0)
        x, captions = batches(0)
        assert (x == x[:1]).all() and all(name in caption for caption in captions)


def test_articles():
    random = np.random.default_rng(0)
    english = {pictures.phrase("apple", "en", random) for _ in range(200)}
    assert english == {"apple", "an apple", "the apple", "a picture of an apple", "apple emoji"}
    assert "a cat" in {pictures.phrase("cat", "en", random) for _ in range(200)}
    assert {pictures.phrase("사과", "ko", random) for _ in range(200)} == {"사과", "사과 그림", "사과 이모지"}
    assert {pictures.phrase("Apfel", "de", random) for _ in range(50)} == {"Apfel"}


def test_the_vocabulary_has_every_word_that_a_caption_can_hold():
    read = Pictures(some(4).rgba, [{"en": ("red apple", "fruit"), "ko": ("빨간 사과",)}] * 4)
    known = set(" ".join(pictures.vocabulary(read)).split())
    said = {word for step in range(60) for caption in Batches(read, 20, seed=0, repaint=0.5)(step)[1] for word in caption.split()}
    assert said <= known | {"an"} and {"purple", "보랏빛", "그림", "picture"} <= said
