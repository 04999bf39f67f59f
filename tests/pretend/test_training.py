"""One step of training on the pretended device: the CPU's loss, gradients and weights.

To rounding: torch has another formula for the gradient of SiLU on a device that it does not know, and attention on a CPU another kernel.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pretend import models
from pretend.device import PretendDevice
from unnoise.conditioning import Cond
from unnoise.pipeline.model import Model
from unnoise.training.batch import Batch
from unnoise.training.loop import seeded
from unnoise.training.objective import Denoising
from unnoise.training.trainees.full import full

NAMES = ("sd1", "sdxl", "sd3.5-medium", "dit-xl-2", "adm-64", "edm-cifar-cond")


def step(model: Model) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and weights of one step of gradient descent, on the CPU."""
    place = model.networks.placement.device
    trainee, channels = full(model), model.spec.channels
    x0 = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(3)) if model.spec.first_stage else None
    x0 = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(3)) if x0 is None else x0
    cond = Cond(labels=torch.tensor([1, 4], device=place)) if model.spec.classes else trainee.encode(["a red apple", "a cat"])
    loss = Denoising(trainee)(Batch(x0.to(place), cond), seeded(0, 0))
    loss.backward()
    gradients = {name: p.grad.cpu().clone() for name, p in trainee.parameters.items() if p.grad is not None}
    torch.nn.utils.clip_grad_norm_(list(trainee.parameters.values()), 1.0)
    torch.optim.SGD(trainee.parameters.values(), lr=0.1).step()
    return loss.detach().cpu(), gradients, {name: p.detach().cpu() for name, p in trainee.parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_cpus(name: str):
    with PretendDevice():
        mine = step(models.changed(models.model(name), lambda _, network: models.there(network), models.WHERE_IT_RUNS))
    theirs = step(models.changed(models.model(name), lambda _, network: copy.deepcopy(network)))
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-6)
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        assert one.keys() == other.keys() and len(one) > 20
        scale = max(float(value.abs().max()) for value in other.values())
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-5 * scale, msg=lambda text, key=key: f"{key}: {text}")
