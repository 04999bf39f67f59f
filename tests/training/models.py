"""Tiny models of the published families with random weights, fresh for every test, and batches that fit them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unnoise
from peers import tiny
from unnoise.conditioning import Cond
from unnoise.families.spec import ModelSpec, ScheduleSpec
from unnoise.networks.dit import DiTConfig
from unnoise.pipeline.model import Model
from unnoise.training.batch import Batch
from unnoise.training.trainee import Trainee

FAMILIES = ("sd1", "sdxl", "sd3", "dit")
DIT = DiTConfig(in_channels=4, patch=2, width=32, depth=2, heads=2, num_classes=10, learn_sigma=True)
Models = Callable[[str], Model]


def dit() -> Model:
    """A class-conditional transformer on latents; the published ones start from zeros, through which nothing would reach their blocks."""
    spec = ModelSpec(
        name="dit",
        prediction="eps",
        schedule=ScheduleSpec(kind="vp"),
        size=16,
        multiple=2,
        networks={"network": DIT},
        conditioning="labels",
        null_label=10,
    )
    networks = spec.build().eval()
    for parameter in networks.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return Model(spec, {}, networks)


def models(shared: Path, folders: pytest.TempPathFactory) -> Models:
    """A family's model: built once, copied for every call."""

    @functools.cache
    def built(family: str) -> Model:
        torch.manual_seed(0)
        if family == "dit":
            return dit()
        folder = folders.mktemp(family)
        tiny.saved(family, shared, folder)
        return unnoise.load(folder, dtype="float32", device="cpu")

    def fresh(family: str) -> Model:
        model = built(family)
        return Model(model.spec, model.tokenizers, copy.deepcopy(model.networks))

    return fresh


def batch(trainee: Trainee, prompts: Sequence[str] = ("a photo of <cat>", "<cat> in a red hat"), hint: Tensor | None = None) -> Batch:
    """Two latents of 16x16; labels where the model takes no prompts."""
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(len(prompts), trainee.model.spec.channels, 16, 16, generator=generator)
    if trainee.model.spec.conditioning == "labels":
        return Batch(x0, Cond(labels=torch.arange(len(prompts))), hint=hint)
    return Batch(x0, lambda: trainee.encode(list(prompts)), hint=hint)


def digest(model: Model) -> dict[str, Tensor]:
    """Copies of all weights and buffers, by "place.name"."""
    found = ((place, network.state_dict()) for place, network in model.networks.items())
    return {f"{place}.{name}": value.clone() for place, state in found for name, value in state.items()}
