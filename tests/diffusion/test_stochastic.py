"""Stochastic solvers against closed forms: exact variances on a Gaussian, weak orders, seeded draws, consistency functions.

On centred Gaussian data a solver is linear in its noises, so its variance is the sum of their squared coefficients: no sampling, no luck.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, ENDS, GAUSSIAN, PROCESSES, SHARES, UNIT, Mixture, even_times, ones
from unnoise.diffusion.ancestral import shared_noise
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import Schedule
from unnoise.diffusion.solvers import SOLVERS
from unnoise.diffusion.steps import level

SD, DDPM, EDM, FLOW = (PROCESSES[name] for name in ("sd", "ddpm", "edm", "flow"))


class Basis:
    """Noise as bookkeeping: draw k is the k-th unit vector, so that a linear run ends on its own coefficients, and their squares add up."""

    def __init__(self) -> None:
        self.count = 0

    def draw(self, like: Tensor) -> Tensor:
        self.count += 1
        return torch.nn.functional.one_hot(torch.tensor([self.count]), like.shape[1]).to(like)


def variance(mixture: Mixture, schedule: Schedule, sampler: str, start: float = 1.0, **arguments: object) -> float:
    """The exact variance of what a stochastic solver makes of N(0, start) and normal noise, for centred Gaussian data."""
    made = plan(schedule, sampler, **arguments)  # type: ignore[arg-type]
    x = torch.zeros(1, 2 * len(made.levels) + 1, dtype=torch.float64)  # two draws a step at most
    x[0, 0] = start**0.5
    *_, last = stream(Run(x, made, Basis()), mixture.denoiser(schedule))
    return last.x.square().sum().item()


POINT = Mixture((1.0,), (0.0,), (0.0,))
FULL = {"unit": (UNIT, 0.999899999999, 0.991067376352), "quarter": (GAUSSIAN, 0.250752075007, 0.246125211360), "point": (POINT, 0.0, 0.0)}


@pytest.mark.parametrize("data, large, small", FULL.values(), ids=FULL)
def test_a_thousand_ancestral_steps(data: Mixture, large: float, small: float):
    """DDPM's chain. For N(0, I) the large variance is exact: what is missing is beta_0, which the last step does not add."""
    for name, expected in (("beta", large), ("posterior", small)):
        assert variance(data, DDPM, "ddpm", steps=1000, spacing="leading", variance=name) == pytest.approx(expected, abs=1e-12)


SHORT = {
    10: (0.34695093, 0.11106430),
    20: (0.29600463, 0.15324442),
    50: (0.26752601, 0.19724511),
    100: (0.25856190, 0.21926356),
    250: (0.25332728, 0.23603821),
}


@pytest.mark.parametrize("steps", SHORT)
def test_short_ancestral_chains(steps: int):
    large, small = SHORT[steps]
    run = {"steps": steps, "spacing": "leading"}
    assert variance(GAUSSIAN, DDPM, "ddpm", variance="beta", **run) == pytest.approx(large, abs=1e-8)
    assert variance(GAUSSIAN, DDPM, "ddpm", variance="posterior", **run) == pytest.approx(small, abs=1e-8)
    assert variance(GAUSSIAN, DDPM, "ddim", eta=1.0, **run) == pytest.approx(small, abs=1e-8)


# Weak orders


def variance_error(sampler: str, steps: int, schedule: Schedule = SD, **options: object) -> float:
    """Relative error of the variance at the last time, from the exact marginal at the first."""
    t = even_times(schedule, steps)
    first, last = (float(0.25 * schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2) for time in (t[0], t[-1]))
    return variance(GAUSSIAN, schedule, sampler, first, times=t, **options) / last - 1


# independent implementations (numpy), relative errors at 10, 20, .. 320 steps
WEAK = {
    ("ddim", "eta"): (-0.427, -0.255, -0.140, -0.0736, -0.0377, -0.0191),  # the first-order SDE solver of DPM-Solver++
    ("dpmpp_2m_sde", ""): (0.0682, 0.0286, 7.7e-3, 1.95e-3, 4.9e-4, 1.2e-4),
}


@pytest.mark.parametrize("sampler, option", WEAK)
def test_weak_errors_are_those_of_other_implementations(sampler: str, option: str):
    for steps, expected in zip((10, 20, 40, 80, 160, 320), WEAK[sampler, option], strict=True):
        found = variance_error(sampler, steps, **{option: 1.0} if option else {})
        assert found == pytest.approx(expected, rel=0.03 if expected < 2e-4 else 0.008), steps


NOISY = {  # the variants whose options change the formula, and the order that each has
    "ddpm": ("ddpm", {}, 1),
    "ddpm, large": ("ddpm", {"variance": "beta"}, 1),
    "ddim": ("ddim", {"eta": 1.0}, 1),
    "ddim, half": ("ddim", {"eta": 0.5}, 1),
    "euler_ancestral": ("euler_ancestral", {}, 1),
    "dpm2_ancestral": ("dpm2_ancestral", {}, 2),
    "dpm2_ancestral, half": ("dpm2_ancestral", {"eta": 0.5}, 2),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}, 2),
    "dpmpp_sde": ("dpmpp_sde", {}, 2),
    "dpmpp_sde, half": ("dpmpp_sde", {"eta": 0.5}, 2),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, 2),
    "dpmpp_2m_sde, heun": ("dpmpp_2m_sde", {"correction": "heun"}, 2),
    "dpmpp_2m_sde, ode": ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", {}, 2),
    "dpmpp_3m_sde, released": ("dpmpp_3m_sde", {"coefficients": "released"}, 2),
    "er_sde 1": ("er_sde", {"order": 1}, 1),
    "er_sde 2": ("er_sde", {"order": 2}, 2),
    "er_sde": ("er_sde", {}, 2),
    "sa_solver 1": ("sa_solver", {"order": 1}, 2),
    "sa_solver": ("sa_solver", {}, 2),
    "sa_solver, half": ("sa_solver", {"tau": 0.5}, 2),
    "pc, predictor alone": ("pc", {"corrector_steps": 0}, 1),
    "pc, Euler-Maruyama": ("pc", {"corrector_steps": 0, "predictor": "euler_maruyama"}, 1),
    "pc, ancestral": ("pc", {"corrector_steps": 0, "predictor": "ancestral"}, 1),
}


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sampler, options, order", NOISY.values(), ids=NOISY)
def test_the_weak_order(sampler: str, options: dict, order: int, schedule: Schedule):
    """ER-SDE of order 3 renews so little noise that its term of order 2 is not yet seen at these steps: it measures above 3."""
    coarse, fine = (variance_error(sampler, steps, schedule, **options) for steps in (160, 320))
    found = math.log2(coarse / fine)
    assert found > 3 if (sampler, options) == ("er_sde", {}) else found == pytest.approx(order, abs=0.1)


CHURNED = {  # deterministic solvers with noise; what gamma adds is s_churn / steps
    "euler, churn": ("euler", {"s_churn": 10.0}, 1),
    "heun, churn": ("heun", {"s_churn": 10.0}, 2),
    "dpm2, churn": ("dpm2", {"s_churn": 10.0}, 2),
    "dpm_fast, eta": ("dpm_fast", {"eta": 1.0}, 2),
}


@pytest.mark.parametrize("sampler, options, order", CHURNED.values(), ids=CHURNED)
def test_solvers_with_added_noise_keep_their_order(sampler: str, options: dict, order: int):
    coarse, fine = (abs(variance_error(sampler, steps, **options)) for steps in (160, 320))
    assert math.log2(coarse / fine) > order - 0.2 or fine < 1e-6


def test_the_weak_orders_are_those_declared():
    declared = {name: row.order for name, row in SOLVERS.items() if row.stochastic and row.order}
    assert declared == {sampler: order for sampler, options, order in NOISY.values() if sampler in declared and not options} | {"pc": 1}


def test_half_a_step_shares_its_noise_with_the_whole_one():
    """dpmpp_sde draws twice a step. The reverse SDE's own noise over h1 + h2, written out: exp(-h2) sqrt(1-exp(-2 h1)) n1 + ..."""
    t, half, s = (level(SD, time) for time in (900.0, 700.0, 400.0))
    h1, h2 = half.lam - t.lam, s.lam - half.lam
    expected = math.exp(-h2) * math.sqrt((1 - math.exp(-2 * h1)) / (1 - math.exp(-2 * (h1 + h2))))
    assert shared_noise(t, half, s) == pytest.approx(expected, rel=1e-12)


# Seeded draws


class Normal:
    """Seeded noise of every row from one generator: fast for many rows."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


DRAWN = NOISY | {name: row for name, row in CHURNED.items() if row[0] != "dpm_fast"}  # its places are worked out row by row: too slow
BIAS = {1: 0.045, 2: 1e-3}  # of the variance at 160 steps, as the table of weak errors has it


@pytest.mark.parametrize("sampler, options, order", DRAWN.values(), ids=DRAWN)
def test_draws_have_the_exact_variance(sampler: str, options: dict, order: int):
    """100,000 draws of 160 steps: mean 0 and the variance of the marginal, inside five standard errors of sqrt(2/n) and the bias."""
    n, t = 100_000, even_times(SD, 160)
    first, last = (float(0.25 * SD.alpha(time) ** 2 + SD.sigma(time) ** 2) for time in (t[0], t[-1]))
    x = Normal(0).draw(torch.empty(n, 1, dtype=torch.float64)) * first**0.5
    *_, state = stream(Run(x, plan(SD, sampler, times=t, **options), Normal(1)), GAUSSIAN.denoiser(SD))
    assert float(state.x.var()) / last == pytest.approx(1, abs=5 * (2 / n) ** 0.5 + BIAS[order])
    assert abs(float(state.x.mean())) < 5 * (last / n) ** 0.5


@pytest.mark.parametrize("sampler, options, order", DRAWN.values(), ids=DRAWN)
def test_draws_are_the_mixture(sampler: str, options: dict, order: int):
    """100 even steps, 40,000 rows from the exact marginal: W1 to the data's quantiles within the solver's bias and twice what chance has.

    99 % of exact draws stay below 1.75 times the mean of W1.
    """
    n, t = 40_000, even_times(SD, 100)
    share = torch.special.ndtr(Normal(2).draw(torch.empty(n, dtype=torch.float64)))
    x = EASY.at(SD, float(t[0]), share)[:, None]
    *_, last = stream(Run(x, plan(SD, sampler, times=t, **options), Normal(3)), EASY.denoiser(SD))
    found, wanted = torch.quantile(last.x[:, 0], SHARES), EASY.at(SD, float(t[-1]), SHARES)
    chance = 1.288 * 1.1 / n**0.5  # E[W1] of n draws, for a deviation of 1.1
    assert float((found - wanted).abs().mean()) < {1: 0.03, 2: 0.003}[order] + 2 * chance


# Predictor and corrector


def test_langevin_steps_bring_the_wrong_noise_right():
    """Ten predictor steps of the large kind leave too much noise; Langevin steps at each level take most of it away."""
    n, t = 50_000, even_times(SD, 10)
    start = float(0.25 * SD.alpha(t[0]) ** 2 + SD.sigma(t[0]) ** 2)
    exact = float(0.25 * SD.alpha(t[-1]) ** 2 + SD.sigma(t[-1]) ** 2)
    x = Normal(0).draw(torch.empty(n // 25, 25, dtype=torch.float64)) * start**0.5
    errors = {}
    for steps in (0, 1, 4):
        made = plan(SD, "pc", times=t, corrector_steps=steps, snr=0.3)
        *_, last = stream(Run(x, made, Normal(1)), GAUSSIAN.denoiser(SD))
        errors[steps] = abs(float(last.x.var()) / exact - 1)
    assert errors[1] < 0.8 * errors[0] and errors[4] < 0.6 * errors[0], errors


def test_langevin_norms_of_a_row_or_of_the_batch():
    """Batch norms are the authors': an image then depends on its batch-mates. Ours are the image's own unless asked."""

    def last(rows: slice, norm: str) -> Tensor:
        noise = torch.randn(40, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        x = torch.linspace(-2, 3, 24, dtype=torch.float64).view(3, 8)
        run = Run(x[rows], plan(SD, "pc", 8, norm=norm), Recorded([draw[rows] for draw in noise]))
        *_, state = stream(run, EASY.denoiser(SD))
        return state.x

    assert torch.equal(last(slice(1, 2), "row"), last(slice(0, 3), "row")[1:2])
    assert not torch.allclose(last(slice(1, 2), "batch"), last(slice(0, 3), "batch")[1:2])


# Consistency functions


def to_the_end(schedule: Schedule):
    """The exact consistency function of the mixture: from any point to the end of its path at the cleanest trained level."""

    def jump(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t[:1]), schedule.sigma(t[:1])
        share = EASY.cdf(x[:, 0], alpha, sigma).clamp(1e-12, 1 - 1e-12)
        end = torch.tensor(schedule.first, dtype=torch.float64)
        return (EASY.quantile(share, schedule.alpha(end), schedule.sigma(end)) / schedule.alpha(end))[:, None]

    return jump


@pytest.mark.parametrize("between", [[], [0.821], [24.4, 5.84, 0.9]])
def test_a_consistency_function_samples_the_data_in_any_number_of_steps(between: list[float]):
    """One step, the paper's two, and four. Its results have the cleanest level's noise already: variances add up to the marginals'."""
    n, noise = 20_000, Counted(5)
    x = EASY.at(EDM, 80.0, (torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    made = plan(EDM, "consistency", times=[80.0, *between, EDM.first])
    *_, last = stream(Run(x, made, noise), to_the_end(EDM))
    assert noise.draws == len(between)
    found, wanted = torch.quantile(last.x[:, 0], SHARES), EASY.at(EDM, EDM.first, SHARES)
    assert float((found - wanted).abs().mean()) < 2 * 1.288 * 1.1 / n**0.5


class Counted(Normal):
    draws = 0

    def draw(self, like: Tensor) -> Tensor:
        self.draws += 1
        return super().draw(like)


def test_two_steps_are_two_jumps_by_default():
    """Even spacings would put the second one at the cleanest level, where the function is the identity."""
    for sampler in ("lcm", "consistency"):
        first, second, end = (level.t for level in plan(EDM, sampler, 2).levels)
        assert first == 80 and 30 < second < 50 and end == 0


def test_the_two_differ_by_the_noise_of_the_cleanest_level():
    """lcm adds sigma n, also at the cleanest level; consistency sqrt(sigma² - sigma_min²) n, and none there."""
    times = [80.0, 0.004, 0.002]
    noise = lambda: Recorded([torch.ones(1, 1, dtype=torch.float64)] * 2)  # noqa: E731
    states = {
        name: [state.x.item() for state in stream(Run(ones(), plan(EDM, name, times=times), noise()), lambda x, t: 0 * x)]
        for name in ("lcm", "consistency")
    }
    assert states["lcm"] == pytest.approx([0.004, 0.002])
    assert states["consistency"] == pytest.approx([math.sqrt(0.004**2 - 0.002**2), 0.0], abs=1e-15)
