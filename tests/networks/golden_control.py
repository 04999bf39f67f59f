"""The golden ControlNets, each beside its network: opened as files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from networks import golden_latents, golden_sd3
from networks.golden import Tensors
from unnoise.checkpoints.layouts import controlnet
from unnoise.checkpoints.store.weights import Weights
from unnoise.networks.controlnet import ControlNet
from unnoise.networks.controlnet_mmdit import MMDiTControlNet
from unnoise.networks.mmdit import MMDiT
from unnoise.networks.unet import UNet


def ldm(folder: Path) -> tuple[Tensors, dict, UNet, ControlNet]:
    """(inputs and outputs, config, the U-Net, its ControlNet)"""
    opened, net = golden_latents.read(folder), golden_latents.control(folder).load(torch.float32)
    assert isinstance(net, ControlNet)
    return opened.io, opened.record, opened.network(), net.requires_grad_(False)


def sd3(folder: Path) -> tuple[golden_sd3.Golden, MMDiT, MMDiTControlNet]:
    """One of Stability's forms, which the width of its pooled text tells."""
    if not folder.is_dir():
        pytest.skip(f"no golden tensors sd3/{folder.name}")
    record = json.loads((folder / "config.json").read_text())
    _, mmdit = golden_sd3.read(folder.parent / record["base"])
    weights: dict[str, Any] = load_file(folder.parent / "controlnet_2b.safetensors")
    if record["hyperparameters"]["using_8b_controlnet"]:
        weights |= load_file(folder.parent / "controlnet_8b_changed.safetensors")
    part = controlnet.part(Weights.open(weights), {}, {})
    assert part is not None and part.config.form == ("8b" if record["hyperparameters"]["using_8b_controlnet"] else "2b")
    net = part.load(torch.float32)
    assert isinstance(net, MMDiTControlNet)
    return golden_sd3.Golden(load_file(folder / "io.safetensors"), record), mmdit, net.requires_grad_(False)
