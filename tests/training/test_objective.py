"""The loss is the sampler's own error: what is asked of the network is one thing for both, whatever the network predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.losses import Loss, TimeSampling
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError
from unnoise.runtime.denoise import NetworkDenoiser
from unnoise.training import batch as batches
from unnoise.training import loop
from unnoise.training.batch import Batch, Seeded
from unnoise.training.objective import Denoising, WithPrior
from unnoise.training.trainee import Trainee

VP, FLOW, EDM = schedules.vp("scaled_linear", beta_start=0.00085, beta_end=0.012), schedules.flow(shift=3.0), schedules.edm()
SD, SMALLEST = 0.5, 0.002  # sigma_data and sigma_min


class Network(nn.Module):
    """A small network whose answer depends on everything that it is told; `out` gives twice the channels where it learns a variance."""

    def __init__(self, out: int = 3):
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, out, 3, padding=1), nn.Linear(1, out)
        self.double()

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.labels is not None
        return torch.sin(self.conv(x) + self.time(t.double()[:, None] / 1000)[:, :, None, None] + cond.labels[:, None, None, None])


@dataclass(frozen=True)
class Case:
    """A prediction on a process, and the factor of |x0_hat - x0|² in its plain loss, written out from the papers."""

    prediction: Prediction
    schedule: Schedule
    factor: Callable[[Tensor, Tensor, Tensor], Tensor]  # of alpha, sigma and the times


def lcm(alpha: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
    """c_out of Luo et al. 2023 with s = 10 t, on the x_0 of an eps network, which is off by sigma / alpha times eps."""
    s = 10 * VP.timestep(t)
    return (s.square() + 0.25) / s.square() * (alpha / sigma).square()


CASES = {
    "eps": Case(predictions.eps, VP, lambda a, s, t: (a / s) ** 2),  # the signal-to-noise ratio
    "score": Case(predictions.score, EDM, lambda a, s, t: 1 / s**2),
    "x0": Case(predictions.x0, FLOW, lambda a, s, t: torch.ones_like(a)),
    "v": Case(predictions.v, VP, lambda a, s, t: (a / s) ** 2 + 1),  # snr + 1 (Salimans & Ho 2022)
    "flow": Case(predictions.flow, FLOW, lambda a, s, t: 1 / s**2),
    "edm": Case(predictions.edm(SD), EDM, lambda a, s, t: (s**2 + SD**2) / (s * SD) ** 2),  # Karras et al. 2022, lambda of table 1
    "consistency": Case(predictions.consistency(SD, SMALLEST), EDM, lambda a, s, t: (s**2 + SD**2) / ((s - SMALLEST) * SD) ** 2),
    "lcm": Case(predictions.lcm(VP), VP, lcm),
}


def trained(case: Case, network: nn.Module | None = None) -> Trainee:
    nothing: Any = None
    network = network or Network()
    return Trainee(nothing, NetworkDenoiser(network, case.schedule, case.prediction), dict(network.named_parameters()), nothing, nothing)


def clean(rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64), Cond(labels=torch.arange(rows) / rows))


def draw() -> Seeded:
    return Seeded(torch.Generator().manual_seed(5))


def sampled(trainee: Trainee, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean |x0_hat - x0|² (b,) of what a sampler gets at the points of these draws; alpha, sigma and times (b,)."""
    schedule, drawn = trainee.denoiser.schedule, draw()
    noise, t = drawn.noise(batch.x0), drawn.times(len(batch), TimeSampling(), schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = alpha.view(-1, 1, 1, 1) * batch.x0 + sigma.view(-1, 1, 1, 1) * noise
    found = trainee.denoiser(x, t, batch.condition())
    x0 = found if isinstance(found, Tensor) else found.x0
    return (x0 - batch.x0).square().flatten(1).mean(1), alpha, sigma, t


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_samplers_own_error(name: str) -> None:
    case = CASES[name]
    assert case.prediction.name == name
    trainee, batch = trained(case), clean()
    losses = Denoising(trainee).losses(batch, draw())
    error, alpha, sigma, t = sampled(trainee, batch)
    torch.testing.assert_close(losses, case.factor(alpha, sigma, t) * error, rtol=1e-8, atol=0)
    torch.testing.assert_close(Denoising(trainee)(batch, draw()), losses.mean())


@pytest.mark.parametrize("name", CASES)
def test_its_gradient_is_that_of_the_samplers_error(name: str) -> None:
    case, batch = CASES[name], clean()
    found, expected = [], []
    trainee = trained(case)
    Denoising(trainee)(batch, draw()).backward()
    for p in trainee.parameters.values():
        assert p.grad is not None
        found.append(p.grad.clone())
        p.grad = None
    error, alpha, sigma, t = sampled(trainee, batch)
    (case.factor(alpha, sigma, t) * error).mean().backward()
    expected = [p.grad for p in trainee.parameters.values()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_min_snr_caps_the_weight_of_that_error(name: str) -> None:
    """Hang et al. 2023: min(snr, 5) |x0_hat - x0|², whichever of the three the network predicts."""
    trainee, batch = trained(replace(CASES[name], schedule=VP)), clean()
    error, alpha, sigma, _ = sampled(trainee, batch)
    losses = Denoising(trainee, Loss(min_snr=5.0, floor=1e-9)).losses(batch, draw())
    torch.testing.assert_close(losses, ((alpha / sigma) ** 2).clamp(max=5.0) * error, rtol=1e-8, atol=0)


def test_of_a_learned_variance_the_mean_is_trained() -> None:
    trainee, batch = trained(CASES["eps"], Network(out=6)), clean()
    error, alpha, sigma, _ = sampled(trainee, batch)
    torch.testing.assert_close(Denoising(trainee).losses(batch, draw()), (alpha / sigma) ** 2 * error, rtol=1e-8, atol=0)


def test_weights_are_factors_of_the_rows() -> None:
    trainee, batch = trained(CASES["v"]), clean()
    plain = Denoising(trainee).losses(batch, draw())
    weight = torch.rand(len(batch), dtype=torch.float64)
    torch.testing.assert_close(Denoising(trainee).losses(replace(batch, weight=weight), draw()), weight * plain)


def test_prior_preservation_is_two_means() -> None:
    trainee, batch = trained(CASES["eps"]), clean()
    plain = Denoising(trainee).losses(batch, draw())
    found = WithPrior(Denoising(trainee), 2, 0.3)(batch, draw())
    torch.testing.assert_close(found, plain[:2].mean() + 0.3 * plain[2:].mean())
    for rows in (0, 6, 7):
        with pytest.raises(ArgumentError, match=f"got {rows} rows of the subject in a batch of 6"):
            WithPrior(Denoising(trainee), rows)(batch, draw())


def test_batches_are_joined_and_cut_by_rows() -> None:
    whole = clean(5)
    first, second = whole.rows(0, 2), whole.rows(2, 5)
    joined = batches.joined(replace(first, weight=torch.tensor([2.0, 3.0])), replace(second, cond=lambda: whole.condition().rows(2, 5)))
    assert len(joined) == 5 and torch.equal(joined.x0, whole.x0) and joined.weight is not None
    assert joined.weight.tolist() == [2, 3, 1, 1, 1]
    labels, expected = joined.condition().labels, whole.condition().labels
    assert labels is not None and expected is not None and torch.equal(labels, expected)
    assert len(joined.rows(1, 4)) == 3 == len(joined.rows(1, 4).condition())
    with pytest.raises(ArgumentError, match="got a hint in one of two batches"):
        batches.joined(replace(first, hint=torch.zeros(2, 3, 64, 64)), second)


def test_draws_are_functions_of_seed_and_number() -> None:
    like = torch.zeros(2, 3, 8, 8)
    same, other, later = (loop.seeded(seed, number).noise(like) for seed, number in ((1, 7), (1, 8), (2, 7)))
    assert torch.equal(same, loop.seeded(1, 7).noise(like)) and not torch.equal(same, other) and not torch.equal(same, later)
