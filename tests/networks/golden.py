"""Golden tensors beside the repository, and how near to them is near enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]


def read(folder: Path) -> tuple[Tensors, Tensors, dict]:
    """(inputs and outputs, weights in float32, config)"""
    if not folder.is_dir():
        pytest.skip(f"no golden tensors {folder.parent.name}/{folder.name}")
    weights = {key: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
    return load_file(folder / "io.safetensors"), weights, json.loads((folder / "config.json").read_text())


def assert_close(mine: Tensor, golden: Tensor, floor: float = 1e-6) -> None:
    """Within ten times what float32 itself costs (`floor`, of the rms), as the golden tensors' README asks."""
    rms = golden.pow(2).mean().sqrt()
    torch.testing.assert_close(mine, golden, rtol=0, atol=(max(1e-5, 10 * floor) * rms).item())


def assert_recorded(io: Tensors, record: dict, mine: Tensors) -> None:
    """Each of these outputs is what was recorded under its name, as far as its own float32 floor goes."""
    for name, tensor in mine.items():
        assert_close(tensor, io[name], record["float32_vs_float64"][name])
