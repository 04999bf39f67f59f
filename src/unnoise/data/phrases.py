"""How people write what they want to see, in English and Korean: articles, plurals, numbers, particles, and phrases around a name.

The phrases stand in `emoji_phrases.tsv`: their kind, language and form, and how many times as often as another one a form is drawn.
"single" is a thing by itself; "clause" says something that no picture here shows, so that a network that has met many of them looks for
the noun; "adjective" changes nothing of the picture; "hill" to "night" are grounds of scenes.py. In a form {} is a name, {a} a name with
its article, {subject}, {object} and {topic} a Korean name with its particle.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

NUMBERS = {"en": {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}, "ko": {2: ("두", "2"), 3: ("세", "3"), 4: ("네", "4")}}
# English nouns whose plural is not regular, each with its plural.
_IRREGULAR_PAIRS = (
    "mouse:mice goose:geese ox:oxen tooth:teeth die:dice man:men woman:women policeman:policemen fireman:firemen snowman:snowmen "
    "spaceman:spacemen knife:knives wolf:wolves leaf:leaves loaf:loaves scarf:scarves sheep:sheep deer:deer shrimp:shrimp "
    "potato:potatoes tomato:tomatoes mango:mangoes volcano:volcanoes"
)
_IRREGULAR: dict[str, str] = {one: many for one, _, many in (pair.partition(":") for pair in _IRREGULAR_PAIRS.split())}
# "slice of pizza", "house with garden": the plural is the first part's.
_OF = re.compile(r"^(.+?)( (?:of|with|in|on) .+)$")
_AN = re.compile(r"hour|(?!eu|one\b|uni|ufo|use|uk\b|usa\b)[aeiou]", re.IGNORECASE)


@cache
def forms(kind: str, language: str) -> tuple[str, ...]:
    """The forms of a kind, each as many times as it counts."""
    found = []
    for line in resources.files("unnoise.data").joinpath("emoji_phrases.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        row_kind, row_language, times, form = line.split("\t")
        if (row_kind, row_language) == (kind, language):
            found += [form] * int(times)
    return tuple(found)


def is_plural(noun: str) -> bool:
    """Whether an English noun has no article: "grapes", "scissors"."""
    return bool(re.search(r"[^su]s$", noun)) and not noun.endswith(("is", "lens", "bus", "ss"))


def with_article(noun: str) -> str:
    """ "apple" -> "an apple"; "grapes" stays."""
    if is_plural(noun):
        return noun
    return ("an " if _AN.match(noun) else "a ") + noun


def plural(noun: str) -> str:
    """ "fox" -> "foxes", "slice of pizza" -> "slices of pizza"."""
    if of := _OF.match(noun):
        return plural(of[1]) + of[2]
    head, space, last = noun.rpartition(" ")
    if is_plural(last):
        return noun
    if last.endswith("fish"):
        return noun
    if last not in _IRREGULAR:
        stem = re.sub(r"(?<=[^aeiou])y$", "ie", last)
        return head + space + stem + ("es" if re.search(r"(s|x|z|ch|sh)$", stem) else "s")
    return head + space + _IRREGULAR[last]


def ends_in_consonant(word: str) -> bool:
    """Whether the last syllable of a Korean word is closed, which chooses its particles."""
    return "가" <= word[-1:] <= "힣" and (ord(word[-1]) - ord("가")) % 28 > 0


def particle(word: str, closed: str, open_: str) -> str:
    """The word with the particle that fits its end: particle("곰", "과", "와") -> "곰과"."""
    return word + (closed if ends_in_consonant(word) else open_)


def single(form: str, name: str) -> str:
    """A form of "single" or "clause" around a name of either language."""
    marked = {"subject": particle(name, "이", "가"), "object": particle(name, "을", "를"), "topic": particle(name, "은", "는")}
    return form.format(name, a=with_article(name), **marked)
