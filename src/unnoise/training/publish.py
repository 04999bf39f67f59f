"""From a checkpoint of a run to a model file: the averaged weights, in half precision, with spec and tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from unnoise.errors import ArgumentError, FileError
from unnoise.pipeline.model import Model
from unnoise.training.loop import Run
from unnoise.training.setup import spec


def averaged(run: Run, dtype: torch.dtype = torch.float32) -> Model:
    """The run's averaged weights as a model; the live weights are left alone."""
    description = spec(run.config, run.objective.tokenizer)
    networks = description.build("meta")
    weights = {name.removeprefix("networks."): value.to(dtype) for name, value in run.ema.weights.items()}
    networks.load_state_dict(weights, strict=True, assign=True)
    return Model(description, run.objective.tokenizer, networks.eval().requires_grad_(False))


def check(path: Path) -> None:
    """Refuse a place before the hours of training, not after them. Raises ArgumentError or FileError."""
    if path.suffix != ".safetensors":
        raise ArgumentError(f"got {str(path)!r} to publish to: expected a name that ends in .safetensors")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise FileError(f"cannot publish to {str(path)!r}: expected a folder at {str(path.parent)!r} that may be written to")


def publish(run: Run, path: Path) -> None:
    """Write the averaged weights as float16."""
    averaged(run, torch.float16).save(path)
