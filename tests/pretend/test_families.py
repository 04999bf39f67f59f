"""Every family on the pretended device: the CPU's pictures, and no wait for the device between the first step and the last.

A wait is a number that is read back, or a copy to the device that does not return before the device has done all its work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from pretend import models
from pretend.cases import CASES, here
from pretend.device import PretendDevice, Wait
from unnoise.pipeline.model import Model
from unnoise.pipeline.stages import Progress

ADAPTIVE = ("sampler/rk45", "sampler/dpm_adaptive")


@dataclass(frozen=True)
class Drawn:
    """All that a request gave, on the CPU."""

    latents: list[Tensor]  # of every step
    pictures: list[Image.Image]
    previews: list[Image.Image]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Watched:
    """What the device noticed while a request ran. The last step is apart, for it may end with the one check of all steps."""

    drawn: Drawn
    between: list[Wait]  # read between the first step and the last but one
    last: list[Wait]  # read from there to the last step
    models: int  # that took part
    uploads: list[Wait]  # waited for between the first step and the last


def draw(model: Model, request: dict[str, Any], mark: Callable[[Progress], None] = lambda state: None) -> Drawn:
    """Calls `mark` at every step, then asks for all that can be looked at."""
    states = []
    for state in model.stream(**request):
        mark(state)
        states.append(state)
    result = states[-1].result()
    assert isinstance(result.images, list)
    previews = [picture for state in states for picture in state.preview()]
    return Drawn([state.latents.cpu() for state in states], result.images, previews, result.metadata)


def watch(device: PretendDevice, model: Model, request: dict[str, Any]) -> Watched:
    """The reads and uploads between the steps of each model that takes part."""
    marks: dict[object, list[tuple[int, int]]] = {}  # by model
    drawn = draw(model, request, lambda state: marks.setdefault(state.model, []).append((len(device.reads), len(device.uploads))))
    spans = [(steps[0], steps[-2] if len(steps) > 1 else steps[0], steps[-1]) for steps in marks.values()]
    between = [wait for first, before, _ in spans for wait in device.reads[first[0] : before[0]]]
    last = [wait for _, before, end in spans for wait in device.reads[before[0] : end[0]]]
    return Watched(drawn, between, last, len(marks), [wait for first, _, end in spans for wait in device.uploads[first[1] : end[1]]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@functools.cache
def on_the_device(name: str, folder: Path) -> Watched:
    case = CASES[name](folder)
    with PretendDevice() as device:
        return watch(device, models.moved(case.model), case.request(models.there, models.WHERE_IT_RUNS))


@pytest.mark.parametrize("name", CASES)
def test_the_device_draws_what_the_cpu_draws(name: str, folder: Path):
    case = CASES[name](folder)
    mine, theirs = on_the_device(name, folder).drawn, draw(models.model(case.model), case.request(here))
    for step, (one, other) in enumerate(zip(mine.latents, theirs.latents, strict=True), 1):
        differs = float((one - other).abs().max() / other.abs().max())
        assert differs <= (0 if case.exact else 1e-5), f"step {step} differs by {differs:.1e} of the largest"
    for one, other in zip(mine.pictures + mine.previews, theirs.pictures + theirs.previews, strict=True):
        differs = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean()
        assert differs <= (0 if case.exact else 0.05), f"a picture differs by {differs} of 255 on average"
    unlike = {key for one, other in zip(mine.records, theirs.records, strict=True) for key in one if one[key] != other.get(key)}
    assert unlike == {"device"}


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device_between_the_first_step_and_the_last(name: str, folder: Path):
    watched = on_the_device(name, folder)
    if name in ADAPTIVE:  # the error that decides about the next step is a number of the device
        assert {wait.where.split()[-1] for wait in watched.between} == {"root_mean_squares"}
        return
    assert watched.between == [] and watched.uploads == []
    assert {wait.where.split()[-1] for wait in watched.last} == {"_check"} and len(watched.last) == watched.models
