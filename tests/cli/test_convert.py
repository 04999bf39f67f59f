"""`unnoise convert` through the real entry point."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "unnoise", "convert", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def file(tmp_path):
    torch.save({"model": {"a": torch.zeros(2)}, "ema": {"a": torch.ones(2), "decay": 0.9}, "step": 3}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


def test_it_converts_and_says_what_it_took(file, tmp_path):
    out = tmp_path / "out.safetensors"
    ran = command(file, out)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"1 tensors, 8 bytes in {out}\n"
    assert ran.stderr == "took 'ema'; the file also has 'model' (--key)\ndropped what is no tensor: decay\n"
    assert load_file(out)["a"].tolist() == [1, 1]


def test_an_entry_on_request_as_json(file, tmp_path):
    out = tmp_path / "out.safetensors"
    ran = command(file, out, "--key", "model", "--json")
    assert ran.returncode == 0, ran.stderr
    expected = {"out": str(out), "taken": "model", "others": ["ema"], "tensors": 1, "bytes": 8, "dropped": []}
    assert json.loads(ran.stdout) == expected and ran.stderr == ""
    assert load_file(out)["a"].tolist() == [0, 0]


def test_a_refusal_is_one_line(file, tmp_path):
    ran = command(file, tmp_path / "out.safetensors", "--key", "modle")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: unknown entry 'modle': did you mean 'model'? (an entry of the file that holds tensors)\n"
