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
# What people say besides the thing, and no picture here shows: a network that has met them looks for the noun.
# fmt: off
CLAUSES = {
    "en": (
        "{} that is running", "{} which is standing still", "{} that jumps", "sleeping {}", "{} looking at me", "{} who is dancing", "a happy {}",
        "very {}", "{} with long hair", "{} with big eyes", "{} with four legs", "{} with a long tail", "{} with a handle", "{} with many colours",
        "{} on a table", "{} on the wall", "{} in a box", "{} in the house", "{} in my room", "{} in the forest", "{} in the city", "{} in the zoo",
        "{} in the kitchen", "{} at school", "{} at home", "{} from the market", "{} from the farm", "{} for dinner", "{} for my friend",
        "{} for children", "{} of my mother", "{} of the king", "{} in summer", "{} in winter", "{} in the morning", "{} today", "{} and nothing else",
        "fresh {}", "hot {}", "cold {}", "sweet {}", "tasty {}", "delicious {}", "old {}", "young {}", "shiny {}", "wooden {}", "fast {}", "slow {}",
        "tall {}", "round {}", "heavy {}", "dirty {}", "clean {}", "angry {}", "hungry {}", "tired {}", "brave {}", "wild {}", "friendly {}",
        "flying {}", "walking {}", "smiling {}", "open {}", "broken old {}", "the best {}", "another {}", "your {}", "his {}", "{} i like", "{} i saw",
        "{} playing", "{} eating", "{} made of paper", "{} full of water", "{} without anything", "{} from the side", "{} icon", "{} sticker",
        "{} drawn by a child", "something like {a}", "it is {a}", "can you draw {a}", "please make {a}", "a photo of {a}", "a cartoon of {a}",
    ),
    "ko": (
        "달리는 {}", "뛰어노는 {}", "자는 {}", "앉아 있는 {}", "서 있는 {}", "춤추는 {}", "웃고 있는 {}", "날아가는 {}", "걸어가는 {}", "먹고 있는 {}",
        "배고픈 {}", "화난 {}", "행복한 {}", "슬픈 {}", "용감한 {}", "친절한 {}", "똑똑한 {}", "빠른 {}", "느린 {}", "무거운 {}", "둥근 {}", "높은 {}",
        "오래된 {}", "새 {}", "깨끗한 {}", "더러운 {}", "반짝이는 {}", "신선한 {}", "뜨거운 {}", "차가운 {}", "달콤한 {}", "맛있는 {}", "매운 {}",
        "우리 집 {}", "내 {}", "친구의 {}", "엄마의 {}", "아이의 {}", "왕의 {}", "시장의 {}", "농장의 {}", "동물원의 {}", "숲속의 {}", "도시의 {}", "학교의 {}",
        "방 안의 {}", "부엌의 {}", "식탁 위의 {}", "상자 안의 {}", "여름의 {}", "겨울의 {}", "아침의 {}", "오늘의 {}", "나무로 만든 {}", "종이로 만든 {}",
        "꼬리가 긴 {}", "눈이 큰 {}", "다리가 긴 {}", "머리가 긴 {}", "손잡이가 있는 {}", "물이 가득한 {}", "내가 좋아하는 {}", "아이가 그린 {}", "아주 큰 {}",
        "정말 귀여운 {}", "가장 좋은 {}", "{subject} 달려요", "{subject} 자요", "{subject} 웃어요", "{subject} 놀고 있어요", "{subject} 먹는다",
        "{subject} 보인다", "{object} 좋아해요", "{object} 봤어요", "{object} 만들어 줘", "{} 아이콘", "{} 스티커", "{} 사진", "{} 만화", "{}처럼 생긴 것",
    ),
}
# fmt: on
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
