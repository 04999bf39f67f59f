"""Weights that make one loss out of another, and how training draws its times."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.oracle import PROCESSES
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.losses import Loss, TimeSampling, noised
from unnoise.diffusion.predictions import PREDICTIONS, Prediction
from unnoise.diffusion.schedules import VE, Schedule
from unnoise.errors import ArgumentError, UnknownName

SPACES = ("eps", "x0", "v", "flow")
TINY = 1e-12  # a floor that binds nowhere in these tests


def levels(schedule: Schedule, n: int = 50) -> Tensor:
    """Times with noise and signal both there, so that every prediction is defined."""
    t = torch.linspace(schedule.start, schedule.first, n, dtype=torch.float64)
    return t[schedule.alpha(t) > 0]


def example(schedule: Schedule, t: Tensor) -> tuple[Tensor, ...]:
    """x0, noise, x, alpha, sigma, and an estimate of x0 that is wrong."""
    x0, noise, wrong = (torch.randn(len(t), 2, 3, 3, dtype=torch.float64) for _ in range(3))
    return x0, noise, *noised(x0, noise, t, schedule), x0 + wrong


def pairs() -> list:
    kept = [(p, name) for name in PROCESSES for p in PREDICTIONS.values() if p.name != "edm" or isinstance(PROCESSES[name], VE)]
    kept = [(p, name) for p, name in kept if p.name != "consistency"]  # at sigma_min its network has no say, and its loss no weight
    return [pytest.param(p, PROCESSES[name], id=f"{p.name}-{name}") for p, name in kept]


@pytest.mark.parametrize("prediction, schedule", pairs())
def test_one_error_of_x0_costs_the_same_whatever_the_network_says(prediction: Prediction, schedule: Schedule):
    """The network of `prediction` and a network of `space` that mean the same x_0 have the same loss in `space`, at every t."""
    x0, noise, x, alpha, sigma, estimate = example(schedule, levels(schedule))
    mine = prediction.output(estimate, x, alpha, sigma)
    for space in SPACES:
        other = predictions.prediction(space)
        plain = (other.output(estimate, x, alpha, sigma) - other.target(x0, noise, alpha, sigma)).square().flatten(1).mean(1)
        converted = Loss(space, floor=TINY)(mine, x0, noise, alpha, sigma, prediction)
        torch.testing.assert_close(converted, plain, rtol=1e-6, atol=0)  # eps at sigma .01 loses four digits of sixteen, squared


def test_the_networks_own_space_is_the_plain_squared_error():
    schedule = PROCESSES["zero_snr"]
    t = torch.tensor([999.0, 500.0, 0.0])
    x0, noise, x, alpha, sigma, _ = example(schedule, t)
    output = torch.randn_like(x)
    for prediction in PREDICTIONS.values():
        plain = (output - prediction.target(x0, noise, alpha, sigma)).square().flatten(1).mean(1)
        for loss in (Loss(), Loss(prediction.name)):  # the floor does not touch it
            assert torch.equal(loss(output, x0, noise, alpha, sigma, prediction), plain)


def test_the_floor_bounds_the_weight():
    """x_0 trained by the flow loss weighs 1/sigma² on a flow: at sigma .01 that is 10,000, and 400 with the floor of .05."""
    alpha, sigma = (torch.tensor([[[[value]]]], dtype=torch.float64) for value in (0.99, 0.01))
    assert Loss("flow", floor=TINY).weight(alpha, sigma, predictions.x0).item() == pytest.approx(1e4)
    assert Loss("flow").weight(alpha, sigma, predictions.x0).item() == pytest.approx(400)
    assert Loss("flow").weight(1 - 10 * sigma, 10 * sigma, predictions.x0).item() == pytest.approx(100)


def test_a_perfect_network_loses_nothing_and_each_image_has_its_own_loss():
    schedule = PROCESSES["sd"]
    x0, noise, _, alpha, sigma, _ = example(schedule, torch.tensor([900.0, 100.0, 5.0]))
    for prediction in (p for p in PREDICTIONS.values() if p.name != "edm"):
        target = prediction.target(x0, noise, alpha, sigma)
        assert Loss("v")(target, x0, noise, alpha, sigma, prediction).tolist() == [0, 0, 0]
        spoilt = target.clone()
        spoilt[1] += 1
        found = Loss("x0")(spoilt, x0, noise, alpha, sigma, prediction)
        assert found[0] == 0 and found[1] > 0 and found[2] == 0


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("name", ["ddpm", "sd", "cosine"])
def test_min_snr_weights(name: str, gamma: float):
    """Hang et al. 2023: min(snr, gamma)/snr for eps, min(snr, gamma)/(snr + 1) for v, min(snr, gamma) for x_0."""
    schedule = PROCESSES[name]
    t = levels(schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    snr = schedule.logsnr(t).exp()
    capped = snr.clamp(max=gamma)
    loss = Loss(min_snr=gamma)
    for prediction, expected in (("eps", capped / snr), ("v", capped / (snr + 1)), ("x0", capped)):
        torch.testing.assert_close(loss.weight(alpha, sigma, predictions.prediction(prediction)), expected, rtol=1e-9, atol=0)
    assert bool((snr > gamma).any()) and bool((snr < gamma).any())  # both sides of the cap were seen


def test_min_snr_caps_the_space_asked_for():
    """In x_0 the flow loss weighs 1/sigma² on a flow; with gamma 5 it stops there, whatever the network predicts."""
    schedule = PROCESSES["flow"]
    t = torch.tensor([0.9, 0.5, 0.4, 0.1], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    in_x0 = (1 / sigma**2).clamp(max=5)
    for prediction in (predictions.x0, predictions.v, predictions.flow):
        own = prediction.coefficients(alpha, sigma)[1]
        expected = in_x0 * torch.as_tensor(own) ** 2
        torch.testing.assert_close(Loss("flow", min_snr=5.0).weight(alpha, sigma, prediction), expected)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_finite_at_snr_zero_and_at_the_data(prediction: str):
    schedule = PROCESSES["zero_snr"]
    x0, noise, x, alpha, sigma, _ = example(schedule, torch.tensor([999.0, 0.0, -1.0]))
    for space in (None, *SPACES):
        for min_snr in (None, 5.0):
            loss = Loss(space, min_snr=min_snr)(torch.randn_like(x), x0, noise, alpha, sigma, predictions.prediction(prediction))
            assert bool(torch.isfinite(loss).all()), (space, min_snr)
    assert Loss("eps").weight(alpha[:1], sigma[:1], predictions.v).item() == 0  # pure noise says nothing about eps's error


def test_an_eps_network_at_snr_zero_is_finite_in_its_own_loss():
    x0, noise, x, alpha, sigma, _ = example(PROCESSES["zero_snr"], torch.tensor([999.0]))
    for loss in (Loss(), Loss("eps"), Loss(min_snr=5.0)):
        assert bool(torch.isfinite(loss(torch.randn_like(x), x0, noise, alpha, sigma, predictions.eps)).all())
    assert Loss(min_snr=5.0).weight(alpha, sigma, predictions.eps).item() == 1


def test_noised():
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    x, alpha, sigma = noised(x0, noise, torch.tensor([-1.0, 500.0, 999.0]), PROCESSES["zero_snr"])
    assert alpha.shape == sigma.shape == (3, 1, 1, 1) and x.dtype == torch.float32
    assert torch.equal(x[0], x0[0]) and torch.equal(x[2], noise[2])
    torch.testing.assert_close(x[1], alpha[1] * x0[1] + sigma[1] * noise[1])


# Times


def drawn(sampling: TimeSampling, schedule: Schedule, n: int, seed: int = 0) -> Tensor:
    return sampling.draw(n, schedule, torch.Generator().manual_seed(seed))


def test_uniform_covers_every_index_evenly():
    schedule, n = schedules.vp(steps=50), 200_000
    t = drawn(TimeSampling(), schedule, n)
    counts = torch.bincount(t.long(), minlength=50)
    assert torch.equal(t, t.floor()) and len(counts) == 50
    # chi-square with 49 degrees of freedom: mean 49, variance 98; five standard deviations
    expected = n / 50
    assert float(((counts - expected) ** 2 / expected).sum()) < 49 + 5 * 98**0.5


def kolmogorov(sample: Tensor, cdf: Tensor) -> float:
    """The largest distance between a sample's distribution and a given one; cdf is taken at the sorted sample."""
    rank = torch.arange(1, len(sample) + 1, dtype=torch.float64) / len(sample)
    return float(torch.maximum((rank - cdf).abs(), (rank - 1 / len(sample) - cdf).abs()).max())


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.8, 0.6), (1.2, 1.5)])
def test_logit_normal_has_its_density(mean: float, std: float):
    """Esser et al. 2024, eq. 19. Kolmogorov-Smirnov at 99.9 %: 1.949/sqrt(n)."""
    n = 20_000
    t = drawn(TimeSampling("logit_normal", mean, std), PROCESSES["flow"], n).sort().values
    assert kolmogorov(t, torch.special.ndtr((torch.logit(t) - mean) / std)) < 1.949 / n**0.5
    assert kolmogorov(t, t) > 1.949 / n**0.5  # and not the uniform one


def test_uniform_on_a_continuous_process_by_the_same_measure():
    for name in ("flow", "continuous_vp"):
        t = drawn(TimeSampling(), PROCESSES[name], 20_000).sort().values
        assert kolmogorov(t, t) < 1.949 / 20_000**0.5
    assert float(drawn(TimeSampling(), PROCESSES["edm"], 1000).max()) > 70  # from end to end of that process's own time


def test_logit_normal_in_a_table_gives_its_indices():
    t = drawn(TimeSampling("logit_normal"), PROCESSES["sd"], 5000)
    assert torch.equal(t, t.floor()) and 0 <= float(t.min()) and float(t.max()) <= 999
    middle = float(((t >= 250) & (t < 750)).double().mean())
    share = 1 - 2 * float(torch.special.ndtr(-torch.logit(torch.tensor(0.75, dtype=torch.float64))))
    assert abs(middle - share) < 5 * (share * (1 - share) / 5000) ** 0.5  # five standard errors


def test_times_come_from_the_given_generator_alone():
    assert torch.equal(drawn(TimeSampling(), PROCESSES["flow"], 9, 3), drawn(TimeSampling(), PROCESSES["flow"], 9, 3))
    assert not torch.equal(drawn(TimeSampling(), PROCESSES["flow"], 9, 3), drawn(TimeSampling(), PROCESSES["flow"], 9, 4))


def test_refused():
    with pytest.raises(UnknownName, match="did you mean 'logit_normal'"):
        TimeSampling("logit-normal")
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ArgumentError, match="got std"):
            TimeSampling("logit_normal", std=std)
    with pytest.raises(UnknownName, match="unknown prediction 'epss'"):
        Loss("epss")
    for gamma in (0.0, -5.0, math.nan):
        with pytest.raises(ArgumentError, match="got min_snr"):
            Loss(min_snr=gamma)
