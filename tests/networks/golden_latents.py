"""The golden networks of latent models, opened as any file of their authors is: told from the keys, read by the layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from networks import golden
from networks.golden_pixels import Golden
from unnoise.checkpoints import recognise
from unnoise.checkpoints.found import Part
from unnoise.checkpoints.layouts import controlnet
from unnoise.checkpoints.store.weights import Weights

# What a fixture is that its small sizes do not show: the refiner's vector is told by its published width
FILES = {"sdxl/refiner": {"family": "sdxl-refiner"}}


def arguments(record: dict[str, Any]) -> dict[str, Any]:
    """Of the U-Net's constructor, in the authors' own config."""
    config = record["config"]
    return (config["ld"]["unet_config"] if "ld" in config else config["engine"]["network_config"])["params"]


def hints(arguments: dict[str, Any]) -> dict[str, Any]:
    """Heads, which shapes do not show: their number, or else the channels of each."""
    wide = arguments.get("num_head_channels", -1)
    return {"head_width": wide} if wide > 0 else {"heads": arguments["num_heads"], "head_width": 0}


def read(folder: Path, **file: Any) -> Golden:
    """file: what the caller says of the whole file, such as ema=False."""
    io, _, record = golden.read(folder)
    told = {**FILES.get(f"{folder.parent.name}/{folder.name}", {}), **file}
    found = recognise.single_file(Weights.open(folder / "weights.safetensors"), {"network": hints(arguments(record)), "file": told})
    return Golden(found, io, record)


def part(found: Golden, place: str) -> Any:
    """Another network of the file than the denoiser, in float32."""
    return found.found.parts[place].load(torch.float32).requires_grad_(False)


def control(folder: Path) -> Part:
    """The ControlNet of a file that holds one."""
    _, _, record = golden.read(folder)
    found = controlnet.part(Weights.open(folder / "weights.safetensors"), {}, hints(arguments(record)))
    assert found is not None
    return found
