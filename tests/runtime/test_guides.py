"""Classifier guidance on a mixture of two Gaussians, whose labels are its parts: everything is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from unnoise.runtime.classifier import ClassifierGuided

from unnoise import schedules
from unnoise.conditioning import Cond
from unnoise.diffusion.guidance import Guided, guidance
from unnoise.diffusion.predictions import eps
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError

MEANS, SPREADS, WEIGHTS = torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.2]), torch.tensor([0.4, 0.6])
SCHEDULES = {"vp": schedules.vp("scaled_linear"), "edm": schedules.edm(), "flow": schedules.flow(3.0)}
TIMES = {"vp": [30.0, 400.0, 900.0], "edm": [0.1, 1.0, 20.0], "flow": [0.05, 0.4, 0.95]}


class Exact(nn.Module):
    """log w_k N(x; alpha m_k, alpha² s_k² + sigma²), a pixel alone: log p(k | x) but for what all k share."""

    def __init__(self, schedule: Schedule, times: Tensor):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.rows = schedule.alpha(times), schedule.sigma(times)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.scale * logits(x, *self.rows)


def logits(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    variance = (alpha[:, None] * SPREADS) ** 2 + sigma[:, None] ** 2
    return WEIGHTS.log() - variance.log() / 2 - (x.view(-1, 1) - alpha[:, None] * MEANS) ** 2 / (2 * variance)


def estimates(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x, k], (b, 2)."""
    variance = (alpha[:, None] * SPREADS) ** 2 + sigma[:, None] ** 2
    return MEANS + alpha[:, None] * SPREADS**2 / variance * (x.view(-1, 1) - alpha[:, None] * MEANS)


def mixture(schedule: Schedule):
    def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        scales = schedule.alpha(t), schedule.sigma(t)
        return (torch.softmax(logits(x, *scales), 1) * estimates(x, *scales)).sum(1).view(x.shape)

    return denoiser


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("label", [0, 1])
def test_a_label_leaves_its_part_of_the_mixture(kind: str, label: int) -> None:
    schedule, t = SCHEDULES[kind], torch.tensor(TIMES[kind], dtype=torch.float64)
    x = torch.randn(3, 1, 1, 1, dtype=torch.float64) * (schedule.alpha(t) + schedule.sigma(t)).view(-1, 1, 1, 1)
    guided = ClassifierGuided(mixture(schedule), schedule, Exact(schedule, t))
    answer = guided(x, t, Cond(labels=torch.full((3,), label)))
    assert isinstance(answer, Estimate)
    part = estimates(x, schedule.alpha(t), schedule.sigma(t))[:, label]
    torch.testing.assert_close(answer.x0.flatten(), part)


def test_scale_zero_is_the_denoiser_and_a_variance_passes() -> None:
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0], dtype=torch.float64)
    x, cond = torch.randn(1, 1, 1, 1, dtype=torch.float64), Cond(labels=torch.tensor([1]))

    def learned(x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        return Estimate(mixture(schedule)(x, t, cond), x / 3)

    off, on = (ClassifierGuided(learned, schedule, Exact(schedule, t), scale)(x, t, cond) for scale in (0.0, 2.0))
    assert isinstance(off, Estimate) and off.push is None and torch.equal(off.x0, learned(x, t, cond).x0)
    assert isinstance(on, Estimate) and on.variance is not None and torch.equal(on.variance, x / 3)


def test_labels_come_from_the_positive_side_of_a_guidance() -> None:
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0], dtype=torch.float64)
    x, cond, other = torch.randn(1, 1, 1, 1, dtype=torch.float64), *(Cond(labels=torch.tensor([k])) for k in (1, 0))
    model = Exact(schedule, t)
    plain = ClassifierGuided(mixture(schedule), schedule, model)(x, t, cond)
    both = ClassifierGuided(Guided(mixture(schedule), schedule, eps), schedule, model)(x, t, guidance(cond, other, 1.0))
    assert isinstance(plain, Estimate) and isinstance(both, Estimate) and torch.equal(plain.x0, both.x0)


def test_labels_are_needed() -> None:
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0], dtype=torch.float64)
    with pytest.raises(ArgumentError, match="classifier is conditioned on labels"):
        ClassifierGuided(mixture(schedule), schedule, Exact(schedule, t))(torch.zeros(1, 1, 1, 1), t, Cond())
