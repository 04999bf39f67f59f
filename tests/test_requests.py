"""What a request refuses, and what it takes, of models of every kind of conditioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import unnoise
from unnoise import adapting
from unnoise.checkpoints import native
from unnoise.errors import ArgumentError
from unnoise.model import BUILTIN


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["x", 0.5], r"got 0.5 in lora \['x', 0.5\]: expected a file, a pair \(FILE, SCALE\), or a list of either"),
        (("x", "y"), r"got lora \('x', 'y'\): expected a file"),
        (("x", float("nan")), "nan"),
        (("x", True), "True"),
        ([("x", 1, 2)], r"got \('x', 1, 2\) in lora"),
    ],
)
def test_a_lora_that_is_none_is_named_as_it_was_given(given: Any, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        adapting.pairs(given)


def test_what_names_loras() -> None:
    assert adapting.pairs("x") == [("x", 1.0)]
    assert adapting.pairs(["x", (Path("y"), 2)]) == [("x", 1.0), (Path("y"), 2.0)]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hashed = tmp_path / "model.safetensors", []
    sha256 = native.hashlib.sha256
    monkeypatch.setattr(native.hashlib, "sha256", lambda: hashed.append(1) or sha256())
    path.write_bytes(b"one")
    first = native.file_hash(path)
    assert native.file_hash(path) == first and len(hashed) == 1
    path.write_bytes(b"another")
    assert native.file_hash(path) != first and len(hashed) == 2


def test_a_model_says_what_it_is() -> None:
    name = next(BUILTIN.glob("*.safetensors")).stem
    model = unnoise.load(name, dtype="float32", device="cpu")
    assert repr(model) == f"Model({name!r}, family={model.spec.family!r}, dtype=torch.float32, device='cpu')"
