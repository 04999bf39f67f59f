"""Classifiers of noisy pictures, which pull a model towards a class (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unnoise.checkpoints.layouts import adm
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.classifier import ClassifierConfig
from unnoise.runtime.placement import Placement


@dataclass(frozen=True)
class ClassifierModel:
    """A classifier, ready for `generate(classifier=...)`."""

    network: nn.Module  # (x, timestep) -> logits (b, classes)
    config: ClassifierConfig
    placement: Placement
    path: str = ""  # of its file, as it was given


def load_classifier(
    file: str | Path, *, dtype: str = "auto", device: str = "auto", config: Mapping[str, Any] | None = None
) -> ClassifierModel:
    """Load a classifier of guided-diffusion from its .safetensors file, for `generate(classifier=...)`.

    config: what shapes do not show, such as {"blocks": 2}. Raises FileError, ArgumentError or UnknownName.
    """
    return opened(file, Placement.named(device, dtype), config)


def opened(file: str | Path, placement: Placement, config: Mapping[str, Any] | None = None) -> ClassifierModel:
    """Load a classifier to a place. Raises FileError."""
    weights = Weights.open(file)
    part = adm.classifier_part(weights, config or {})
    if part is None:
        raise FileError(f"{file} is no classifier of guided-diffusion: {weights.some}")
    network = part.load(placement.dtype, placement.device).requires_grad_(False)
    return ClassifierModel(network, part.config, placement, str(file))
