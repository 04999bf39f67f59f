"""What each emoji is called as people speak: its names, its keywords and, for common things, its nouns.

Two tables lie beside this file. `emoji_words.tsv` is derived from Unicode CLDR (Unicode licence) by scripts/emoji_words.py.
`emoji_nouns.tsv` is written by hand: the everyday nouns of common things in English and Korean, and the Korean counter word.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from unnoise.data import emoji

RARE = 10  # a keyword of more pictures than this names none of them: "animal", "food"


@dataclass(frozen=True)
class Names:
    """The words of one emoji in one language."""

    names: tuple[str, ...]  # each names this emoji by itself: "automobile"
    nouns: tuple[str, ...]  # everyday nouns, for common things only: "car"
    keywords: tuple[tuple[str, float], ...]  # words shared with few other emoji, and their weights
    hints: tuple[str, ...]  # words shared with many: said beside a name only


@dataclass(frozen=True)
class Thing:
    """One emoji: its code as in `emoji.Entry`, CLDR's kind such as "animal-mammal", its words by language, its Korean counter."""

    code: str
    kind: str
    words: dict[str, Names] = field(repr=False)
    counter: str = "개"

    @property
    def common(self) -> bool:
        """Whether it has everyday nouns, and so can be counted, painted and put beside another thing."""
        return bool(self.words["en"].nouns) and "flag" not in self.kind


def things(entries: list[emoji.Entry]) -> list[Thing]:
    """One Thing for each entry, in the same order."""
    keywords, nouns = _table("emoji_words.tsv"), {_code(row["emoji"]): row for row in _table("emoji_nouns.tsv").values()}
    counts = {language: _counts(keywords, language) for language in emoji.LANGUAGES}
    found = []
    for entry in entries:
        row, noun = keywords[entry.code], nouns.get(entry.code, {})
        words = {
            language: _names(entry.captions[language], _split(noun.get(language, "")), _split(row[language]), counts[language])
            for language in emoji.LANGUAGES
        }
        found.append(Thing(entry.code, row["kind"], words, noun.get("counter", "개")))
    return found


def _names(captions: tuple[str, ...], nouns: tuple[str, ...], listed: tuple[str, ...], counts: Counter[str]) -> Names:
    """`listed`: CLDR's short name, then its keywords."""
    names = tuple(dict.fromkeys([*captions, *listed[:1], *nouns]))
    others = [word for word in listed[1:] if word not in names]
    rare = tuple((word, 1 / counts[word]) for word in others if counts[word] <= RARE)
    return Names(names, nouns, rare, tuple(word for word in others if counts[word] > RARE))


def _counts(rows: dict[str, dict[str, str]], language: str) -> Counter[str]:
    return Counter(word for row in rows.values() for word in _split(row[language])[1:])


def _split(words: str) -> tuple[str, ...]:
    return tuple(word for word in words.split(";") if word)


def _code(text: str) -> str:
    return "-".join(f"{ord(char):x}" for char in text if char != "\ufe0f")


@cache
def _table(name: str) -> dict[str, dict[str, str]]:
    """Rows of a table of this package by their first column."""
    head, *lines = resources.files("unnoise.data").joinpath(name).read_text(encoding="utf-8").splitlines()
    columns = head.split("\t")
    rows = (dict(zip(columns, line.split("\t"), strict=True)) for line in lines)
    return {row[columns[0]]: row for row in rows}
