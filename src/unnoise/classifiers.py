"""Classifiers of noisy pictures, which pull a model towards a class (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unnoise.checkpoints.layouts import adm
from unnoise.checkpoints.weights import Weights
from unnoise.errors import FileError
from unnoise.runtime import placement


def load_classifier(file: str | Path, *, dtype: str = "auto", device: str = "auto", config: Mapping[str, Any] | None = None) -> nn.Module:
    """A classifier of guided-diffusion from its .safetensors file, for `generate(classifier=...)`.

    config: what shapes do not show, such as {"blocks": 2}. Raises FileError, ArgumentError or UnknownName.
    """
    where = placement.device(device)
    weights = Weights.open(file)
    part = adm.classifier_part(weights, config or {})
    if part is None:
        raise FileError(f"{file} is no classifier of guided-diffusion: {weights.some}")
    precision: torch.dtype = placement.dtype(dtype, where)
    return part.load(precision, where).requires_grad_(False)
