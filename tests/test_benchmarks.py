"""The parts of benchmarks/builtin.py: they see what they are there to see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from unnoise.data import emoji, pictures

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import prompted  # noqa: E402
import sharpness  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pictures.Pictures:
    folder = tmp_path_factory.mktemp("data") / "emoji"
    emoji.build(folder)
    return pictures.read(folder, 64)


@pytest.fixture(scope="module")
def gallery(data) -> prompted.Gallery:
    codes = [entry.code for entry in emoji.entries()]
    return prompted.Gallery(data, codes, [*prompted.read("scenes.tsv"), *prompted.read("colours.tsv")])


def test_white_noise_has_no_line_and_a_grid_has_one():
    noise = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert sharpness.line(noise, 4) == pytest.approx(1, abs=0.15)
    grid = noise.clone()
    grid[..., ::4] += 0.5  # a seam at every fourth column
    assert sharpness.line(grid, 4) > 2


def test_blurring_takes_the_upper_half(data):
    sharp = data.on_white()[::40]
    blurred = F.interpolate(F.interpolate(sharp, scale_factor=0.5, mode="area"), scale_factor=2, mode="bicubic")
    assert sharpness.upper_half(blurred) < 0.5 * sharpness.upper_half(sharp)
    assert sharpness.upper_half(sharp + 0.3) == pytest.approx(sharpness.upper_half(sharp))  # brightness is none of it


def test_a_prompt_accepts_its_things_in_any_order():
    cat_and_dog = prompted.Prompt("a cat and a dog", (("1f408", "1f431"), ("1f415",)), "", "")
    assert cat_and_dog.accepts(("1f408", "1f415")) and cat_and_dog.accepts(("1f415", "1f431"))
    assert not cat_and_dog.accepts(("1f408",)) and not cat_and_dog.accepts(("1f408", "1f431"))


def test_the_right_answer_of_every_prompt_is_right(gallery):
    """Judged by pixels here, so that nothing but the gallery is tried."""
    prompts = [*prompted.read("scenes.tsv"), *prompted.read("colours.tsv")]
    right = torch.stack([gallery.right(prompt) for prompt in prompts])
    features, answers = (F.normalize(x.flatten(1), dim=1) for x in (right, torch.stack([a.picture for a in gallery.answers])))
    verdicts = gallery.judge(prompts, right, features, answers)
    assert [verdict.text for verdict in verdicts if not verdict] == []


def test_a_wrong_colour_and_a_wrong_number_are_seen(gallery):
    by_text = {prompt.text: prompt for prompt in [*prompted.read("scenes.tsv"), *prompted.read("colours.tsv")]}
    swapped = [("a red apple", "a green apple"), ("two dogs", "three cats"), ("a cat and a dog", "a hat above a cat")]
    prompts = [by_text[text] for text, _ in swapped]
    drawn = torch.stack([gallery.right(by_text[other]) for _, other in swapped])
    features, answers = (F.normalize(x.flatten(1), dim=1) for x in (drawn, torch.stack([a.picture for a in gallery.answers])))
    colour, number, other = gallery.judge(prompts, drawn, features, answers)
    assert colour.things and not colour.colours
    assert not number.things and not other.things


def test_the_trunk_tells_things_apart(data):
    trunk = pytest.importorskip("trunk").Trunk()
    sharp = data.on_white()[::200]
    blurred = F.interpolate(F.interpolate(sharp, size=48, mode="bilinear", antialias=True), size=64, mode="bicubic")
    likeness = trunk(blurred) @ trunk(sharp).T
    assert likeness.argmax(dim=1).tolist() == list(range(len(sharp))) and likeness.max() <= 1.001
