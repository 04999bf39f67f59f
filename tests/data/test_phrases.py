"""Articles, plurals and particles, by lists that any grammar has."""

from __future__ import annotations

import pytest

from unnoise.data import phrases, scenes


@pytest.mark.parametrize(
    "one, many",
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("bus", "buses"),
        ("cherry", "cherries"),
        ("key", "keys"),
        ("mouse", "mice"),
        ("polar bear", "polar bears"),
        ("police officer", "police officers"),
        ("old woman", "old women"),
        ("slice of pizza", "slices of pizza"),
        ("cup with a straw", "cups with a straw"),
        ("fish", "fish"),
        ("pufferfish", "pufferfish"),
        ("glasses", "glasses"),
        ("dress", "dresses"),
        ("octopus", "octopuses"),
        ("tooth", "teeth"),
    ],
)
def test_plurals(one, many):
    assert phrases.plural(one) == many


@pytest.mark.parametrize(
    "noun, expected",
    [
        ("apple", "an apple"),
        ("house", "a house"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("ufo", "a ufo"),
        ("grapes", "grapes"),
        ("cactus", "a cactus"),
        ("bus", "a bus"),
        ("compass", "a compass"),
        ("eggplant", "an eggplant"),
        ("purple eggplant", "a purple eggplant"),
        ("hourglass", "an hourglass"),
        ("european flag", "a european flag"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
    ],
)
def test_articles(noun, expected):
    assert phrases.with_article(noun) == expected


def test_particles_follow_the_last_syllable():
    assert [phrases.particle(word, "과", "와") for word in ("곰", "개", "사자", "달", "atm")] == ["곰과", "개와", "사자와", "달과", "atm와"]
    assert phrases.single("{subject} 있다", "곰") == "곰이 있다" and phrases.single("{object} 보여줘", "개") == "개를 보여줘"


def test_every_form_takes_a_name():
    for kind in ("single", "clause", *scenes.GROUNDS):
        for language in ("en", "ko"):
            forms = phrases.forms(kind, language)
            assert forms and all("곰" in phrases.single(form, "곰") for form in forms), (kind, language)
    assert all("{a}" in form and "{b}" in form for kind in ("above", "below", "wearing") for form in phrases.forms(kind, "en"))
    assert phrases.forms("single", "en").count("{}") == 3  # a form with times 3 is drawn three times as often
