"""How people write what they want to see, in English and Korean: articles, plurals, numbers, particles, and phrases around a name."""

from __future__ import annotations

import re

NUMBERS = {"en": {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}, "ko": {2: ("두", "2"), 3: ("세", "3"), 4: ("네", "4")}}
# fmt: off
# A thing by itself. {} is the name, {a} the name with its article.
SINGLE = {
    "en": (
        "{}", "{}", "{}", "{a}", "{a}", "{a}", "the {}", "{} emoji", "a picture of {a}", "draw {a}", "a drawing of {a}", "my {}", "one {}",
        "there is {a}", "i want {a}", "{a} please",
    ),
    "ko": (
        "{}", "{}", "{}", "{}", "{}", "{}", "{}", "{} 그림", "{} 이모지", "{} 하나", "{} 한 개", "{} 그려줘", "{subject} 있다", "{subject} 있어요",
        "{object} 그려 주세요", "{object} 보여줘", "{topic} 어디에", "{}의 모습",
    ),
}
# fmt: on
# Words that change nothing of the picture.
ADJECTIVES = {
    "en": ("cute", "big", "little", "small", "nice", "pretty", "beautiful", "new", "simple", "lovely", "large", "tiny", "funny"),
    "ko": ("귀여운", "작은", "큰", "커다란", "예쁜", "멋진", "좋은", "새로운", "간단한", "재미있는"),
}
AND = {"en": ("{a} and {b}", "{a} and {b}", "{a} with {b}", "{a} next to {b}", "{a}, {b}", "{a} beside {b}"), "ko": ()}
ABOVE = {
    "en": ("{a} above {b}", "{a} on top of {b}", "{a} over {b}"),
    "ko": ("{b} 위에 {a}", "{b} 위의 {a}", "{b} 위에 있는 {a}"),
}
BELOW = {"en": ("{b} below {a}", "{b} under {a}"), "ko": ("{a} 아래에 {b}", "{a} 밑에 {b}", "{a} 아래의 {b}")}
WEARING = {"en": ("{a} with {b}", "{a} wearing {b}", "{a} in {b}"), "ko": ("{b}{ul} 쓴 {a}", "{b}{ul} 쓰고 있는 {a}")}
COLOURED = {
    "en": ("{} on {colour}", "{} on a {colour} background", "{} with a {colour} background", "{} against {colour}"),
    "ko": ("{colour} 배경의 {}", "{colour} 배경에 {}", "{colour} 바탕에 {}"),
}
PLACED: dict[str, dict[str, tuple[str, ...]]] = {
    "hill": {"en": ("{} on a hill", "{} on the hill"), "ko": ("언덕 위의 {}", "언덕에 있는 {}")},
    "grass": {"en": ("{} on the grass", "{} in a field", "{} in the meadow"), "ko": ("풀밭의 {}", "풀밭 위의 {}", "들판의 {}")},
    "snow": {"en": ("{} in the snow", "{} on the snow"), "ko": ("눈밭의 {}", "눈 속의 {}")},
    "sand": {"en": ("{} on the sand", "{} at the beach", "{} in the desert"), "ko": ("모래 위의 {}", "바닷가의 {}", "사막의 {}")},
    "sea": {"en": ("{} in the sea", "{} on the water", "{} in the ocean"), "ko": ("바다의 {}", "물 위의 {}", "바다에 있는 {}")},
    "sky": {"en": ("{} in the sky", "{} in the air"), "ko": ("하늘의 {}", "하늘에 있는 {}")},
    "night": {"en": ("{} at night", "{} in the dark"), "ko": ("밤의 {}", "밤하늘의 {}", "어둠 속의 {}")},
}
_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "ox": "oxen", "man": "men", "woman": "women", "tooth": "teeth", "knife": "knives", "wolf": "wolves",
    "leaf": "leaves", "loaf": "loaves", "fish": "fish", "sheep": "sheep", "deer": "deer", "shrimp": "shrimp", "die": "dice", "scarf": "scarves",
    "policeman": "policemen", "fireman": "firemen", "snowman": "snowmen", "spaceman": "spacemen", "potato": "potatoes", "tomato": "tomatoes",
    "mango": "mangoes", "volcano": "volcanoes",
}  # fmt: skip
# "a slice of pizza": the plural is the first word's.
_OF = re.compile(r"^(\w+)( of .+)$")


def is_plural(noun: str) -> bool:
    """Whether an English noun has no article: "grapes", "scissors"."""
    return bool(re.search(r"[^su]s$", noun)) and not noun.endswith(("is", "lens", "bus", "ss"))


def with_article(noun: str) -> str:
    """ "apple" -> "an apple"; "grapes" stays."""
    if is_plural(noun):
        return noun
    return ("an " if re.match(r"[aeio]|u(?!n[iu]|f|k|s)", noun, re.IGNORECASE) else "a ") + noun


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
    """One of SINGLE around a name of either language."""
    marked = {"subject": particle(name, "이", "가"), "object": particle(name, "을", "를"), "topic": particle(name, "은", "는")}
    return form.format(name, a=with_article(name), **marked)
