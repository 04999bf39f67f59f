"""Every prediction both ways: the target that a network is trained for means the x_0 that it came from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.oracle import PROCESSES
from unnoise.diffusion import predictions
from unnoise.diffusion.predictions import PREDICTIONS, Prediction
from unnoise.diffusion.schedules import VE, Schedule
from unnoise.errors import ArgumentError, UnknownName

PAIRS = [
    pytest.param(prediction, schedule, id=f"{prediction.name}-{name}")
    for prediction in PREDICTIONS.values()
    for name, schedule in PROCESSES.items()
    if prediction.name not in ("edm", "consistency") or isinstance(schedule, VE)  # their coefficients are those of a VE process
]


def scales(schedule: Schedule, n: int = 101) -> tuple[Tensor, Tensor]:
    """alpha and sigma (n, 1) at even times, both ends included."""
    t = torch.linspace(schedule.start, schedule.end, n, dtype=torch.float64)[:, None]
    return schedule.alpha(t), schedule.sigma(t)


def example(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 7, dtype=torch.float64), torch.randn(n, 7, dtype=torch.float64)


@pytest.mark.parametrize("prediction, schedule", PAIRS)
def test_the_target_means_the_x0_that_it_came_from(prediction: Prediction, schedule: Schedule):
    alpha, sigma = scales(schedule)
    x0, eps = example(len(alpha))
    back = prediction.x0(prediction.target(x0, eps, alpha, sigma), alpha * x0 + sigma * eps, alpha, sigma)
    defined = (alpha > 0).flatten() if prediction.name in ("eps", "score") else torch.ones(len(alpha), dtype=torch.bool)
    # dividing by alpha, or adding sigma eps of size 80, costs that many times the rounding
    limit = 1e-14 * (1 + sigma) / alpha.clamp(min=1e-16) if prediction.name in ("eps", "score") else 1e-14 * (1 + sigma) / (alpha + sigma)
    assert bool(((back - x0).abs() <= 20 * limit)[defined].all())
    assert int(defined.sum()) >= 100  # only alpha = 0 is undefined, and only for eps and score


@pytest.mark.parametrize("prediction, schedule", PAIRS)
def test_the_output_is_the_inverse_of_x0(prediction: Prediction, schedule: Schedule):
    alpha, sigma = (value[:-1] for value in scales(schedule))  # at the last, sigma = 0: x says everything and F nothing
    x, wanted = example(len(alpha))
    if prediction.name in ("eps", "score"):
        alpha, sigma, x, wanted = (value[(alpha > 0).flatten()] for value in (alpha, sigma, x, wanted))
    output = prediction.output(wanted, x, alpha, sigma)
    torch.testing.assert_close(prediction.x0(output, x, alpha, sigma), wanted, rtol=1e-9, atol=1e-9)
    again = prediction.output(prediction.x0(output, x, alpha, sigma), x, alpha, sigma)
    torch.testing.assert_close(again, output, rtol=1e-9, atol=1e-9 * output.abs().max().item())


@pytest.mark.parametrize("prediction, schedule", PAIRS)
def test_targets_are_finite_at_both_ends(prediction: Prediction, schedule: Schedule):
    alpha, sigma = scales(schedule)
    assert bool(torch.isfinite(prediction.target(*example(len(alpha)), alpha, sigma)).all())


@pytest.mark.parametrize("name", ["x0", "v", "flow"])
def test_pure_noise_is_no_trouble(name: str):
    """alpha = 0, as in a table of zero terminal SNR: these predictions still say x_0 (eps cannot)."""
    x0, eps = example(3)
    alpha, sigma = torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    prediction = predictions.prediction(name)
    torch.testing.assert_close(prediction.x0(prediction.target(x0, eps, alpha, sigma), eps, alpha, sigma), x0)


def test_targets_by_their_papers():
    """One noisy point by hand: alpha .6, sigma .8, x_0 = 2, eps = -1, so x = .4."""
    x0, eps = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    alpha, sigma = torch.tensor([[0.6]], dtype=torch.float64), torch.tensor([[0.8]], dtype=torch.float64)
    expected = {"eps": -1.0, "score": 1.0, "x0": 2.0, "v": 0.6 * -1 - 0.8 * 2, "flow": -1 - 2.0}
    for name, value in expected.items():
        assert PREDICTIONS[name].target(x0, eps, alpha, sigma).item() == pytest.approx(value, abs=1e-15), name


def test_edm_coefficients_at_sigma_1():
    """Karras et al. 2022, table 1, sigma = 1 and sigma_data = .5: c_skip .2, c_out .4472135955, c_in .894427191; weight 1/c_out² = 5."""
    one = torch.ones(1, dtype=torch.float64)
    edm = PREDICTIONS["edm"]
    skip, out = edm.coefficients(one, one)
    assert float(skip) == pytest.approx(0.2, abs=1e-15)
    assert float(out) == pytest.approx(0.4472135955, abs=1e-10)
    assert float(edm.scale_in(one, one)) == pytest.approx(0.894427191, abs=1e-9)
    assert float(1 / out**2) == pytest.approx(5, abs=1e-12)


def test_edm_makes_unit_variance():
    """The network's input and target have variance 1 for data of standard deviation sigma_data: what the coefficients are made for."""
    edm, n = predictions.edm(0.7), 200_000
    sigma = torch.tensor([[0.01], [0.3], [1.0], [20.0]], dtype=torch.float64)
    alpha = torch.ones_like(sigma)
    x0, eps = 0.7 * torch.randn(4, n, dtype=torch.float64), torch.randn(4, n, dtype=torch.float64)
    five_errors = 5 * (2 / n) ** 0.5  # of a variance estimated from n normal numbers
    for value in (edm.scale_in(alpha, sigma) * (x0 + sigma * eps), edm.target(x0, eps, alpha, sigma)):
        torch.testing.assert_close(value.var(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=five_errors)


def test_only_edm_and_consistency_scale_their_input():
    a, s = torch.tensor(0.6), torch.tensor(0.8)
    scaled = {name: float(p.scale_in(a, s)) for name, p in PREDICTIONS.items()}
    assert scaled.pop("edm") == scaled.pop("consistency") == pytest.approx(0.89**-0.5)
    assert scaled == dict.fromkeys(["eps", "score", "x0", "v", "flow"], 1.0)


def test_a_consistency_function_is_the_identity_at_its_end():
    """Song et al. 2023, eq. 5: f(x, sigma_min) = x whatever the network says; an LCM's is at timestep 0."""
    x, said = example(3)
    least = torch.full((3, 1), 0.002, dtype=torch.float64)
    assert torch.equal(predictions.consistency().x0(said, x, torch.ones_like(least), least), x)
    table = PROCESSES["sd"]
    alpha, sigma = (value.expand(3, 1) for value in (table.alpha(0.0), table.sigma(0.0)))
    torch.testing.assert_close(predictions.lcm(table).x0(said, x, alpha, sigma), x, rtol=0, atol=1e-9)


def test_consistency_scalings_by_their_papers():
    """sigma 1: skip .25/(.998² + .25), out .998 * .5/sqrt(1.25). LCM at t = 1, s = 10: skip .25/100.25, out 10/sqrt(100.25) of eps' x_0."""
    one = torch.ones(1, dtype=torch.float64)
    skip, out = (float(value) for value in predictions.consistency().coefficients(one, one))
    assert (skip, out) == pytest.approx((0.25 / (0.998**2 + 0.25), 0.499 / 1.25**0.5), rel=1e-12)
    table = PROCESSES["sd"]
    alpha, sigma = table.alpha(one), table.sigma(one)
    skip, out = predictions.lcm(table).coefficients(alpha, sigma)
    scale = 10 / 100.25**0.5
    torch.testing.assert_close(skip, 0.25 / 100.25 + scale / alpha)
    torch.testing.assert_close(out, -scale * sigma / alpha)


def test_names():
    assert all(prediction.name == name for name, prediction in PREDICTIONS.items())
    with pytest.raises(UnknownName, match="did you mean 'flow'"):
        predictions.prediction("flwo")
    with pytest.raises(ArgumentError, match="sigma_data"):
        predictions.edm(0.0)
