"""Text to token ids, by Hugging Face's `tokenizers`: CLIP's published vocabulary, or a small one learnt from captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from unnoise.errors import ArgumentError, FileError

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP splits text into words, single digits and runs of punctuation before it pairs bytes.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    ids: Tensor  # (b, length) int64: start, text, end, padding
    dropped: list[int]  # text tokens of each prompt that did not fit


class Tokenizer:
    """start + text + end, cut to `length` and padded with `pad` (the end token unless told otherwise)."""

    def __init__(self, pieces: tokenizers.Tokenizer, length: int, pad: int | None = None):
        self.pieces = pieces
        self.length = length
        self.start, self.end = (_id(pieces, token) for token in (START, END))
        self.pad = self.end if pad is None else pad

    def __call__(self, texts: Sequence[str]) -> Tokens:
        rows, dropped = [], []
        for encoding in self.pieces.encode_batch(list(texts), add_special_tokens=False):
            text = encoding.ids[: self.length - 2]
            row = [self.start, *text, self.end]
            rows.append(row + [self.pad] * (self.length - len(row)))
            dropped.append(len(encoding.ids) - len(text))
        return Tokens(torch.tensor(rows), dropped)

    def save(self, path: Path) -> None:
        self.pieces.save(str(path))


def _id(pieces: tokenizers.Tokenizer, token: str) -> int:
    number = pieces.token_to_id(token)
    if number is None:
        raise FileError(f"the tokenizer has no {token}: expected one with CLIP's start and end tokens")
    return number


def read(path: Path, length: int) -> Tokenizer:
    """A tokenizer.json."""
    if not path.is_file():
        raise FileError(f"no tokenizer at {path}: expected a tokenizer.json")
    return Tokenizer(tokenizers.Tokenizer.from_file(str(path)), length)


def clip(vocab: dict[str, int], merges: list[tuple[str, str]], *, length: int = 77, pad: int | None = None) -> Tokenizer:
    """CLIP's byte-pair encoding from its published tables; pad 0 for OpenCLIP's towers (SD 2, SDXL's second encoder)."""
    model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END, fuse_unk=False)
    # as in the published files: upper case still names the start token, but not the end token
    return Tokenizer(_byte_pairs(model, AddedToken(START, normalized=True)), length, pad)


def learn(texts: Iterable[str], *, vocab: int, length: int) -> Tokenizer:
    """A new vocabulary of at most `vocab` entries, learnt from these texts by the same rules as CLIP's.

    Every byte has an entry of its own, inside a word and at its end, so that no text is lost; merges come after them.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = [START, END, *letters, *(letter + "</w>" for letter in letters)]
    if vocab < len(fixed):
        raise ArgumentError(f"got vocab {vocab}: expected at least {len(fixed)}, two for each byte and the start and end")
    rough = _byte_pairs(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=fixed, end_of_word_suffix="</w>", show_progress=False)
    rough.train_from_iterator(texts, trainer)
    learnt = json.loads(rough.to_str())["model"]
    # built anew from its tables: in the trained one every letter would be a special token
    model = models.BPE(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]], end_of_word_suffix="</w>")
    return Tokenizer(_byte_pairs(model), length)


def _byte_pairs(model: models.BPE, start: str | AddedToken = START) -> tokenizers.Tokenizer:
    pieces = tokenizers.Tokenizer(model)
    pieces.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    pieces.decoder = decoders.ByteLevel()
    pieces.add_special_tokens([start, END])
    return pieces
