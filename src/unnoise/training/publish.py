"""From a checkpoint of a run to a model file: the averaged weights, in half precision, with spec and tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from unnoise.model import Model
from unnoise.training.loop import Run
from unnoise.training.setup import spec


def averaged(run: Run, dtype: torch.dtype = torch.float32) -> Model:
    """The run's averaged weights as a model; the live weights are left alone."""
    description = spec(run.config, run.objective.tokenizer)
    networks = description.build("meta")
    weights = {name.removeprefix("networks."): value.to(dtype) for name, value in run.ema.weights.items()}
    networks.load_state_dict(weights, strict=True, assign=True)
    return Model(description, run.objective.tokenizer, networks.eval().requires_grad_(False))


def publish(run: Run, path: Path) -> None:
    """Write the averaged weights as float16."""
    averaged(run, torch.float16).save(path)
