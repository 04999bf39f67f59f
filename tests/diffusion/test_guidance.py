"""Guidance: what it costs, row by row, and what it gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.oracle import PROCESSES, Mixture, NoNoise
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.guidance import Guidance, Guided, guidance
from unnoise.diffusion.predictions import PREDICTIONS
from unnoise.diffusion.sampling import Estimate, Run, plan, stream
from unnoise.errors import ArgumentError

SCHEDULE = PROCESSES["sd"]


class Counting:
    """x_0 = the condition's pooled number, plus a bit of x; counts the calls and the rows."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert cond.pooled is not None and len(x) == len(t) == len(cond)
        self.rows.append(cond.pooled[:, 0].tolist())
        return cond.pooled.view(-1, *[1] * (x.ndim - 1)) + 0.1 * x


def values(*numbers: float) -> Cond:
    return Cond(pooled=torch.tensor(numbers, dtype=torch.float64)[:, None])


def ask(scale: float | Tensor, rows: int = 2, t: float = 500.0, **arguments) -> tuple[Tensor, Counting]:
    """Positive answers 1, 2, ..; negative ones -1, -2, .."""
    denoiser = Counting()
    numbers = [float(i + 1) for i in range(rows)]
    cond = guidance(values(*numbers), values(*(-n for n in numbers)), scale, **arguments)
    x = torch.zeros(rows, 3, dtype=torch.float64)
    return Guided(denoiser, SCHEDULE, predictions.eps)(x, torch.full((rows,), t, dtype=torch.float64), cond), denoiser


def test_scale_one_is_the_condition_alone_and_asks_once():
    x0, denoiser = ask(1.0)
    assert denoiser.rows == [[1, 2]]
    assert x0[:, 0].tolist() == [1, 2]


def test_scale_zero_is_unconditional_and_asks_once():
    x0, denoiser = ask(0.0)
    assert denoiser.rows == [[-1, -2]]
    assert x0[:, 0].tolist() == [-1, -2]


def test_any_other_scale_asks_twice_in_one_call():
    x0, denoiser = ask(7.5)
    assert denoiser.rows == [[1, 2, -1, -2]]
    assert x0[:, 0].tolist() == [-1 + 7.5 * 2, -2 + 7.5 * 4]  # uncond + s (cond - uncond)


def test_each_row_has_its_own_scale_and_pays_for_itself():
    scale = torch.tensor([1.0, 0.0, 3.0, 0.5, -1.0])
    x0, denoiser = ask(scale, rows=5)
    assert denoiser.rows == [[1, 3, 4, 5, -2, -3, -4, -5]]
    assert x0[:, 0].tolist() == [1, -2, -3 + 3 * 6, 0, -5 - 10]


def test_the_interval_is_in_shares_of_noise():
    """Outside sigma/(alpha + sigma) in [.2, .6] the condition stands alone, at half the cost."""
    for share in (0.1, 0.19, 0.21, 0.25, 0.5, 0.55, 0.59, 0.61, 0.9):
        t = float(SCHEDULE.time(2 * math.log((1 - share) / share)))
        assert float(SCHEDULE.sigma(t) / (SCHEDULE.alpha(t) + SCHEDULE.sigma(t))) == pytest.approx(share)
        x0, denoiser = ask(3.0, t=t, interval=(0.2, 0.6))
        inside = 0.2 <= share <= 0.6
        assert len(denoiser.rows[0]) == (4 if inside else 2), t
        assert x0[0, 0].item() == (5 if inside else 1)


def test_a_scale_of_zero_ignores_the_prompt_outside_the_interval_too():
    scale = torch.tensor([0.0, 3.0])
    outside, denoiser = ask(scale, t=float(SCHEDULE.first), interval=(0.2, 0.6))
    assert outside[:, 0].tolist() == [-1, 2] and denoiser.rows == [[2, -1]]


def test_the_whole_interval_holds_from_pure_noise_to_the_data():
    schedule = PROCESSES["zero_snr"]
    cond = guidance(values(1.0), values(-1.0), 2.0)
    for t in (schedule.start, schedule.end):
        x0 = Guided(Counting(), schedule, predictions.v)(torch.zeros(1, 2).double(), torch.tensor([t]).double(), cond)
        assert x0[0, 0].item() == 3


def field(t: Tensor, x: Tensor, cond: Cond) -> Tensor:
    """A denoiser whose answer varies over the image and with the condition."""
    assert cond.pooled is not None
    return torch.sin(x * cond.pooled[:, :, None] + t[:, None, None] / 100) + 0.3 * cond.pooled[:, :, None]


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("amount", [0.0, 0.7, 1.0])
def test_rescale_closed_form(amount: float, name: str):
    """Lin et al. 2023, eq. 15-16, on the network's output; each image by its own standard deviation."""
    prediction = PREDICTIONS[name]
    x, t = torch.randn(3, 4, 5, dtype=torch.float64), torch.tensor([900.0, 400.0, 20.0], dtype=torch.float64)
    positive, negative = values(1.0, 0.5, 2.0), values(-1.0, 0.1, 0.3)
    cond = guidance(positive, negative, 4.0, rescale=amount)
    mine = Guided(lambda x, t, c: field(t, x, c), SCHEDULE, prediction)(x, t, cond)
    alpha, sigma = SCHEDULE.alpha(t).view(3, 1, 1), SCHEDULE.sigma(t).view(3, 1, 1)
    with_cond, without = (prediction.output(field(t, x, c), x, alpha, sigma) for c in (positive, negative))
    guided = without + 4 * (with_cond - without)
    ratio = with_cond.flatten(1).std(1) / guided.flatten(1).std(1)
    expected = amount * ratio.view(3, 1, 1) * guided + (1 - amount) * guided
    torch.testing.assert_close(prediction.output(mine, x, alpha, sigma), expected, rtol=1e-8, atol=1e-8)
    if amount == 1:
        torch.testing.assert_close(prediction.output(mine, x, alpha, sigma).flatten(1).std(1), with_cond.flatten(1).std(1))


def test_rescale_zero_changes_no_bit_and_is_per_row():
    x, t = torch.randn(2, 4, 5, dtype=torch.float64), torch.tensor([900.0, 400.0], dtype=torch.float64)
    guided = Guided(lambda x, t, c: field(t, x, c), SCHEDULE, predictions.eps)
    plain, zero, mixed = (
        guided(x, t, guidance(values(1.0, 2.0), values(-1.0, 0.5), 4.0, rescale=amount))
        for amount in (0.0, torch.zeros(2), torch.tensor([0.0, 0.7]))
    )
    assert torch.equal(plain, zero)
    assert torch.equal(plain[0], mixed[0]) and not torch.equal(plain[1], mixed[1])


def test_rescale_leaves_unguided_rows_alone():
    x, t = torch.randn(2, 4, 5, dtype=torch.float64), torch.tensor([900.0, 400.0], dtype=torch.float64)
    guided = Guided(lambda x, t, c: field(t, x, c), SCHEDULE, predictions.eps)
    scale = torch.tensor([1.0, 0.0])
    plain, rescaled = (guided(x, t, guidance(values(1.0, 2.0), values(-1.0, 0.5), scale, rescale=a)) for a in (0.0, 0.7))
    assert torch.equal(plain, rescaled) and bool(torch.isfinite(rescaled).all())


@pytest.mark.parametrize("process", ["sd", "flow", "edm"])
def test_guiding_any_prediction_is_guiding_x0(process: str):
    """Every prediction is affine in x_0 with coefficients that both answers share."""
    schedule = PROCESSES[process]
    x, t = torch.randn(4, 3, dtype=torch.float64), schedule.time(torch.linspace(-4, 4, 4, dtype=torch.float64))
    positive, negative = torch.randn(2, 4, 3, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    for prediction in PREDICTIONS.values():
        if prediction.name == "edm" and process != "edm":
            continue
        one, other = (prediction.output(x0, x, alpha, sigma) for x0 in (positive, negative))
        guided = prediction.x0(other + 6 * (one - other), x, alpha, sigma)
        torch.testing.assert_close(guided, negative + 6 * (positive - negative), rtol=1e-9, atol=1e-9)


# The two-class oracle: .5/.5, +-1, s = .5; the condition is the class at +1. Mean and standard deviation of what the exact guided ODE of
# EDM's process makes of the 400 quantiles i/401 of N(0, 80²), whose own standard deviation is .494 of .5 (by Runge-Kutta, 3 digits).
CFG = {0.0: (0.0, 1.112), 1.0: (0.994, 0.494), 2.0: (1.315, 0.354), 3.0: (1.512, 0.309), 7.5: (2.061, 0.2445)}
BOTH = Mixture((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5))
ONE = Mixture((1.0,), (1.0,), (0.5,))


@pytest.mark.parametrize("scale", CFG)
def test_the_guided_ode_of_two_classes(scale: float):
    """Not the tilted density p(x|c)^w p(x)^(1-w), whose mean is 1.036 at w = 2: guidance does not sample it."""
    schedule = PROCESSES["edm"]
    asked = 0

    def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        nonlocal asked
        asked += len(x)
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return torch.where(cond.labels[:, None] == 1, ONE.denoise(x, alpha, sigma), BOTH.denoise(x, alpha, sigma))

    x = 80 * torch.special.ndtri(torch.arange(1, 401, dtype=torch.float64) / 401)[:, None]
    cond = guidance(Cond(labels=torch.ones(400)), Cond(labels=torch.zeros(400)), scale)
    run = Run(x, plan(schedule, "dpmpp_2m", 200, "logsnr"), NoNoise(), cond)
    *_, last = stream(run, Guided(denoiser, schedule, predictions.eps))
    mean, std = CFG[scale]
    # half a unit of the third digit, and as much again for two hundred steps
    assert float(last.x.mean()) == pytest.approx(mean, abs=1e-3)
    assert float(last.x.std(correction=0)) == pytest.approx(std, abs=1e-3)
    assert asked == 400 * 200 * (1 if scale in (0, 1) else 2)


def test_a_learned_variance_passes_through_unguided():
    """As in DiT's code: the condition's own; the unconditional one only where that alone was asked."""

    def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        assert cond.pooled is not None
        return Estimate(cond.pooled + 0 * x, cond.pooled / 10 + 0 * x)

    scale = torch.tensor([1.0, 0.0, 3.0])
    cond = guidance(values(1.0, 2.0, 3.0), values(-1.0, -2.0, -3.0), scale)
    found = Guided(denoiser, SCHEDULE, predictions.eps)(torch.zeros(3, 2).double(), torch.full((3,), 500.0).double(), cond)
    assert isinstance(found, Estimate) and found.variance is not None
    assert found.x0[:, 0].tolist() == [1, -2, -3 + 3 * 6]
    torch.testing.assert_close(found.variance[:, 0], torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64))


def test_requests_stack():
    one = guidance(values(1.0), values(-1.0), 2.0, rescale=0.5, interval=(0.1, 0.9))
    two = guidance(values(2.0, 3.0), values(-2.0, -3.0), torch.tensor([1.0, 5.0]))
    both = Guidance.stack([one, two])
    assert both.scale.tolist() == [2, 1, 5] and both.rescale.tolist() == [0.5, 0, 0]
    assert both.low.tolist() == [0.1, 0, 0] and both.high.tolist() == [0.9, 1, 1]
    assert both.positive.pooled is not None and both.positive.pooled[:, 0].tolist() == [1, 2, 3]


REFUSED = {
    "an infinite scale": ({"scale": math.inf}, "guidance_scale inf"),
    "nan": ({"scale": math.nan}, "guidance_scale nan"),
    "scales of other rows": ({"scale": torch.ones(3)}, r"guidance_scale of shape \(3,\)"),
    "rescale above 1": ({"rescale": 1.1}, "guidance_rescale 1.1"),
    "rescale below 0": ({"rescale": -0.1}, "guidance_rescale -0.1"),
    "rescale nan": ({"rescale": math.nan}, "guidance_rescale nan"),
    "a swapped interval": ({"interval": (0.8, 0.2)}, "guidance_interval"),
    "an interval of nothing": ({"interval": (0.5, 0.5)}, "guidance_interval"),
    "an interval in timesteps": ({"interval": (0, 1000)}, "guidance_interval"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED)
def test_refused(arguments: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        guidance(values(1.0, 2.0), values(-1.0, -2.0), **arguments)


def test_as_many_negative_conditions_as_positive():
    with pytest.raises(ArgumentError, match="got 2 conditions and 1 negative ones"):
        guidance(values(1.0, 2.0), values(-1.0), 2.0)


def test_the_schedule_of_the_interval_may_be_any():
    for name, schedule in PROCESSES.items():
        guided = Guided(Counting(), schedule, predictions.x0)
        t = schedule.time(torch.tensor([0.0], dtype=torch.float64))  # equal parts of signal and noise: a share of one half
        for interval, expected in (((0.45, 0.55), 3.0), ((0.55, 1.0), 1.0)):
            x0 = guided(torch.zeros(1, 1).double(), t, guidance(values(1.0), values(-1.0), 2.0, interval=interval))
            assert x0.item() == expected, name
    assert schedules.flow().sigma(0.5).item() == 0.5
