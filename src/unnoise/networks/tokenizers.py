"""Text to token ids, by Hugging Face's `tokenizers`: the published vocabularies of CLIP and T5, or a small one learnt from captions."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from unnoise.errors import ArgumentError, FileError

START, END = "<|startoftext|>", "<|endoftext|>"
T5_END, T5_PAD = "</s>", "<pad>"
T5_LENGTH = 256  # what diffusers gives Stable Diffusion 3
# CLIP splits text into words, single digits and runs of punctuation before it pairs bytes.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    ids: Tensor  # (b, length) int64: start, text, end, padding
    dropped: list[int]  # text tokens of each prompt that did not fit


class Tokenizer:
    """start + text + end, cut to `length` and padded with `pad` (the end token unless told otherwise). T5 has no start."""

    def __init__(self, pieces: tokenizers.Tokenizer, length: int, pad: int | None = None, *, start: str | None = START, end: str = END):
        self.pieces = pieces
        self.length = length
        self.start = None if start is None else _id(pieces, start)
        self.end = _id(pieces, end)
        self.pad = self.end if pad is None else pad
        self.words: dict[str, tuple[int, ...]] = {}

    @property
    def room(self) -> int:
        """Text tokens that fit: 75 of CLIP's 77."""
        return self.length - 1 - (self.start is not None)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        rows = [[id for group in groups for id in group] for groups in map(self.groups, texts)]
        ids = torch.tensor([self.row(row[: self.room]) for row in rows]).reshape(-1, self.length)
        return Tokens(ids, [max(0, len(row) - self.room) for row in rows])

    def row(self, ids: Sequence[int]) -> list[int]:
        """`length` ids from those of a text that fits."""
        row = [*ids, self.end] if self.start is None else [self.start, *ids, self.end]
        return row + [self.pad] * (self.length - len(row))

    def groups(self, text: str) -> list[tuple[int, ...]]:
        """The text's ids, grouped by what must stay together: one each, but all those of a word of `with_words`."""
        found, place = [], 0
        for match in self._pattern.finditer(text) if self.words else ():
            found += [*self._plain(text[place : match.start()]), list(self.words.values())[(match.lastindex or 0) - 1]]
            place = match.end()
        return [*found, *self._plain(text[place:])]

    def _plain(self, text: str) -> list[tuple[int, ...]]:
        return [(id,) for id in self.pieces.encode(text, add_special_tokens=False).ids]

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_whole, self.words)), re.IGNORECASE)

    def with_words(self, words: Mapping[str, Sequence[int]]) -> Tokenizer:
        """This tokenizer with further words: where a prompt has one, as a whole word in any case, these ids stand.

        For textual inversion the ids are those of rows below the token table: {"birb-style": [49408, 49409]} for two vectors.
        """
        for word, ids in words.items():
            if not word.strip() or not 0 < len(ids) <= self.room:
                raise ArgumentError(f"got the word {word!r} with {len(ids)} ids: expected a word and 1 to {self.room} ids")
        other = copy(self)
        joined = self.words | {word: tuple(ids) for word, ids in words.items()}
        other.words = dict(sorted(joined.items(), key=lambda item: -len(item[0])))  # the longest first: it is tried first
        return other

    def save(self, path: Path) -> None:
        self.pieces.save(str(path))


def _whole(word: str) -> str:
    """The pattern of a word that is no part of a longer one: a letter at its edge has no letter as neighbour; <this> may stand anywhere."""
    left, right = (r"\b" if re.match(r"\w", letter) else "" for letter in (word[0], word[-1]))
    return f"{left}({re.escape(word)}){right}"


def _id(pieces: tokenizers.Tokenizer, token: str) -> int:
    number = pieces.token_to_id(token)
    if number is None:
        raise FileError(f"the tokenizer has no {token}: expected one with CLIP's start and end tokens, or T5's end")
    return number


def read(path: Path, length: int) -> Tokenizer:
    """A tokenizer.json."""
    if not path.is_file():
        raise FileError(f"no tokenizer at {path}: expected a tokenizer.json")
    return Tokenizer(_from_file(path), length)


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise FileError(f"{path} is not understood: {error}") from None


def clip(vocab: dict[str, int], merges: list[tuple[str, str]], *, length: int = 77, pad: int | None = None) -> Tokenizer:
    """CLIP's byte-pair encoding from its published tables; pad 0 for OpenCLIP's towers (SD 2, SDXL's second encoder)."""
    model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END, fuse_unk=False)
    # as in the published files: upper case still names the start token, but not the end token
    return Tokenizer(_byte_pairs(model, AddedToken(START, normalized=True)), length, pad)


def published_clip(length: int = 77, pad: int | None = None) -> Tokenizer:
    """CLIP's tokenizer, from this package; pad 0 for OpenCLIP's towers."""
    return Tokenizer(_clip_pieces(), length, pad)


def published_t5(length: int = T5_LENGTH) -> Tokenizer:
    """The tokenizer of T5 v1.1, from this package."""
    return _t5(_t5_pieces(), length)


@cache
def _clip_pieces() -> tokenizers.Tokenizer:
    merges = _pairs(_packed("clip.merges.txt.gz"))
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]  # one for each byte; those without a glyph last
    entries = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    return clip({entry: i for i, entry in enumerate(entries)}, merges).pieces


@cache
def _t5_pieces() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(_packed("t5_v1_1.json.gz"))


def _packed(name: str) -> str:
    return gzip.decompress(resources.files("unnoise.networks").joinpath(f"vocab/{name}").read_bytes()).decode()


def _t5(pieces: tokenizers.Tokenizer, length: int) -> Tokenizer:
    return Tokenizer(pieces, length, _id(pieces, T5_PAD), start=None, end=T5_END)


def from_folder(folder: Path, length: int | None = None) -> Tokenizer:
    """A `tokenizer` folder of diffusers: tokenizer.json, or CLIP's vocab.json and merges.txt; added_tokens.json become words.

    length: unless given, the folder's model_max_length for CLIP, 256 for T5. Raises FileError.
    """
    known = _json(folder / "tokenizer_config.json") | _json(folder / "special_tokens_map.json")
    pieces = _folder_pieces(folder)
    if pieces.token_to_id(START) is None:
        return _t5(pieces, length or T5_LENGTH)
    longest = min(known.get("model_max_length", 77), 1 << 16)  # without a limit transformers writes 1e30
    pad = known.get("pad_token")
    tokenizer = Tokenizer(pieces, length or (77 if longest == 1 << 16 else longest), pad and _id(pieces, _name(pad)))
    added = _json(folder / "added_tokens.json")
    return tokenizer.with_words({word: [id] for word, id in added.items() if pieces.token_to_id(word) is None})


def _folder_pieces(folder: Path) -> tokenizers.Tokenizer:
    if (path := folder / "tokenizer.json").is_file():
        pieces = _from_file(path)
        pieces.no_padding()  # transformers writes the last call's cutting and padding into the file
        pieces.no_truncation()
        return pieces
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise FileError(f"no tokenizer in {folder}: expected a tokenizer.json, or a vocab.json and a merges.txt")
    return clip(_json(vocab), _pairs(merges.read_text(encoding="utf-8"))).pieces


def _pairs(lines: str) -> list[tuple[str, str]]:
    """The merges of a merges.txt; its first line may name the version."""
    split = (line.partition(" ") for line in lines.split("\n") if line and not line.startswith("#version"))
    return [(left, right) for left, _, right in split]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{path} is no JSON: {error}") from None


def _name(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


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
