"""`unnoise inspect` through the command."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file


def test_a_model_for_people(command, tiny):
    done = command("inspect", tiny)
    assert done.code == 0 and done.err == ""
    assert "kind " in done.out and "part " in done.out and "saved by unnoise" in done.out
    assert done.out.rstrip().splitlines()[-1] == f'run: unnoise generate "a red apple" --model {tiny}'


def test_the_same_as_json(command, tiny):
    record = json.loads(command("inspect", tiny, "--json").out)
    assert (record["kind"], record["family"], record["path"]) == ("model", "tiny", str(tiny))
    assert set(record["parts"]) == {"network", "text_encoder"}


def test_a_file_that_nobody_knows(command, tmp_path):
    save_file({"some.weight": torch.zeros(2, 3)}, tmp_path / "x.safetensors", {"title": "mine"})
    done = command("inspect", tmp_path / "x.safetensors")
    assert "unknown" in done.out and "metadata title" in done.out and "mine" in done.out
    assert "no layout that runs here; most parameters in some (6)" in done.out


def test_what_is_no_file_of_weights_is_one_line(command, tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    done = command("inspect", tmp_path / "x.txt")
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert "did you mean" in command("inspect", "emojy").err
