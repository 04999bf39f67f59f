"""Prompt syntax against recordings made by A1111's rules; chunks, LoRA tags, and what weights do to states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unnoise.errors import ArgumentError
from unnoise.networks.tokenizers import Tokenizer, published_clip, published_t5
from unnoise.pipeline.prompts import BREAK, Chunked, LoraTag, Piece, chunk, loras, parse, weighted


def recorded(shared: Path, name: str) -> list[dict]:
    return json.loads((shared / "golden/tokenizer" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return published_clip()


def test_weights_as_recorded(shared: Path) -> None:
    prompts = recorded(shared, "weights.json")
    assert len(prompts) == 43
    for item in prompts:
        assert [list(piece) for piece in parse(item["prompt"])] == item["parsed"], item["prompt"]


def test_chunks_as_recorded(shared: Path, tokenizer: Tokenizer) -> None:
    prompts = recorded(shared, "chunks.json")
    assert {item["comma_padding_backtrack"] for item in prompts} == {0, 20}
    for item in prompts:
        mine = chunk(parse(item["prompt"]), tokenizer, item["comma_padding_backtrack"])
        assert mine.ids.tolist() == [one["tokens"] for one in item["chunks"]], item["prompt"]
        assert mine.weights.equal(torch.tensor([one["weights"] for one in item["chunks"]])), item["prompt"]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("(a (b:1.5)", [("a ", 1.1), ("b", 1.5 * 1.1)]),
        ("(x:1.2.3)", [("x:1.2.3", 1.1)]),  # no number
        ("(a:1.2]b)", [("a:1.2]b", 1.1)]),
        ("[a:1.2)", [("a:1.2)", 1 / 1.1)]),  # closes no round bracket
        ("([a)b]", [("a", 1.1 * (1 / 1.1)), ("b", 1 / 1.1)]),  # kinds of brackets overlap
        (r"a\\(b)", [("a\\", 1.0), ("b", 1.1)]),
        (r"a\b", [("ab", 1.0)]),
    ],
)
def test_odd_brackets(prompt: str, pieces: list[tuple[str, float]]) -> None:
    assert [(piece.text, pytest.approx(piece.weight)) for piece in parse(prompt)] == pieces


def test_a_plain_prompt_has_the_plain_ids(shared: Path, tokenizer: Tokenizer) -> None:
    """Sameness with diffusers, which knows no weights."""
    plain = [item["text"] for item in recorded(shared, "tokens.json") if not set(item["text"]) & set("()[]\\")]
    short = [text for text in plain if tokenizer([text]).dropped == [0]]
    assert len(short) > 40
    for text in short:
        mine = chunk(parse(text), tokenizer)
        assert mine.ids.equal(tokenizer([text]).ids)
        assert mine.weights.equal(torch.ones(1, 77))


def test_no_token_is_dropped(tokenizer: Tokenizer) -> None:
    words = " ".join(f"word{i}," for i in range(200))
    ids = [id for group in tokenizer.groups(words) for id in group]
    for backtrack in (0, 1, 20, 75):
        mine = chunk(parse(words), tokenizer, backtrack)
        kept = [id for row in mine.ids.tolist() for id in row if id < tokenizer.start]
        assert kept == ids
        assert mine.tokens == len(ids)


@pytest.mark.parametrize(("prompt", "rows"), [("", 1), (BREAK, 1), (f"a {BREAK}", 1), (f"{BREAK} a", 2), (f"a {BREAK} {BREAK} b", 3)])
def test_breaks(tokenizer: Tokenizer, prompt: str, rows: int) -> None:
    assert len(chunk(parse(prompt), tokenizer).ids) == rows


def test_an_embedding_takes_its_places_together(tokenizer: Tokenizer) -> None:
    vectors = [49408, 49409, 49410]
    known = tokenizer.with_words({"birb-style": vectors})
    mine = chunk(parse("a (Birb-Style:1.5) cat"), known)
    assert mine.ids[0, :7].tolist() == [49406, 320, *vectors, 2368, 49407]
    assert mine.weights[0, :7].tolist() == [1, 1, 1.5, 1.5, 1.5, 1, 1]
    long = chunk(parse("x " * 73 + "birb-style"), known)  # two places are left
    assert long.ids.shape == (2, 77)
    assert long.ids[0, 74:].tolist() == [49407] * 3
    assert long.ids[1, :5].tolist() == [49406, *vectors, 49407]
    assert long.tokens == 76


def test_what_a_comma_brings_along_may_leave_an_embedding_no_room(tokenizer: Tokenizer) -> None:
    known = tokenizer.with_words({"big": range(49408, 49408 + 70)})
    mine = chunk(parse("x " * 64 + "," + " x" * 10 + " big"), known)
    assert [(row == 49407).int().argmax().item() - 1 for row in mine.ids] == [65, 10, 70]


def test_t5_has_chunks_too() -> None:
    tokenizer = published_t5(length=10)
    mine = chunk(parse("(apple:1.2) " + "pie " * 12), tokenizer)
    assert mine.ids.shape == (2, 10)
    assert mine.weights[0, 0] == pytest.approx(1.2)
    assert (mine.weights[:, 1:] == 1).all()
    assert mine.ids[0, -1] == tokenizer.end


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        (" a cat ", " a cat ", []),  # nothing taken out, nothing changed
        ("a cat <lora:birb-v2:0.8>", "a cat", [("birb-v2", 0.8)]),
        ("<lora:one>a <lyco:two words:-.5>cat", "a cat", [("one", 1.0), ("two words", -0.5)]),
        ("a <lora> <b:1>", "a <lora> <b:1>", []),
    ],
)
def test_lora_tags(prompt: str, text: str, tags: list[tuple[str, float]]) -> None:
    assert loras(prompt) == (text, [LoraTag(*tag) for tag in tags])


@pytest.mark.parametrize("prompt", ["<lora:>", "<lora:x:much>", "<lora:x:0.8:0.6>"])
def test_a_lora_tag_that_is_not_understood_is_refused(prompt: str) -> None:
    with pytest.raises(ArgumentError, match="lora:name:weight"):
        loras(f"a {prompt} b")


def test_weighted_states_keep_their_mean() -> None:
    """A1111: z * w, then * mean(z) / mean(z w), row by row."""
    states, weights = torch.randn(2, 5, 8) + 0.3, torch.ones(2, 5)
    weights[0, 2] = 1.4
    mine = weighted(states, weights)
    torch.testing.assert_close(mine.mean(dim=(1, 2)), states.mean(dim=(1, 2)))
    product = states[0] * weights[0][:, None]
    torch.testing.assert_close(mine[0], product * states[0].mean() / product.mean())
    torch.testing.assert_close(mine[0, 2] / mine[0, 1] / (states[0, 2] / states[0, 1]), torch.full((8,), 1.4))
    assert mine[1].equal(states[1])  # a batch-mate's weights are its own


def test_weights_of_one_change_no_bit() -> None:
    states = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    assert weighted(states, torch.ones(2, 5)).equal(states)
    assert weighted(states, torch.full((2, 5), 1.1)).dtype == torch.bfloat16


def test_pieces_of_one_weight_are_one() -> None:
    assert parse("(a)(b) (c:1.0)d") == [Piece("ab", 1.1), Piece(" cd", 1.0)]
    assert isinstance(chunk(parse("a"), published_clip()), Chunked)
