"""Each example runs in a fresh interpreter, offline, and prints what it is meant to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import house

FOLDER = house.ROOT / "examples"
LINES = 60

# What each example prints, as regular expressions that are found in this order.
SHOWN = {
    "generate": [r"^\(64, 64\) with \w+ from seed 7$", r"^the same seed makes the same picture: True$"],
    "own_network": [r"ddpm .* middle (0\.9|1\.0)\d ", r"ddim .* middle (0\.9|1\.0)\d ", r"dpmpp_2m .* middle (0\.9|1\.0)\d "],
    "image_inputs": [r"^strength 0\.3: mean difference \d\d of 255$", r"^strength 0\.9: ", r"^the lower half kept every byte: True$"],
    "tiny_sd1": [r"^Model\('tiny\.safetensors', family='sd1'"],
    "controlnet": [r"^scale 0\.0: .* 0\.0000$", r"^scale 0\.5: .* 0\.\d*[1-9]", r"^scale 1\.0: ", r"^two at once: \(1, 3, 64, 64\)$"],
    "lora_stack": [
        r"0\.\d*[1-9]\d*$",
        r"^scale 0 is off: True$",
        r"^the weights are as they were: True$",
        r"^line.*0\.8$",
        r"^flat.*0\.5$",
    ],
    "compare_solvers": [r"^\w+ +\d+ steps: relative error 0\.0", r"^(ddim|heun) +\d+ steps: relative error 0\.\d+\n\Z"],
    "batch": [r"^4 requests, \d+ calls", *[r"^.* is equal to the same request alone: True$"] * 4],
}


def test_every_example_is_run_here():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_the_example_is_short(name: str):
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < LINES


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_the_example_prints_what_it_shows(name: str, tmp_path: Path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rest = done.stdout
    for pattern in SHOWN[name]:
        found = re.search(pattern, rest, re.MULTILINE)
        assert found, f"{pattern!r} is not in\n{done.stdout}"
        rest = rest[found.end() :]
