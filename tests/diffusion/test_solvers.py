"""Solvers against closed forms: multipliers on a Gaussian, errors and orders on a mixture, variances of ancestral sampling."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, GAUSSIAN, PROCESSES, SHARES, UNIT, Mixture, NoNoise, ones, walk
from unnoise.diffusion import schedules
from unnoise.diffusion.grids import GRIDS, grid
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.predictions import PREDICTIONS
from unnoise.diffusion.sampling import Estimate, Plan, Run, State, advance, plan, sample, stream
from unnoise.diffusion.schedules import VE, Schedule
from unnoise.diffusion.solvers import SOLVERS, Level, Solution, Solver, Step, samplers, solver
from unnoise.errors import ArgumentError, UnknownName

DETERMINISTIC = [name for name, row in SOLVERS.items() if not row.stochastic]
STOCHASTIC = [name for name, row in SOLVERS.items() if row.stochastic]
SD, DDPM, EDM, FLOW = (PROCESSES[name] for name in ("sd", "ddpm", "edm", "flow"))


def multiplier(mixture: Mixture, schedule: Schedule, sampler: str, **arguments: object) -> float:
    """On a centred Gaussian every deterministic solver is linear: where it carries 1."""
    return walk(mixture, schedule, sampler, ones()[:, 0], **arguments).item()


# Multipliers to the last printed digit: products of (a_t a_s S² + b_t b_s) / (a_t² S² + b_t²), from a product in 50 digits


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("steps, expected", [(5, 0.269332849753), (10, 0.374128493791), (20, 0.433734422246), (50, 0.472439113028)])
def test_ddim_on_a_gaussian(sampler: str, steps: int, expected: float):
    assert multiplier(GAUSSIAN, DDPM, sampler, steps=steps, spacing="leading") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("steps, expected", [(5, 0.778093214026), (10, 0.883485183679), (20, 0.940119250625), (50, 0.975623943329)])
def test_ddim_turns_by_equal_angles(steps: int, expected: float):
    """Data N(0, 1), alpha = cos, sigma = sin: each of n steps from pi/2 to 0 multiplies by cos(pi/2n)."""
    schedule = PROCESSES["zero_snr"]  # the only table that starts at pi/2
    angle = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)
    t = schedule.time(2 * (angle.cos().log() - angle.sin().log()))
    t[0], t[-1] = schedule.start, schedule.end
    assert math.cos(math.pi / 2 / steps) ** steps == pytest.approx(expected, abs=1e-12)
    # the times come through log and back: 1e-16 of alpha_bar near its 0 is 1e-10 of the angle's square
    assert multiplier(UNIT, schedule, "ddim", times=t) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("steps, expected", [(5, 0.369230769231), (10, 0.430782604899), (20, 0.464247500734), (50, 0.485396738270)])
def test_euler_on_a_flow(steps: int, expected: float):
    assert multiplier(GAUSSIAN, FLOW, "euler", steps=steps) == pytest.approx(expected, abs=1e-12)


def test_heun_as_edm_runs_it():
    """18 steps, rho 7, .002 to 80, 35 evaluations; exact .006249877933."""
    assert multiplier(GAUSSIAN, EDM, "heun", steps=18, spacing="karras") == pytest.approx(0.006595307963, abs=1e-12)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_data_that_is_known_is_reached_in_any_number_of_steps(sampler: str):
    """A denoiser that always says the same x_0: every path is straight in (x - alpha x_0)/sigma, so no solver errs on the way either."""
    for schedule in PROCESSES.values():
        run = Run(torch.ones(1, 1).double() * 5, plan(schedule, sampler, 7), NoNoise())
        start = run.plan.levels[0]
        noise = (5 - start.alpha * 0.75) / start.sigma
        for state in stream(run, lambda x, t: torch.full_like(x, 0.75)):
            expected = schedule.alpha(state.t).item() * 0.75 + schedule.sigma(state.t).item() * noise
            assert state.x.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


# Errors and orders on the mixture, at fixed ends: not to sigma 0, where the last step alone costs 2e-3


def even_times(schedule: Schedule, steps: int, low: float = 0.0291671582, high: float = 14.6146412293) -> Tensor:
    """steps + 1 times, even in logsnr, between two levels sigma/alpha: those at the ends of Stable Diffusion's table."""
    return schedule.time(torch.linspace(-2 * math.log(high), -2 * math.log(low), steps + 1, dtype=torch.float64)).clamp(max=schedule.start)


def error(schedule: Schedule, sampler: str, times: Tensor, mixture: Mixture = EASY) -> float:
    """The largest distance from the exact path over 200 quantiles."""
    first, last = (mixture.at(schedule, float(t), SHARES) for t in (times[0], times[-1]))
    return (walk(mixture, schedule, sampler, first, times=times) - last).abs().max().item()


ENDS = {"vp": SD, "ve": EDM, "flow": FLOW, "flow shift 3": PROCESSES["flow_shift3"], "continuous vp": PROCESSES["continuous_vp"]}


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_the_declared_order(sampler: str, schedule: Schedule):
    coarse, fine = (error(schedule, sampler, even_times(schedule, steps)) for steps in (80, 160))
    # between 80 and 160 steps what is left of the next order is below a twentieth of the first
    assert math.log2(coarse / fine) == pytest.approx(SOLVERS[sampler].order, abs=0.1)


@pytest.mark.parametrize("sampler, order", [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("name", ["flow", "zero_snr"])
def test_the_order_holds_from_pure_noise(sampler: str, order: int, name: str):
    """sigma/alpha is infinite at the start; slopes along straight paths are not."""
    schedule = PROCESSES[name]
    share = torch.linspace(1, 0.02, 161, dtype=torch.float64)
    t = schedule.time(-2 * torch.logit(share))
    t[0] = schedule.start
    coarse, fine = error(schedule, sampler, t[::2]), error(schedule, sampler, t)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


# Maximal errors of independent implementations (numpy, and diffusers where it has the sampler) on this problem, three digits
COLUMNS = {
    "ddim": {10: 0.231, 20: 0.118, 40: 0.0598, 80: 0.0301, 160: 0.0151, 320: 0.00756},
    "euler": {10: 0.231, 20: 0.118, 40: 0.0598, 80: 0.0301, 160: 0.0151, 320: 0.00756},
    "heun": {10: 0.100, 20: 0.0221, 40: 5.2e-3, 80: 1.3e-3, 160: 3.1e-4},
    "dpmpp_2m": {10: 4.85e-2, 20: 1.22e-2, 40: 2.98e-3, 80: 7.35e-4, 160: 1.82e-4, 320: 4.54e-5},
}


@pytest.mark.parametrize("sampler", COLUMNS)
def test_errors_are_those_of_other_implementations(sampler: str):
    """dpmpp_2m is the paper's form; exact exponential coefficients would give 8.53e-2, 1.98e-2, 4.71e-3."""
    for steps, expected in COLUMNS[sampler].items():
        digits = 0.05 if sampler == "heun" else 0.006  # two digits are printed, or three
        assert error(SD, sampler, even_times(SD, steps)) == pytest.approx(expected, rel=digits), steps


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_more_steps_are_better_also_where_they_do_not_divide_the_table(sampler: str, spacing: str):
    """The next time is the next entry. t - 1000//N instead goes wrong at trailing 80 and 160, lower orders at the end at 15 and more."""
    errors = []
    for steps in (10, 20, 40, 80, 160):
        t = plan(SD, sampler, steps, spacing).levels
        first = EASY.at(SD, t[0].t, SHARES)
        errors.append((walk(EASY, SD, sampler, first, steps=steps, spacing=spacing) - EASY.at(SD, -1.0, SHARES)).abs().max().item())
    floor = 2.3e-3  # what the one step from sigma .0292 to 0 costs
    assert all(fine < 0.7 * coarse or fine < floor for coarse, fine in pairwise(errors)), errors
    assert errors[-1] < 0.035


@pytest.mark.parametrize("name", ["ddpm", "cosine", "zero_snr", "continuous_vp", "flow", "flow_shift3"])
def test_heun_from_all_but_pure_noise_does_not_overshoot(name: str):
    """In sigma/alpha, 20291 at the cosine table's end, ten trailing steps would err by 65, and two karras steps by 28,600."""
    schedule = PROCESSES[name]
    for steps, largest in ((2, 1.6), (10, 0.25), (40, 0.07)):
        for spacing in GRIDS:
            first = EASY.at(schedule, plan(schedule, "heun", steps, spacing).levels[0].t, SHARES)
            found = walk(EASY, schedule, "heun", first, steps=steps, spacing=spacing)
            assert (found - EASY.at(schedule, schedule.end, SHARES)).abs().max().item() < largest, (steps, spacing)


# Ancestral sampling


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
    x = torch.zeros(1, len(made.levels) + 1, dtype=torch.float64)
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


def variance_error(sampler: str, steps: int, schedule: Schedule = SD, **options: object) -> float:
    """Relative error of the variance at the last time, from the exact marginal at the first."""
    t = even_times(schedule, steps)
    first, last = (float(0.25 * schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2) for time in (t[0], t[-1]))
    return variance(GAUSSIAN, schedule, sampler, first, times=t, **options) / last - 1


def test_weak_errors_of_ddim_with_noise():
    """The first-order SDE solver of DPM-Solver++ is DDIM with eta 1; the figures are an independent implementation's."""
    for steps, expected in {10: -0.427, 20: -0.255, 40: -0.140, 80: -0.0736, 160: -0.0377, 320: -0.0191}.items():
        assert variance_error("ddim", steps, eta=1.0) == pytest.approx(expected, rel=0.006), steps


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_the_declared_weak_order(sampler: str, schedule: Schedule):
    coarse, fine = (variance_error(sampler, steps, schedule) for steps in (320, 640))
    assert math.log2(coarse / fine) == pytest.approx(SOLVERS[sampler].order, abs=0.1)


def test_the_noise_really_is_noise():
    """The same variance from 20,000 seeded images through `sample`; five standard errors of sqrt(2/n)."""
    n = 20_000  # each has a stream of its own
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    made = sample(
        lambda x, t: GAUSSIAN.denoise(x.double(), DDPM.alpha(t)[:, None], DDPM.sigma(t)[:, None]).float(),
        x,
        schedule=DDPM,
        sampler="ddpm",
        steps=10,
        spacing="leading",
        variance="beta",
    )
    assert float(made.var()) / SHORT[10][0] == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert abs(float(made.mean())) < 5 * (SHORT[10][0] / n) ** 0.5


def noises(steps: int, rows: int = 5) -> list[Tensor]:
    return list(torch.randn(steps, rows, 1, dtype=torch.float64))


def with_noise(sampler: str, schedule: Schedule, noise: list[Tensor], denoiser=None, **arguments: object) -> Tensor:
    x = torch.linspace(-2, 2, len(noise[0]), dtype=torch.float64)[:, None]
    run = Run(x, plan(schedule, sampler, **arguments), Recorded(noise))  # type: ignore[arg-type]
    *_, last = stream(run, denoiser or EASY.denoiser(schedule))
    return last.x


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("spacing", GRIDS)
def test_ddim_with_eta_one_is_the_posterior_of_ddpm(spacing: str, schedule: Schedule):
    """Song et al. 2021, section 4.1: the same states from the same noise."""
    noise = noises(12)
    pair = [
        with_noise(sampler, schedule, noise, steps=12, spacing=spacing, **options)
        for sampler, options in (("ddim", {"eta": 1.0}), ("ddpm", {"variance": "posterior"}))
    ]
    torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)


def test_both_leave_the_right_noise_where_a_run_stops_half_way():
    """A run that hands over at index 500 (another model refines) must leave that level's variance: for data N(0, I) it is 1."""
    times = torch.arange(999, 499, -1, dtype=torch.float64)
    for sampler, options in (("ddim", {"eta": 1.0}), ("ddpm", {"variance": "posterior"}), ("ddpm", {"variance": "beta"})):
        found = variance(UNIT, DDPM, sampler, times=times, **options)
        # the last step's own noise is beta_500 = .01 of it; what the small variance lacks over the whole chain is .002
        assert found == pytest.approx(1, abs=3e-3), (sampler, options)


def test_eta_between():
    noise = noises(10)
    found = [with_noise("ddim", SD, noise, steps=10, eta=eta) for eta in (0.0, 0.5, 1.0)]
    assert len({tuple(x.flatten().tolist()) for x in found}) == 3
    assert torch.equal(found[0], with_noise("euler", SD, noise, steps=10))


def one_noisy_step(variance: str, learned: float = 0.0) -> Tensor:
    """What a step adds to its mean, with noise 1."""
    denoiser = lambda x, t: Estimate(torch.zeros_like(x), torch.full_like(x, learned))  # noqa: E731
    x = torch.zeros(1, 1, dtype=torch.float64)
    run = Run(x, plan(DDPM, "ddpm", times=[500.0, 400.0, -1.0], variance=variance), Recorded([torch.ones(1, 1)]))
    return next(stream(run, denoiser)).x


def test_a_learned_variance_lies_between_both():
    """Nichol & Dhariwal 2021, eq. 15: between in the logarithm; -1 the small one, 1 the large one."""
    a, b = DDPM.alpha_bar[500], DDPM.alpha_bar[400]
    beta = 1 - a / b
    small, large = (1 - b) / (1 - a) * beta, beta
    torch.testing.assert_close(one_noisy_step("posterior").flatten()[0] ** 2, small)
    torch.testing.assert_close(one_noisy_step("beta").flatten()[0] ** 2, large)
    for learned in (-1.0, -0.4, 0.0, 1.0):
        part = (learned + 1) / 2
        torch.testing.assert_close(one_noisy_step("learned_range", learned).flatten()[0] ** 2, large**part * small ** (1 - part))


def test_a_learned_variance_that_nobody_learned():
    run = Run(ones(), plan(SD, "ddpm", 5, variance="learned_range"), Recorded(noises(5, 1)))
    with pytest.raises(ArgumentError, match="use 'posterior' or 'beta'"):
        list(stream(run, EASY.denoiser(SD)))


# Promises of every solver on every process


def variants() -> list[tuple[str, dict]]:
    more = [("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0}), ("ddpm", {"variance": "beta"})]
    return [*((name, {}) for name in SOLVERS), *more]


class Alternating:
    """A cheap noise of variance 1: one and minus one in turn."""

    def __init__(self) -> None:
        self.sign = 1.0

    def draw(self, like: Tensor) -> Tensor:
        self.sign = -self.sign
        return torch.full_like(like, self.sign)


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("spacing", GRIDS)
def test_one_step_returns_the_estimate(spacing: str, schedule: Schedule):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for sampler, options in variants():
        run = Run(x, plan(schedule, sampler, 1, spacing, **options), Alternating())
        t = torch.full((5,), run.plan.levels[0].t, dtype=torch.float64)
        (state,) = stream(run, EASY.denoiser(schedule))
        torch.testing.assert_close(state.x, EASY.denoiser(schedule)(x, t), rtol=1e-14, atol=1e-15, msg=sampler)


def predicted(schedule: Schedule):
    """The exact denoiser, heard through each prediction that this process can have: one row a prediction. And how many there are."""
    known = [p for p in PREDICTIONS.values() if (p.name != "edm" or isinstance(schedule, VE))]
    if float(schedule.alpha(schedule.start)) == 0:
        known = [p for p in known if p.name != "eps"]  # pure noise: eps says nothing about x_0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        rows = x.view(-1, len(known))
        alpha, sigma = (value.view(-1, len(known))[:, :1] for value in (schedule.alpha(t), schedule.sigma(t)))
        x0 = EASY.denoise(rows, alpha.expand_as(rows), sigma.expand_as(rows))
        heard = [p.x0(p.output(x0[:, [i]], rows[:, [i]], alpha, sigma), rows[:, [i]], alpha, sigma) for i, p in enumerate(known)]
        return torch.cat(heard, 1).view_as(x)

    return denoise, len(known)


def limit(plan: Plan, sampler: str, options: dict) -> float:
    """Six standard deviations from a mean of the data, but for two methods that are as their papers have them and leave it in few steps.

    Heun's method in sigma/alpha (EDM, k-diffusion) overshoots; DDPM's large variance adds noise of the level left behind, on VE up to 80.
    """
    few = len(plan.levels) <= 20
    overshoots = sampler == "heun" and not plan.straight
    floods = options == {"variance": "beta"} and isinstance(plan.schedule, VE)
    return math.inf if few and (overshoots or floods) else 4.0


def assert_ends_on_the_data(schedule: Schedule, steps: int) -> None:
    """All solvers and grids at once, answered together; every prediction a row."""
    denoiser, rows = predicted(schedule)
    limits: dict[Run, float] = {}
    for sampler, options in variants():
        for spacing in GRIDS:
            made = plan(schedule, sampler, steps, spacing, **options)
            x = torch.full((rows, 1), 0.3 * made.levels[0].sigma, dtype=torch.float64)
            limits[Run(x, made, Alternating())] = limit(made, sampler, options)
    while unfinished := [run for run in limits if not run.done]:
        for run, state in zip(unfinished, advance(unfinished, denoiser), strict=True):
            if run.done:
                assert isinstance(state, State) and state.step == state.steps == len(run.plan.levels) - 1
                torch.testing.assert_close(state.x, state.x0, rtol=1e-12, atol=1e-12)  # sigma is 0: the state is the picture
                assert bool((state.x.abs() < limits[run]).all())
                torch.testing.assert_close(state.x, state.x[:1].expand_as(state.x), rtol=1e-5, atol=1e-5)  # whatever the prediction


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 50])
def test_every_solver_on_every_grid_ends_on_the_data(steps: int, schedule: Schedule):
    assert_ends_on_the_data(schedule, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name, steps", [("sd", 1000), ("zero_snr", 999), ("edm", 999), ("flow", 1000)])
def test_every_solver_on_every_grid_ends_on_the_data_in_many_steps(name: str, steps: int):
    assert_ends_on_the_data(PROCESSES[name], steps)


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_every_solver_ends_on_the_first_entry_too(sampler: str, schedule: Schedule):
    """As CompVis does: sigma is not 0 there. Grids that come to it by themselves must not step from it to it (NaN elsewhere)."""
    for spacing in GRIDS:
        for steps in (2, 15, 20):
            t = grid(schedule, spacing, steps, ending="first")
            if len(t) > 1:
                run = Run(ones() * 0.3 * schedule.sigma(t[0]), plan(schedule, sampler, times=t), Alternating())
                *_, last = stream(run, EASY.denoiser(schedule))
                assert last.t == schedule.first and bool(torch.isfinite(last.x).all())


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_shape_and_dtype(sampler: str, shape: tuple[int, ...], dtype: torch.dtype):
    x = torch.randn(shape, dtype=dtype)
    found = sample(lambda x, t: 0.5 * x, x, schedule=FLOW, sampler=sampler, steps=4)
    assert found.shape == x.shape and found.dtype == dtype


@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_declared_evaluations(sampler: str):
    asked = 0

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return 0.5 * x

    sample(denoiser, ones(), schedule=EDM, sampler=sampler, steps=18)
    # of the last step, onto the data, one is enough: EDM's 35 for 18
    assert asked == 17 * SOLVERS[sampler].evaluations + 1


def test_names_and_options():
    assert [row.name for row in samplers()] == list(SOLVERS)
    assert solver("ddim").options == {"eta": 0.0} and solver("heun").options == {}
    with pytest.raises(UnknownName, match="did you mean 'euler'"):
        solver("eular")
    with pytest.raises(UnknownName, match="unknown option of sampler 'ddim' 'etta': did you mean 'eta'"):
        plan(SD, "ddim", etta=1.0)
    with pytest.raises(UnknownName, match="unknown variance 'betta': did you mean 'beta'"):
        solver("ddpm").with_options({"variance": "betta"})


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf, True, "1", None])
def test_impossible_eta(eta: object):
    with pytest.raises(ArgumentError, match=r"got eta .* as option of sampler 'ddim': expected a number from 0 to 1"):
        plan(SD, "ddim", eta=eta)


def test_an_option_without_a_range_is_a_finite_number():
    def churned(step: Step, *, churn: float = 0.0) -> Solution:
        return (yield step.x, step.here)

    row = Solver("churned", churned, 1, 1, True, "")
    row.with_options({"churn": -3})
    for value in (math.inf, math.nan, 10**400, "3", False):
        with pytest.raises(ArgumentError, match=r"got churn .*: expected a finite number"):
            row.with_options({"churn": value})


def test_half_logsnr_at_the_ends():
    assert Level(0.0, 1.0, 0.0).lam == math.inf and Level(0.0, 0.0, 1.0).lam == -math.inf
    assert Level(0.0, 0.6, 0.3).lam == pytest.approx(math.log(2))
    assert schedules.edm().sigma(2.0).item() == 2
