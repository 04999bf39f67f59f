"""Trainee: which parameters of a model are trained, how the network is asked with them, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond, Hint
from unnoise.errors import ArgumentError
from unnoise.pipeline.model import Model
from unnoise.runtime.denoise import NetworkDenoiser
from unnoise.training.batch import Batch

Parameters = Mapping[str, nn.Parameter]
Values = Mapping[str, Tensor]  # by the names of the parameters


class Save(Protocol):
    """Writes a trained file. `values` are the numbers to write, such as averages; None writes the parameters as they are."""

    def __call__(self, path: Path, values: Values | None = None) -> None: ...


@dataclass(frozen=True, eq=False)
class Trainee:
    """Made by `full`, `lora`, `words` or `controlnet`. An optimiser changes `parameters` and nothing else of the model."""

    model: Model
    denoiser: NetworkDenoiser  # what the loss asks; its network includes what is trained
    parameters: Parameters  # by name
    save: Save
    encode: Callable[[Sequence[str]], Cond]  # prompts -> conditions; gradients reach the parameters that take part
    hints: Callable[[Tensor], tuple[Hint, ...]] | None = None  # what a batch's hint pictures become; None: nothing reads them

    def condition(self, batch: Batch) -> Cond:
        """What the network is told of a batch. Raises ArgumentError where a hint is missing, or where nothing would read it."""
        if (batch.hint is None) != (self.hints is None):
            raise ArgumentError(f"got a batch {'with' if self.hints is None else 'without'} a hint: only a ControlNet's training takes one")
        cond = batch.condition()
        return cond if self.hints is None or batch.hint is None else replace(cond, hints=self.hints(batch.hint))


@contextmanager
def holding(parameters: Parameters, values: Values | None) -> Iterator[None]:
    """Let the parameters have these values inside the block; afterwards they have their own again, to the bit."""
    kept = {name: parameters[name].data for name in values or {}}
    try:
        for name, value in (values or {}).items():
            parameters[name].data = value.to(parameters[name].data)
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


def trained(model: Model, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """Freeze the model and let these parameters, of it or beside it, have gradients. Gives them by name.

    Raises ArgumentError for half precision, in which small steps vanish.
    """
    found = dict(named)
    for network in model.networks.values():
        network.requires_grad_(False)
    for name, parameter in found.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f'got {name} in {parameter.dtype}: expected float32 to train it, load the model with dtype="float32"')
        parameter.requires_grad_(True)
    return found


def denoiser(model: Model, network: nn.Module | None = None) -> NetworkDenoiser:
    """The model's network, or another in its place, as the loss asks it: in the number format of the model."""
    return NetworkDenoiser(network or model.networks["network"], model.schedule, model.prediction, dtype=model.dtype)
