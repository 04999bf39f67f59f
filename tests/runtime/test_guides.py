"""Classifier guidance on a mixture of two Gaussians, whose labels are its parts: everything is known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from runtime.classified import Classified
from unnoise import schedules
from unnoise.conditioning import Cond
from unnoise.diffusion.guidance import Guided, guidance
from unnoise.diffusion.predictions import eps
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError
from unnoise.runtime.guides import Ask, Keep, Pull, Steered

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
    guided = Classified(mixture(schedule), schedule, Exact(schedule, t))
    answer = guided(x, t, Cond(labels=torch.full((3,), label)))
    assert isinstance(answer, Estimate)
    part = estimates(x, schedule.alpha(t), schedule.sigma(t))[:, label]
    torch.testing.assert_close(answer.x0.flatten(), part)


def test_scale_zero_is_the_denoiser_and_a_variance_passes() -> None:
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0], dtype=torch.float64)
    x, cond = torch.randn(1, 1, 1, 1, dtype=torch.float64), Cond(labels=torch.tensor([1]))

    def learned(x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        return Estimate(mixture(schedule)(x, t, cond), x / 3)

    off, on = (Classified(learned, schedule, Exact(schedule, t), scale)(x, t, cond) for scale in (0.0, 2.0))
    assert isinstance(off, Estimate) and off.push is None and torch.equal(off.x0, learned(x, t, cond).x0)
    assert isinstance(on, Estimate) and on.variance is not None and torch.equal(on.variance, x / 3)


def steered(schedule: Schedule) -> Steered:
    return Steered(Guided(mixture(schedule), schedule, eps), schedule)


def test_a_guided_estimate_is_pulled_as_a_plain_one() -> None:
    """Towards the label that the classifier is asked for; the negative side has another."""
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0], dtype=torch.float64)
    x, cond, other = torch.randn(1, 1, 1, 1, dtype=torch.float64), *(Cond(labels=torch.tensor([k])) for k in (1, 0))
    model = Exact(schedule, t)
    plain = Classified(mixture(schedule), schedule, model)(x, t, cond)
    pull = Pull(model, torch.ones(1, dtype=torch.float64), torch.tensor([1]))
    both = steered(schedule)(x, t, Ask(guidance(cond, other, 1.0), pulls=(pull,)))
    assert isinstance(plain, Estimate) and isinstance(both, Estimate) and torch.equal(plain.x0, both.x0)


def ask(labels: Tensor, pulls: tuple[Pull, ...] = (), keep: Keep | None = None) -> Ask:
    cond = Cond(labels=labels)
    return Ask(guidance(cond, cond, 1.0), keep, pulls)


def test_only_the_rows_with_a_scale_are_pulled() -> None:
    """Requests with two classifiers, and one with none, in one batch: each row as alone, and the one with none to the bit."""
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0, 400.0, 400.0], dtype=torch.float64)
    x = torch.randn(3, 1, 1, 1, dtype=torch.float64)
    ones, nets, labels = torch.ones(1, dtype=torch.float64), [Exact(schedule, t[:1]) for _ in range(2)], torch.tensor([1])
    asks = [ask(labels, (Pull(nets[0], ones, labels),)), ask(labels), ask(labels, (Pull(nets[1], 3 * ones, 1 - labels),))]
    together = steered(schedule)(x, t, Ask.stack(asks))
    assert isinstance(together, Estimate) and together.push is not None
    for i, one in enumerate(asks):
        alone = steered(schedule)(x[i : i + 1], t[:1], one)
        x0, push = (alone.x0, alone.push) if isinstance(alone, Estimate) else (alone, None)
        assert torch.equal(together.x0[i : i + 1], x0)
        assert torch.equal(together.push[i : i + 1], torch.zeros(1, 1, 1, 1).double() if push is None else push)


def test_what_is_kept_is_the_truth_and_touches_no_other_row() -> None:
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0, 400.0], dtype=torch.float64)
    x, truth = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(1, 1, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    labels = torch.zeros(1, dtype=torch.long)

    def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return x / 2

    both = Ask.stack([ask(labels, keep=Keep(truth, mask)), ask(labels)])
    answer = Steered(Guided(denoiser, schedule, eps), schedule)(x, t, both)
    assert isinstance(answer, Tensor) and torch.equal(answer[1], x[1] / 2)
    assert torch.equal(answer[0, :, :, :2], x[0, :, :, :2] / 2) and torch.equal(answer[0, :, :, 2:], truth[0, :, :, 2:].double())


def test_labels_are_needed() -> None:
    schedule, t = SCHEDULES["vp"], torch.tensor([400.0], dtype=torch.float64)
    with pytest.raises(ArgumentError, match="classifier is conditioned on labels"):
        Classified(mixture(schedule), schedule, Exact(schedule, t))(torch.zeros(1, 1, 1, 1), t, Cond())
