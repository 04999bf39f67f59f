"""The authors' Stable Diffusion 3 and 3.5, recorded at a small size: one file of weights, and for each variant what differs from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unnoise.networks.mmdit import MMDiT, MMDiTConfig

PREFIX = "model.diffusion_model."


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
    mmdit = MMDiT(sizes(record["hyperparameters"])).eval()
    mmdit.load_state_dict({key.removeprefix(PREFIX): value.float() for key, value in weights.items()})
    return Golden(load_file(folder / "io.safetensors"), record), mmdit


def sizes(given: dict) -> MMDiTConfig:
    dual = given["x_block_self_attn_layers"]
    assert dual == list(range(len(dual))), "the blocks with dual attention are the first ones"
    return MMDiTConfig(
        width=given["hidden_size"],
        depth=given["depth"],
        heads=given["num_heads"],
        context_width=given["context_dim"],
        pooled_width=given["adm_in_channels"],
        positions=given["pos_embed_max_size"],
        qk_norm=given["qk_norm"] == "rms",
        dual_blocks=len(dual),
    )
