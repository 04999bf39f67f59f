"""BERT's tokens: words of the uncased vocabulary, cut into the longest pieces that it has (WordPiece; Devlin et al. 2019)."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from unnoise.errors import FileError
from unnoise.networks.tokenizers import Tokens

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class WordPiece:
    """[CLS] text [SEP], cut to `length` and padded with [PAD]: what `Tokenizer` is for CLIP."""

    def __init__(self, pieces: tokenizers.Tokenizer, length: int):
        self.pieces, self.length = pieces, length
        self.pad, self.start, self.end = (_id(pieces, token) for token in (PAD, START, END))

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
        raise FileError(f"the tokenizer has no {token}: expected one with BERT's special tokens")
    return number


def bert(words: Iterable[str] | None = None, *, length: int = 77) -> WordPiece:
    """BERT's uncased tokenizer; `words` are the lines of a vocab.txt, the published one where None."""
    vocab = {word: i for i, word in enumerate(_published() if words is None else words)}
    pieces = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token=UNKNOWN))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    pieces.add_special_tokens([token for token in (PAD, UNKNOWN, START, END, "[MASK]") if token in vocab])
    return WordPiece(pieces, length)


def _published() -> list[str]:
    packed = resources.files("unnoise.networks").joinpath("vocab/bert_uncased.txt.gz").read_bytes()
    return _lines(gzip.decompress(packed).decode())


def read(path: Path, length: int = 77) -> WordPiece:
    """A vocab.txt, one word a line, or a tokenizer.json."""
    if not path.is_file():
        raise FileError(f"no tokenizer at {path}: expected a vocab.txt or a tokenizer.json")
    if path.suffix == ".json":
        return WordPiece(tokenizers.Tokenizer.from_file(str(path)), length)
    return bert(_lines(path.read_text(encoding="utf-8")), length=length)


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")
