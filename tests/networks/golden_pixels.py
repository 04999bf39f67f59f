"""The golden networks of pixel models and of DiT, opened as any file of their authors is: told from the keys, read by the layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from networks import golden
from unnoise.checkpoints import recognise
from unnoise.checkpoints.found import Found, Part
from unnoise.checkpoints.layouts import adm
from unnoise.checkpoints.store.weights import Weights
from unnoise.networks.classifier import Classifier

ARGUMENTS = {"num_heads": "heads", "num_head_channels": "head_width"}  # the authors' words for what shapes do not show


class Golden(NamedTuple):
    found: Found
    io: golden.Tensors
    record: dict[str, Any]

    @property
    def part(self) -> Part:
        return self.found.parts["network"]

    def network(self) -> Any:
        return self.part.load(torch.float32).requires_grad_(False)


def hints(arguments: dict[str, Any]) -> dict[str, Any]:
    """Heads, where the authors' constructor was told them; what is not there is as their constructor has it."""
    said = {ours: arguments[theirs] for theirs, ours in ARGUMENTS.items() if theirs in arguments}
    plain = "heads" in said and "hidden_size" not in arguments  # a U-Net that was given no width of a head
    return {**({"head_width": 0} if plain else {}), **said}


def arguments(record: dict[str, Any], name: str = "") -> dict[str, Any]:
    """Of the network's constructor, in the record of a fixture."""
    config = record.get("hyperparameters") or record["config"]
    return config.get(name) or config.get("unet") or config.get("model") or config


def read(folder: Path, prefix: str = "", **file: Any) -> Golden:
    """prefix: of this network where a fixture holds several. file: what the caller says of the whole file."""
    io, _, record = golden.read(folder)
    weights = Weights.open(folder / "weights.safetensors").prefixed(prefix)
    return Golden(recognise.single_file(weights, {"network": hints(arguments(record)), "file": file}), io, record)


def classifier(folder: Path, prefix: str = "", order: Any = "head qkv d") -> Classifier:
    """One of ADM's. A pool of the mean does not show the side of its pictures."""
    _, _, record = golden.read(folder)
    said = arguments(record, "classifier")
    side = {"side": said["image_size"]} if said["pool"] == "adaptive" else {}
    part = adm.classifier_part(Weights.open(folder / "weights.safetensors").prefixed(prefix), {**hints(said), **side}, order)
    assert part is not None
    model = part.load(torch.float32).requires_grad_(False)
    assert isinstance(model, Classifier)
    return model
