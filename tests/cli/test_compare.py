"""`unnoise compare` through the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from test_house import HEAVY, modules_after


def test_table(command) -> None:
    done = command("compare", "sd1", "dit-s-2")
    heads, one, other = done.out.splitlines()
    assert done.code == 0 and heads.split()[:4] == ["name", "year", "backbone", "parameters"]
    assert "859,520,964" in one and "4x64x64" in one and "32,865,056" in other


def test_columns_in_the_order_asked(command) -> None:
    done = command("compare", "dit-xl-2", "--columns", "paper_fid,parameters", "--format", "markdown")
    assert done.out.splitlines()[0] == "| paper's FID | parameters |" and "| 674,834,720 |" in done.out


def test_json(command) -> None:
    done = command("compare", "--family", "score-sde", "--format", "json", "--columns", "all")
    names = [row["name"] for row in json.loads(done.out)["models"]]
    assert names == ["score-sde-ddpmpp-cifar", "score-sde-ncsnpp-cifar"]


@pytest.mark.parametrize("name", ["deep/a.md", "a.json", "a.png"])
def test_file_by_its_ending(command, name: str) -> None:
    pytest.importorskip("matplotlib")
    done = command("compare", "dit-s-8", "--out", name)
    assert (done.code, done.out.strip()) == (0, str(Path(name)))
    if name.endswith("png"):
        with Image.open(name) as picture:
            assert picture.width > 300
    else:
        text = Path(name).read_text()
        assert ("33,142,016" in text) if name.endswith("md") else json.loads(text)["models"][0]["parameters"] == 33_142_016


WRONG = {
    "a model": (["sdxll"], "unknown published model 'sdxll': did you mean 'sdxl'?"),
    "a column": (["sd1", "--columns", "latents"], "did you mean 'latent'"),
    "a family": (["--family", "sdd"], "did you mean 'sd'"),
    "both": (["sd1", "--family", "sd"], "give one of the two"),
    "an ending": (["sd1", "--out", "a.txt"], "got the ending '.txt', expected .md, .json, .png"),
    "a table in a file": (["sd1", "--out", "a.md", "--format", "table"], "is for the terminal"),
    "a picture nowhere": (["sd1", "--format", "png"], "name it with --out"),
    "a form": (["sd1", "--format", "xml"], "--format"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_line(command, case: str) -> None:
    arguments, expected = WRONG[case]
    done = command("compare", *arguments)
    assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1 and expected in done.err, done.err


def test_help_loads_no_torch() -> None:
    run = "from unnoise.cli import main\ntry:\n    main(['compare', '--help'])\nexcept SystemExit as stop:\n    assert not stop.code"
    assert modules_after(run) & HEAVY == set()
