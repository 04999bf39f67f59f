"""The words of every emoji: what they were derived from, and what they must have."""

from __future__ import annotations

import pytest

from unnoise.data import emoji, words


@pytest.fixture(scope="module")
def things() -> dict[str, words.Thing]:
    return {thing.code: thing for thing in words.things(emoji.entries())}


def test_every_emoji_has_a_name_in_both_languages(things):
    assert list(things) == [entry.code for entry in emoji.entries()]
    assert all(thing.words[language].names for thing in things.values() for language in emoji.LANGUAGES)


def test_what_people_say(things):
    said = {
        "1f697": ("car", "자동차"),
        "1f436": ("puppy", "강아지"),
        "2708": ("airplane", "비행기"),
        "1f1f0-1f1f7": ("korean flag", "태극기"),
    }
    for code, (english, korean) in said.items():
        words = things[code].words
        assert english in words["en"].names and korean in words["ko"].names, code
    assert "태극기" in things["1f1f0-1f1f7"].words["ko"].nouns and not things["1f1f0-1f1f7"].common


def test_keywords_that_many_share_are_hints(things):
    cat = things["1f408"].words["en"]
    assert "animal" in cat.hints and "animal" not in dict(cat.keywords)
    rare = {word for thing in things.values() for word, _ in thing.words["en"].keywords}
    assert rare and not rare & {"animal", "food", "face", "flag"}
    assert all(0 < weight <= 1 for thing in things.values() for _, weight in thing.words["ko"].keywords)


def test_common_things_have_a_noun_and_a_counter_in_both_languages(things):
    common = [thing for thing in things.values() if thing.common]
    assert len(common) > 400
    for thing in common:
        assert thing.words["en"].nouns and thing.words["ko"].nouns and thing.counter, thing
    assert {things[code].counter for code in ("1f408", "1f697", "1f333", "1f4d5", "1f34e")} == {"마리", "대", "그루", "권", "개"}


def test_every_row_of_the_tables_is_an_emoji(things):
    nouns = words._table("emoji_nouns.tsv")
    assert {words._code(row["emoji"]) for row in nouns.values()} <= things.keys()
    assert set(words._table("emoji_words.tsv")) == things.keys()
