"""Tokenizers: CLIP's against transformers' ids on awkward strings, and a small one that learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unnoise.errors import ArgumentError, FileError
from unnoise.networks.tokenizers import Tokenizer, clip, learn, read


@pytest.fixture(scope="module")
def vocabulary(shared: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Stable Diffusion 1's tokenizer folder."""
    folder = shared / "weights/sd15_layout/tokenizer"
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]  # the first names the version
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8")), [tuple(line.split()) for line in lines if line]


@pytest.fixture(scope="module")
def published(vocabulary: tuple) -> Tokenizer:
    return clip(*vocabulary)


@pytest.fixture(scope="module")
def strings(shared: Path) -> list[dict]:
    return json.loads((shared / "golden/tokenizer/tokens.json").read_text(encoding="utf-8"))


def test_the_same_ids_as_transformers(published: Tokenizer, strings: list[dict]) -> None:
    assert len(strings) == 60
    tokens = published([item["text"] for item in strings])
    for row, dropped, item in zip(tokens.ids.tolist(), tokens.dropped, strings, strict=True):
        ids = item["hf_clip_tokenizer"]
        kept = [49406, *ids[:75], 49407]
        assert row == kept + [49407] * (77 - len(kept)), item["text"]
        assert dropped == max(0, len(ids) - 75)


def test_long_prompts_are_cut_as_transformers_cuts(published: Tokenizer, strings: list[dict]) -> None:
    long = [item for item in strings if item["hf_77"]]
    assert long
    assert published([item["text"] for item in long]).ids.tolist() == [item["hf_77"] for item in long]


def test_open_clip_pads_with_zero(vocabulary: tuple) -> None:
    """SD 2 and SDXL's second encoder."""
    ids = clip(*vocabulary, pad=0)(["a cat"]).ids[0].tolist()
    assert ids == [49406, 320, 2368, 49407] + [0] * 73


def test_the_saved_file_reads_back_the_same(published: Tokenizer, strings: list[dict], tmp_path: Path) -> None:
    published.save(tmp_path / "tokenizer.json")
    again, texts = read(tmp_path / "tokenizer.json", 77), [item["text"] for item in strings]
    assert again(texts).ids.equal(published(texts).ids)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"tokenizer\.json"):
        read(tmp_path / "tokenizer.json", 77)


CAPTIONS = ["a red apple", "a green apple", "빨간 사과", "초록 사과", "a red car", "빨간 자동차"] * 3


def test_learnt_pieces_are_words() -> None:
    tokenizer = learn(CAPTIONS, vocab=600, length=12)
    assert tokenizer.pieces.get_vocab_size() <= 600
    texts = ["a red apple", "빨간 사과", "A  GREEN\tcar"]
    ids, dropped = tokenizer(texts)
    assert ids.shape == (3, 12)
    assert dropped == [0, 0, 0]
    for row, text in zip(ids.tolist(), texts, strict=True):
        words = row[1 : row.index(tokenizer.end)]
        assert row[0] == tokenizer.start
        assert len(words) == len(text.split())
        assert set(row[len(words) + 1 :]) == {tokenizer.end}
    assert len(set(ids[0].tolist()) & set(ids[1].tolist())) == 2  # nothing in common but start and end


def test_a_learnt_file_reads_back_the_same(tmp_path: Path) -> None:
    one = learn(CAPTIONS, vocab=600, length=12)
    one.save(tmp_path / "t.json")
    assert read(tmp_path / "t.json", 12)(CAPTIONS).ids.equal(one(CAPTIONS).ids)


def test_what_does_not_fit_is_counted() -> None:
    tokenizer = learn(CAPTIONS, vocab=600, length=4)
    ids, dropped = tokenizer(["a red apple", "apple"])
    assert dropped == [1, 0]
    assert ids[0, -1] == tokenizer.end


def test_learning_is_the_same_every_time() -> None:
    assert learn(CAPTIONS, vocab=600, length=12).pieces.to_str() == learn(CAPTIONS, vocab=600, length=12).pieces.to_str()


def test_no_letter_is_lost_to_captions_that_lack_it() -> None:
    tokenizer = learn(CAPTIONS, vocab=600, length=40)
    (row,) = tokenizer(["q ζ 🦓"]).ids.tolist()
    assert row.index(tokenizer.end) == 1 + 1 + 2 + 4  # start, then one piece a byte


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(ArgumentError, match="514"):
        learn(CAPTIONS, vocab=513, length=12)
