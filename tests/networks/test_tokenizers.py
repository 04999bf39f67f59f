"""Tokenizers: CLIP's against transformers' ids on awkward strings, T5's, folders, further words, and a small one that learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unnoise.errors import ArgumentError, FileError
from unnoise.networks.tokenizers import Tokenizer, clip, from_folder, learn, published_clip, published_t5, read


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


def test_the_vocabulary_in_the_package_is_the_published_one(vocabulary: tuple, strings: list[dict]) -> None:
    assert published_clip().pieces.get_vocab() == vocabulary[0]
    texts = [item["text"] for item in strings]
    assert published_clip()(texts).ids.equal(clip(*vocabulary)(texts).ids)
    assert published_clip(pad=0)(["a cat"]).ids[0, 4:].eq(0).all()
    assert published_clip().pieces is published_clip(20).pieces  # read once


def test_t5_as_its_authors_documented_it() -> None:
    """The ids of this sentence stand in transformers' documentation of T5."""
    ids, dropped = published_t5(16)(["translate English to German: The house is wonderful."])
    assert ids.tolist() == [[13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1, 0, 0, 0, 0, 0]]
    assert dropped == [0]
    assert published_t5(4)(["The house is wonderful."]).ids.tolist() == [[37, 629, 19, 1]]
    assert published_t5(4)(["The house is wonderful."]).dropped == [2]
    assert published_t5()([""]).ids.shape == (1, 256)


def test_every_piece_of_t5_has_its_own_id() -> None:
    vocab = published_t5().pieces.get_vocab()
    assert sorted(vocab.values()) == list(range(32100))
    assert [vocab[piece] for piece in ("<pad>", "</s>", "<unk>", "<extra_id_0>")] == [0, 1, 2, 32099]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a birb-style cat", [320, 49408, 49409, 2368]),
        ("Birb-STYLE, birb", [49408, 49409, 267, 49410]),  # the longest word first, in any case
        ("birb-styled", None),  # part of a longer word
        ("a<toy>cat", [320, 49411, 2368]),
        ("<TOY><toy>", [49411, 49411]),
    ],
)
def test_further_words(text: str, expected: list[int] | None) -> None:
    plain = published_clip()
    known = plain.with_words({"birb": [49410], "birb-style": [49408, 49409]}).with_words({"<toy>": [49411]})
    ids = [id for group in known.groups(text) for id in group]
    if expected is None:
        assert not {49408, 49409} & set(ids)
    else:
        assert ids == expected
    assert known([text]).ids[0, 1 : 1 + len(ids)].tolist() == ids
    assert max(plain([text]).ids[0]) < 49408  # the tokenizer it was made from stays as it was


@pytest.mark.parametrize("words", [{"": [49408]}, {"x": []}, {"x": range(76)}])
def test_words_that_cannot_be_used_are_refused(words: dict) -> None:
    with pytest.raises(ArgumentError, match="1 to 75 ids"):
        published_clip().with_words(words)


def test_a_folder_says_length_padding_and_words(vocabulary: tuple, tmp_path: Path) -> None:
    vocab, merges = vocabulary
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)), encoding="utf-8")
    assert (from_folder(tmp_path).length, from_folder(tmp_path).pad) == (77, 49407)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    assert from_folder(tmp_path).length == 77
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 49408}))
    tokenizer = from_folder(tmp_path)
    assert tokenizer(["a <cat-toy>"]).ids.tolist() == [[49406, 320, 49408, 49407] + [0] * 36]
    assert from_folder(tmp_path, 20).length == 20


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"expected a tokenizer\.json, or a vocab\.json and a merges\.txt"):
        from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("i n")
    with pytest.raises(FileError, match="no JSON"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileError, match=r"tokenizer\.json is not understood"):
        from_folder(tmp_path)
