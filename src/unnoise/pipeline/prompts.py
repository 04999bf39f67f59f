"""What people write into prompts beside words: weights, breaks, LoRA tags; and prompts longer than a text encoder reads at once.

The syntax is that of AUTOMATIC1111's web UI, which files on the web are written for:

    (x)  1.1 times        (x:1.3)  1.3 times        \\( \\) \\[ \\] \\\\  the letter itself
    [x]  1/1.1 times      BREAK    a new chunk       <lora:name:0.8>  no text: a LoRA and its weight

Weights multiply where brackets nest. A bracket left open closes at the end; one that closes nothing is text. A BREAK whose own weight
brackets change is text too, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unnoise.errors import ArgumentError
from unnoise.networks.tokenizers import Tokenizer

ROUND, SQUARE = 1.1, 1 / 1.1
BREAK = "BREAK"
COMMAS = (",</w>", ",")  # the entry in CLIP's vocabulary, in T5's

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_MARKS = re.compile(rf"\\(?P<escaped>[()\[\]\\]?)|:\s*(?P<weight>{_NUMBER})\s*\)|(?P<mark>[()\[\]])|(?P<text>:|[^\\()\[\]:]+)")
_BREAK = re.compile(rf"\s*\b{BREAK}\b\s*")
_LORA = re.compile(r"<(?:lora|lyco):([^:>]*)((?::[^>]*)?)>")


class Piece(NamedTuple):
    text: str
    weight: float


class LoraTag(NamedTuple):
    name: str
    weight: float


class Chunked(NamedTuple):
    """A prompt in k rows of the tokenizer's length. The states of the rows are joined along the token axis; none is dropped."""

    ids: Tensor  # (k, length) int64
    weights: Tensor  # (k, length) float32; 1 for start, end and padding
    tokens: int  # of text, without start, end and padding


def parse(prompt: str) -> list[Piece]:
    """The prompt's text with its weights, at least one piece; equal neighbours are one. BREAK is Piece("BREAK", -1)."""
    pieces: list[list] = []  # [text, weight]
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where brackets of each kind began: the kinds may overlap
    for match in _MARKS.finditer(prompt):
        mark, weight = match["mark"], match["weight"]
        if mark in opened:
            opened[mark].append(len(pieces))
        elif weight and opened["("]:
            _scale(pieces, opened["("].pop(), float(weight))
        elif mark == ")" and opened["("]:
            _scale(pieces, opened["("].pop(), ROUND)
        elif mark == "]" and opened["["]:
            _scale(pieces, opened["["].pop(), SQUARE)
        elif match["escaped"] is not None:
            pieces.append([match["escaped"], 1.0])  # a backslash before any other letter is nothing
        else:
            pieces += _breaks(match[0])
    for kind, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[kind]:
            _scale(pieces, start, factor)
    return _joined(pieces)


def _scale(pieces: list[list], start: int, factor: float) -> None:
    for piece in pieces[start:]:
        piece[1] *= factor


def _breaks(text: str) -> list[list]:
    first, *others = _BREAK.split(text)
    return [[first, 1.0], *(piece for other in others for piece in ([BREAK, -1], [other, 1.0]))]


def _joined(pieces: list[list]) -> list[Piece]:
    joined: list[Piece] = []
    for text, weight in pieces or [["", 1.0]]:
        if joined and joined[-1].weight == weight:
            joined[-1] = Piece(joined[-1].text + text, weight)
        else:
            joined.append(Piece(text, weight))
    return joined


def loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its <lora:name:weight> tags, and the tags in order; the weight is 1 where none is given.

    Raises ArgumentError for a tag without a name or with a weight that is no number.
    """
    tags = [_tag(match) for match in _LORA.finditer(prompt)]
    return (_LORA.sub("", prompt).strip() if tags else prompt), tags


def _tag(match: re.Match[str]) -> LoraTag:
    name, weight = match[1].strip(), match[2].removeprefix(":").strip() or "1"
    if not name or not re.fullmatch(_NUMBER, weight):
        raise ArgumentError(f"got {match[0]!r} in the prompt: expected <lora:name> or <lora:name:weight> with a number")
    return LoraTag(name, float(weight))


def chunk(pieces: Sequence[Piece], tokenizer: Tokenizer, backtrack: int = 20) -> Chunked:
    """The pieces in rows of the tokenizer's length, 75 tokens of text each for CLIP.

    Where a row is full and a comma lies at most `backtrack` tokens back, what follows the comma goes to the next row; 0 cuts at the
    token. BREAK begins a new row. The vectors of an embedding stay in one row. One piece without a weight gives the tokenizer's own ids.
    """
    comma = next((id for id in map(tokenizer.pieces.token_to_id, COMMAS) if id is not None), None)
    rows: list[list[_Group]] = [[]]
    for group in _groups(pieces, tokenizer):
        if group is None:
            rows.append([])
            continue
        if (used := _size(rows[-1])) + len(group.ids) > tokenizer.room:
            full = used == tokenizer.room and group.ids != (comma,)
            keep = _cut(rows[-1], comma, backtrack) if full else len(rows[-1])
            rows[-1:] = [rows[-1][:keep], rows[-1][keep:]]
            if _size(rows[-1]) + len(group.ids) > tokenizer.room:  # what came along leaves an embedding no room
                rows.append([])
        rows[-1].append(group)
    if len(rows) > 1 and not rows[-1]:
        rows.pop()
    return _tensors(rows, tokenizer)


class _Group(NamedTuple):
    ids: tuple[int, ...]
    weight: float


def _groups(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Iterator[_Group | None]:
    for piece in pieces:
        if piece == (BREAK, -1):
            yield None
        else:
            yield from (_Group(ids, piece.weight) for ids in tokenizer.groups(piece.text))


def _size(row: Sequence[_Group]) -> int:
    return sum(len(group.ids) for group in row)


def _cut(row: Sequence[_Group], comma: int | None, backtrack: int) -> int:
    """How many groups of a full row stay in it."""
    last = max((i for i, group in enumerate(row) if group.ids == (comma,)), default=None)
    return last + 1 if last is not None and _size(row[last:]) <= backtrack else len(row)


def _tensors(rows: Sequence[Sequence[_Group]], tokenizer: Tokenizer) -> Chunked:
    ids = torch.tensor([tokenizer.row([id for group in row for id in group.ids]) for row in rows])
    weights = torch.ones(ids.shape)
    first = int(tokenizer.start is not None)
    for into, row in zip(weights, rows, strict=True):
        of_text = [group.weight for group in row for _ in group.ids]
        into[first : first + len(of_text)] = torch.tensor(of_text)
    return Chunked(ids, weights, sum(map(_size, rows)))


def weighted(states: Tensor, weights: Tensor) -> Tensor:
    """Text states with each token's state multiplied by its weight, and the row then scaled back to its old mean.

    states (k, n, width) as the denoiser reads them, of one encoder; weights (k, n). A pooled vector has no weights. This is A1111's way
    ("Original" emphasis): the weighted tokens stand out against the others while the context keeps the level that the denoiser was trained
    on. The mean is each row's own, so that a prompt does not depend on its batch-mates. It is no norm: weights far from 1 can bring it near
    0, and then the row grows without bound. Weights of 1 change no bit.
    """
    if (weights == 1).all():
        return states
    full = states.float()
    emphasised = full * weights.to(full)[..., None]
    before, after = (x.mean(dim=(1, 2), keepdim=True) for x in (full, emphasised))
    return (emphasised * (before / after)).to(states.dtype)
