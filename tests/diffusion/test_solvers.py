"""Promises of every solver on every process: it ends on the data, returns the estimate of a single step, refuses wrong options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, PROCESSES, Alternating, NoNoise, ones
from unnoise.diffusion import schedules
from unnoise.diffusion.grids import GRIDS, grid
from unnoise.diffusion.predictions import PREDICTIONS
from unnoise.diffusion.sampling import Plan, Run, State, advance, plan, sample, stream
from unnoise.diffusion.schedules import VE, Schedule
from unnoise.diffusion.solvers import SOLVERS, Level, Solution, Solver, Step, samplers, solver
from unnoise.errors import ArgumentError, UnknownName

SD, DDPM, EDM, FLOW = (PROCESSES[name] for name in ("sd", "ddpm", "edm", "flow"))


def variants() -> list[tuple[str, dict]]:
    """Every solver, and the options that change what it computes."""
    more: list[tuple[str, dict]] = [("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0}), ("ddpm", {"variance": "beta"})]
    more += [("euler", {"s_churn": 10.0}), ("heun", {"s_churn": 10.0}), ("dpm2", {"s_churn": 10.0})]
    more += [("dpm2_ancestral", {"eta": 0.5}), ("dpmpp_2s_ancestral", {"eta": 0.0}), ("dpmpp_sde", {"eta": 0.0})]
    more += [("dpmpp_2m", {"clock": "sigma"}), ("dpmpp_3m", {"coefficients": "released"})]
    more += [("dpmpp_2m_sde", {"correction": "heun"}), ("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_3m_sde", {"coefficients": "released"})]
    more += [(name, {"order": order}) for name in ("unipc", "deis", "er_sde", "sa_solver") for order in (1, 3)]
    more += [("sa_solver", {"tau": 0.0}), ("sa_solver", {"low": 0.2, "high": 0.8})]
    more += [("pc", {"predictor": name, "corrector_steps": 0}) for name in ("ancestral", "euler_maruyama")]
    return [*((name, {}) for name in SOLVERS), *more]


@pytest.mark.parametrize("sampler", [name for name, row in SOLVERS.items() if not row.stochastic])
def test_data_that_is_known_is_reached_in_any_number_of_steps(sampler: str):
    """A denoiser that always says the same x_0: every path is straight in (x - alpha x_0)/sigma, so no solver errs on the way either."""
    for schedule in PROCESSES.values():
        run = Run(torch.ones(1, 1).double() * 5, plan(schedule, sampler, 7), NoNoise())
        start = run.plan.levels[0]
        noise = (5 - start.alpha * 0.75) / start.sigma
        for state in stream(run, lambda x, t: torch.full_like(x, 0.75)):
            expected = schedule.alpha(state.t).item() * 0.75 + schedule.sigma(state.t).item() * noise
            assert state.x.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("spacing", GRIDS)
def test_one_step_returns_the_estimate(spacing: str, schedule: Schedule):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for sampler, options in variants():
        run = Run(x, plan(schedule, sampler, 1, spacing, **options), Alternating())
        t = torch.full((5,), run.plan.levels[0].t, dtype=torch.float64)
        (state,) = stream(run, EASY.denoiser(schedule))
        moved = sampler == "pc" or "s_churn" in options  # a Langevin step, or churn, moves x first
        expected = state.x0 if moved else EASY.denoiser(schedule)(x, t)
        torch.testing.assert_close(state.x, expected, rtol=1e-12, atol=1e-12, msg=sampler)


def predicted(schedule: Schedule):
    """The exact denoiser, heard through each prediction that this process can have: one row a prediction. And how many there are."""
    known = [p for p in PREDICTIONS.values() if p.name in ("eps", "x0", "v", "flow") or (p.name == "edm" and isinstance(schedule, VE))]
    if float(schedule.alpha(schedule.start)) == 0:
        known = [p for p in known if p.name != "eps"]  # pure noise: eps says nothing about x_0

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        rows = x.view(-1, len(known))
        alpha, sigma = (value.view(-1, len(known))[:, :1] for value in (schedule.alpha(t), schedule.sigma(t)))
        x0 = EASY.denoise(rows, alpha.expand_as(rows), sigma.expand_as(rows))
        heard = [p.x0(p.output(x0[:, [i]], rows[:, [i]], alpha, sigma), rows[:, [i]], alpha, sigma) for i, p in enumerate(known)]
        return torch.cat(heard, 1).view_as(x)

    return denoise, len(known)


EXTRAPOLATING = ("lms", "pndm", "ipndm")  # their last step, onto the data, goes on along their slopes; all others return the estimate
# These leave the range in few steps; see `limit`
EAGER = (
    *EXTRAPOLATING,
    "heun",
    "dpm2",
    "dpm2_ancestral",
    "deis",
    "dpm_fast",
    "dpmpp_3m",
    "unipc",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "sa_solver",
)


def limit(plan: Plan, sampler: str, options: dict) -> float:
    """Six standard deviations from a mean of the data, but for methods that are as their papers have them and leave it in few steps.

    Those that follow slopes in sigma/alpha, or parabolas through noisy estimates, overshoot where it falls a hundredfold in a few steps;
    DDPM's large variance, and score SDE's predictors, add noise of the level left behind, on VE up to 80. Langevin steps are as long as
    the norm of an image's noise over that of its score, which for images of one number can be anything.
    """
    ve = isinstance(plan.schedule, VE)
    few = len(plan.levels) <= (51 if ve else 21)
    floods = sampler == "pc" or options.get("variance") == "beta" or options.get("clock") == "sigma"
    if sampler == "pc" and options.get("corrector_steps") != 0:
        return math.inf
    if not few or not (sampler in EAGER or floods):
        return 4.0
    return math.inf if len(plan.levels) <= 4 else 50.0 if ve else 12.0


def drive(runs: list[Run], denoiser) -> dict[Run, State]:
    """All runs answered together; the last state of each."""
    last = {}
    while unfinished := [run for run in runs if not run.done]:
        for run, state in zip(unfinished, advance(unfinished, denoiser), strict=True):
            assert state is None or isinstance(state, State), state
            if state is not None:
                last[run] = state
    return last


def assert_ends_on_the_data(schedule: Schedule, steps: int, chosen: list[tuple[str, dict]], spacings: list[str]) -> None:
    """All solvers and grids at once; every prediction a row."""
    denoiser, rows = predicted(schedule)
    runs: dict[Run, tuple[str, dict, str]] = {}
    for sampler, options in chosen:
        for spacing in spacings:
            made = plan(schedule, sampler, steps, spacing, **options)
            x = torch.full((rows, 1), 0.3 * made.levels[0].sigma, dtype=torch.float64)
            runs[Run(x, made, Alternating())] = (sampler, options, spacing)
    for run, state in drive(list(runs), denoiser).items():
        sampler, options, _ = runs[run]
        assert state.step == state.steps == len(run.plan.levels) - 1
        if sampler not in EXTRAPOLATING:
            torch.testing.assert_close(state.x, state.x0, rtol=1e-12, atol=1e-12)  # sigma is 0: the state is the picture
        assert bool((state.x.abs() < limit(run.plan, sampler, options)).all()), (runs[run], state.x)
        torch.testing.assert_close(state.x, state.x[:1].expand_as(state.x), rtol=1e-5, atol=1e-5)  # whatever the prediction


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_every_solver_on_every_grid_ends_on_the_data(steps: int, schedule: Schedule):
    assert_ends_on_the_data(schedule, steps, variants(), list(GRIDS))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_every_solver_on_every_grid_ends_on_the_data_in_fifty_steps(schedule: Schedule):
    assert_ends_on_the_data(schedule, 50, variants(), list(GRIDS))


@pytest.mark.slow
@pytest.mark.parametrize("name, steps", [(name, 1000 - i % 2) for i, name in enumerate(PROCESSES)])
def test_every_solver_on_every_grid_ends_on_the_data_in_many_steps(name: str, steps: int):
    """1000 and 999 in turn over the processes: a minute each."""
    assert_ends_on_the_data(PROCESSES[name], steps, [(sampler, {}) for sampler in SOLVERS], list(GRIDS))


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_every_solver_ends_on_the_first_entry_too(schedule: Schedule):
    """As CompVis does: sigma is not 0 there. Grids that come to it by themselves must not step from it to it (NaN elsewhere)."""
    runs = []
    for spacing in GRIDS:
        for steps in (2, 15, 20):
            t = grid(schedule, spacing, steps, ending="first")
            x = ones() * 0.3 * schedule.sigma(t[0])
            runs += [Run(x, plan(schedule, sampler, times=t, **options), Alternating()) for sampler, options in variants()]
    for state in drive(runs, EASY.denoiser(schedule)).values():
        assert state.t == schedule.first and bool(torch.isfinite(state.x).all())


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
    least = SOLVERS[sampler].cost(18)
    assert asked >= least if sampler in ("rk45", "dpm_adaptive") else asked == least


def test_names_and_options():
    assert [row.name for row in samplers()] == list(SOLVERS)
    assert solver("ddim").options == {"eta": 0.0} and solver("dpmpp_2s").options == {}
    assert solver("heun").cost(18) == 35 and solver("dpmpp_3m").cost(18) == 19 and solver("rk4").cost(1) == 1
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
