"""Composed captions say what their scene shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from unnoise.data import colours, emoji_scenes, phrases, scenes
from unnoise.data.compose import SHARES, Composer


@pytest.fixture(scope="module")
def compose() -> Composer:
    return emoji_scenes.composer()


@pytest.fixture(scope="module")
def drawn(compose) -> list[tuple[scenes.Scene, str]]:
    random = np.random.default_rng(3)
    return [compose(number % len(compose.things), random) for number in range(6000)]


def test_shares_are_kept(drawn):
    sizes = Counter(len(scene.things) for scene, _ in drawn)
    assert sum(SHARES.values()) == pytest.approx(1)
    assert sizes[1] / len(drawn) == pytest.approx(SHARES["single"] + SHARES["painted"] + SHARES["placed"], abs=0.03)
    korean = sum(any("가" <= letter <= "힣" for letter in caption) for _, caption in drawn)
    assert korean / len(drawn) == pytest.approx(0.5, abs=0.03)


def test_colours_are_named(drawn):
    for scene, caption in drawn:
        named = {thing.colour for thing in scene.things if thing.colour}
        named |= {scene.ground} & colours.COLOURS.keys() if scene.ground else set()
        for colour in named:
            words = [word for group in colours.COLOURS[colour].words.values() for word in group]
            assert any(word in caption for word in words), (scene, caption)


def test_numbers_are_named(compose, drawn):
    seen = Counter()
    for scene, caption in drawn:
        indices = {thing.index for thing in scene.things}
        boxes = tuple(thing.box for thing in scene.things)
        if len(indices) == 1 and len(boxes) > 1 and boxes == scenes.LAYOUTS[len(boxes)]:
            words = [word for language in phrases.NUMBERS.values() for word in language[len(boxes)]]
            if any(word in caption for word in words):
                seen[len(boxes)] += 1
    assert all(seen[number] > 50 for number in (2, 3, 4)), seen


def test_what_is_above_is_named_above(compose):
    random, found = np.random.default_rng(0), 0
    for _ in range(400):
        placed, caption = compose._stacked("en", random)
        upper, lower = (compose.things[thing.index].words["en"].nouns for thing in placed)
        if " above " in caption or " on top of " in caption or " over " in caption:
            first = caption.replace(" on top of ", " above ").replace(" over ", " above ").split(" above ")[0]
            found += 1
            assert placed[0].colour or any(first.endswith(noun) for noun in upper), (caption, upper, lower)
        assert placed[0].box[1] < placed[1].box[1]
    assert found > 100


def test_excluded_captions_are_never_drawn(drawn):
    excluded = frozenset(caption.lower() for _, caption in drawn)
    compose, random = emoji_scenes.composer(excluded), np.random.default_rng(3)
    captions = {compose(number % len(compose.things), random)[1].lower() for number in range(2000)}
    assert not captions & excluded


def test_when_all_is_excluded_it_says_so(compose):
    class Everything(frozenset):
        def __contains__(self, _: object) -> bool:
            return True

    with pytest.raises(RuntimeError, match="all excluded"):
        Composer(compose.things, Everything())(0, np.random.default_rng(0))
