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


def test_a_model_in_another_layout(tmp_path):
    """Single file, folder, single file: the same tensors, each as it was stored."""
    from checkpoints.test_save import assert_same, built, family
    from unnoise.checkpoints import save

    spec = family("sd1")
    networks = built(spec, torch.float16)
    networks["autoencoder"].float()  # a file may mix precisions
    first, folder, again = (tmp_path / name for name in ("sd1.safetensors", "sd1", "again.safetensors"))
    save.model(first, spec, networks, "ldm")
    ran = command(first, folder, "--layout", "diffusers")
    assert (ran.returncode, ran.stdout) == (0, f"{folder} in the layout diffusers\n"), ran.stderr
    ran = command(folder, again, "--layout", "ldm", "--json")
    assert json.loads(ran.stdout) == {"out": str(again), "layout": "ldm"}, ran.stderr
    assert_same(again, first)
    ran = command(folder, folder, "--layout", "diffusers")
    assert ran.returncode == 2 and "exists already" in ran.stderr and ran.stderr.count("\n") == 1
    assert "layout" in command(folder, tmp_path / "x", "--layout", "difusers").stderr
