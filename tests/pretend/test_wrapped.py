"""A network that was compiled, wrapped, or is held elsewhere and moved in piece by piece draws the same pictures to the bit."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretend import models
from pretend.cases import CASES, here
from pretend.device import WHERE, PretendDevice
from pretend.test_families import Drawn, draw, folder
from unnoise.pipeline.model import Model

__all__ = ["folder"]  # the fixture
# What a request asks with does not depend on the sampler; a LoRA is put on a network before it is wrapped, for its keys name modules.
NAMES = [name for name in CASES if not name.startswith(("sampler/", "lora/"))]
FAMILIES = [name for name in NAMES if name.startswith("text/")]


class Forwarding(nn.Module):
    """It has the network's forward and nothing else of it: no config, no method, no weight by the old name."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.inner(*args, **options)


def compiled(network: nn.Module) -> Any:
    """By dynamo, with the kernels that run anyway."""
    return torch.compile(network, backend="eager")


def compiled_in_place(network: nn.Module) -> nn.Module:
    network = copy.copy(network)
    network.compile(backend="eager")
    return network


def held_elsewhere(network: nn.Module) -> nn.Module:
    """Every module that has weights of its own moves them to the device when it is called, and back when it is done."""
    network = copy.deepcopy(network)
    for module in network.modules():
        module._buffers = {name: None if value is None else value.to(WHERE) for name, value in module._buffers.items()}
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda module, _: _move(module, WHERE))
            module.register_forward_hook(lambda module, *_: _move(module, torch.device("cpu")), always_call=True)
    return network


def _move(module: nn.Module, where: torch.device) -> None:
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = nn.Parameter(value.data.to(where), requires_grad=False)


@functools.cache
def plain(name: str, folder: Path) -> Drawn:
    case = CASES[name](folder)
    return draw(models.model(case.model), case.request(here))


def changed(name: str, folder: Path, change: Callable[[nn.Module], Any], placement: models.Placement = models.CPU) -> Drawn:
    """What the model draws whose networks, and those beside it, are changed."""
    case = CASES[name](folder)
    model: Model = models.changed(models.model(case.model), lambda _, network: change(network), placement)
    return draw(model, case.request(change, placement))


def assert_same(mine: Drawn, theirs: Drawn, tolerance: float = 0.0) -> None:
    for step, (one, other) in enumerate(zip(mine.latents, theirs.latents, strict=True), 1):
        differs = float((one - other).abs().max() / other.abs().max())
        assert differs <= tolerance, f"step {step} differs by {differs:.1e} of the largest"
    if not tolerance:
        for one, other in zip(mine.pictures + mine.previews, theirs.pictures + theirs.previews, strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_wrapped(name: str, folder: Path):
    assert_same(changed(name, folder, Forwarding), plain(name, folder))


@pytest.mark.parametrize("name", NAMES)
def test_moved_piece_by_piece(name: str, folder: Path):
    with PretendDevice():
        mine = changed(name, folder, held_elsewhere, models.WHERE_IT_RUNS)
    assert_same(mine, plain(name, folder), 0.0 if CASES[name](folder).exact else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [compiled, compiled_in_place])
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled(name: str, how: Callable[[nn.Module], Any], folder: Path):
    assert_same(changed(name, folder, how), plain(name, folder))
    torch.compiler.reset()


def test_a_wrapper_shows_nothing_of_the_network():
    """So that the tests above show that nothing but forward is asked."""
    wrapped = Forwarding(models.model("sd1").networks["network"])
    assert not hasattr(wrapped, "config") and not hasattr(wrapped, "conv_in")
    assert torch.equal(wrapped(*_point()), wrapped.inner(*_point()))


def _point() -> tuple[Tensor, Tensor, Any]:
    from unnoise.conditioning import Cond

    return torch.zeros(1, 4, 8, 8), torch.zeros(1), Cond(tokens=torch.zeros(1, 77, 32))
