"""The source "emoji-scenes": batches depend on their step alone, the first data set is as it was, and free prompts are no captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unnoise.data import emoji, emoji_scenes, pictures
from unnoise.data.emoji_scenes import SceneBatches
from unnoise.errors import DataError

PROMPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "prompts"
FREE = (PROMPTS / "free.en.tsv", PROMPTS / "free.ko.tsv", PROMPTS / "scenes.tsv")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pictures.Pictures:
    folder = tmp_path_factory.mktemp("data") / "emoji"
    emoji.build(folder)
    return pictures.read(folder, 64)


def test_batches_depend_on_seed_and_step_alone(data):
    one, other = (SceneBatches(data, emoji_scenes.composer(), 8, seed=4) for _ in range(2))
    other(0)
    (pixels, captions), (same, again) = one(5), other(5)
    assert torch.equal(pixels, same) and captions == again
    assert pixels.shape == (8, 3, 64, 64) and -1 <= pixels.min() and pixels.max() <= 1
    assert captions != SceneBatches(data, emoji_scenes.composer(), 8, seed=5)(5)[1]


def test_a_caption_about_one_thing_shows_its_picture(data):
    batches = SceneBatches(data, emoji_scenes.composer(), 64, seed=0)
    names = {name: i for i, thing in enumerate(batches.compose.things) for name in thing.words["en"].names[:1]}
    white, seen = data.on_white(), 0
    for step in range(4):
        for pixels, caption in zip(*batches(step), strict=True):
            if caption in names:
                assert torch.equal(pixels, white[names[caption]])
                seen += 1
    assert seen > 5


def test_free_prompts_are_no_captions():
    free = emoji_scenes.excluding(FREE)
    assert len(free) == 240
    compose, random = emoji_scenes.composer(free), np.random.default_rng(1)
    drawn = {compose(number % len(compose.things), random)[1].lower() for number in range(20_000)}
    names = {name.lower() for thing in compose.things for words in thing.words.values() for name in (*words.names, *dict(words.keywords))}
    assert not free & (drawn | names)
    first = [name for entry in emoji.entries() for group in entry.captions.values() for name in group]
    forms = [form for group in pictures.PHRASES.values() for form, _ in group]
    phrased = {form.format(name, article=article).lower() for form in forms for name in first for article in ("a", "an")}
    assert not free & phrased


def test_prompts_name_emoji_of_the_data_set():
    codes = {entry.code for entry in emoji.entries()}
    for file in PROMPTS.glob("*.tsv"):
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            accepted = line.split("\t")[1].replace(" + ", " ").split(" ")
            assert accepted and {"-".join(f"{ord(c):x}" for c in text if c != "\ufe0f") for text in accepted} <= codes, line


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no prompts at .*none\.tsv"):
        emoji_scenes.excluding((tmp_path / "none.tsv",))


def test_the_first_source_draws_what_it_always_drew(data):
    """Its order of pictures, computed here once more from NumPy's permutations."""
    batches = pictures.Batches(data, size=7, seed=3)
    for step in (0, 273, 274):  # 274 * 7 = 1918
        order = [np.random.default_rng([3, place // 1918, 1918]).permutation(1918)[place % 1918] for place in range(step * 7, step * 7 + 7)]
        assert torch.equal(batches(step)[0], data.on_white()[order])


def test_the_vocabulary_has_every_name():
    compose = emoji_scenes.composer()
    said = set(emoji_scenes.vocabulary(compose))
    assert all(name in said for thing in compose.things for words in thing.words.values() for name in words.names)
