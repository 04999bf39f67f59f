"""The authors' Stable Diffusion 3 and 3.5, recorded at a small size: one file of weights, and for each variant what differs from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unnoise.checkpoints import recognise
from unnoise.checkpoints.store.weights import Weights
from unnoise.networks.mmdit import MMDiT


@dataclass(frozen=True)
class Golden:
    """Recorded tensors by name, "in." and "out.", and what is known of them."""

    tensors: dict[str, Tensor]
    record: dict

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def assert_close(self, mine: Tensor, name: str) -> None:
        """Within 1e-5 of the largest value, or four times what float32 cost the authors' own code."""
        golden, gap = self[name], self.record["tensors"][name]["max_abs_float32_minus_float64"]
        atol = max(1e-5 * max(1.0, golden.abs().max().item()), 4 * gap)
        torch.testing.assert_close(mine, golden, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")


def read(folder: Path) -> tuple[Golden, MMDiT]:
    """What was recorded, and the network it was recorded from."""
    if not folder.is_dir():
        pytest.skip(f"no golden tensors sd3/{folder.name}")
    record = json.loads((folder / "config.json").read_text())
    weights = load_file(folder.parent / "mmdit_sd3_medium.safetensors")
    if folder.name != "mmdit_medium":
        weights |= load_file(folder.parent / f"{folder.name}_changed.safetensors")
    found = recognise.single_file(Weights.open(weights), {})
    assert tuple(found.parts) == ("network",)
    mmdit = found.parts["network"].load(torch.float32)
    assert isinstance(mmdit, MMDiT)
    return Golden(load_file(folder / "io.safetensors"), record), mmdit.requires_grad_(False)
