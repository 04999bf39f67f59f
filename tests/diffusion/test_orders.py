"""Deterministic solvers against closed forms: multipliers on a Gaussian, errors and orders on a mixture."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, ENDS, GAUSSIAN, PROCESSES, SHARES, UNIT, Mixture, NoNoise, even_times, ones, walk
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import Schedule
from unnoise.diffusion.solvers import SOLVERS
from unnoise.diffusion.steps import Past, level

SD, DDPM, EDM, FLOW = (PROCESSES[name] for name in ("sd", "ddpm", "edm", "flow"))
DETERMINISTIC = [name for name, row in SOLVERS.items() if not row.stochastic]
WITH_MEMORY = ["lms", "pndm", "ipndm", "deis", "dpmpp_2m", "dpmpp_3m", "unipc"]
AT_ONCE = {"rtol": 1e9, "atol": 1e9}  # an adaptive solver that takes every interval of the grid in one step


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


# Errors and orders on the mixture, at fixed ends: not to sigma 0, where the last step alone costs 2e-3


def exact_past(schedule: Schedule, times: Tensor) -> list[Past]:
    """Steps already taken, without any error."""
    states = [(float(t), EASY.at(schedule, float(t), SHARES)[:, None]) for t in times]
    return [Past(level(schedule, t), x, EASY.denoiser(schedule)(x, torch.full((len(x),), t, dtype=torch.float64))) for t, x in states]


def error(schedule: Schedule, sampler: str, times: Tensor, mixture: Mixture = EASY, *, remembered: int = 0, **options: object) -> float:
    """The largest distance from the exact path over 200 quantiles. `remembered`: so many of the steps are given, exact, as its past."""
    past, times = exact_past(schedule, times[:remembered]), times[remembered:]
    first, last = (mixture.at(schedule, float(t), SHARES) for t in (times[0], times[-1]))
    run = Run(first[:, None], plan(schedule, sampler, times=times, **options), NoNoise(), past=past)  # type: ignore[arg-type]
    *_, state = stream(run, mixture.denoiser(schedule))
    return (state.x[:, 0] - last).abs().max().item()


def order(schedule: Schedule, sampler: str, steps: int = 160, **arguments: object) -> float:
    """Between so many steps and twice as many, where what is left of the next order is below a twentieth of the first."""
    coarse, fine = (error(schedule, sampler, even_times(schedule, n), **arguments) for n in (steps, 2 * steps))  # type: ignore[arg-type]
    return math.log2(coarse / fine)


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_the_declared_order(sampler: str, schedule: Schedule):
    """Of the formula: those that look back are given an exact past, for a first step of order 1 would cap them all at 2."""
    if sampler == "rk45":  # at 320 steps its error is 1e-14
        assert order(schedule, sampler, 80, **AT_ONCE) == pytest.approx(5, abs=0.2)
    else:
        assert order(schedule, sampler, remembered=3 if sampler in WITH_MEMORY else 0) == pytest.approx(SOLVERS[sampler].order, abs=0.1)


COLD = {"dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3, "pndm": 2, "ipndm": 2}


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sampler", COLD)
def test_the_order_from_a_cold_start(sampler: str, schedule: Schedule):
    """dpmpp_3m's first step is of order 2, UniPC corrects its first one; LMS and DEIS start with Euler's and end at 2."""
    assert order(schedule, sampler) == pytest.approx(COLD[sampler], abs=0.1)


ORDERS = [("unipc", 1, 2), ("unipc", 2, 3), ("unipc", 3, 4), ("deis", 1, 1), ("deis", 2, 2), ("deis", 3, 3)]
ORDERS += [("lms", 1, 1), ("lms", 2, 2), ("lms", 3, 3), ("lms", 4, 4), ("ipndm", 1, 1), ("ipndm", 2, 2), ("ipndm", 3, 2)]


@pytest.mark.parametrize("sampler, asked, found", ORDERS)
def test_the_order_that_is_asked_for(sampler: str, asked: int, found: int):
    """UniPC gains one by its corrector; iPNDM's equal-step weights allow no more than 2 on steps that are not equal."""
    assert order(SD, sampler, remembered=3, order=asked) == pytest.approx(found, abs=0.1)


def test_adams_bashforth_has_its_order_on_equal_steps():
    """PNDM's and iPNDM's weights are those of steps equal in u: on a flow, equal times. There they are of order 4."""
    times = {n: torch.linspace(0.95, 0.05, n + 1, dtype=torch.float64) for n in (160, 320)}
    for sampler in ("pndm", "ipndm"):
        coarse, fine = (error(FLOW, sampler, t, remembered=3) for t in times.values())
        assert math.log2(coarse / fine) == pytest.approx(4, abs=0.15), sampler


@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
def test_the_released_third_order_is_the_second(schedule: Schedule):
    """Half the weight of the parabola's square term, as every released 3M has it: order 2 even with an exact past; ours has 3."""
    assert order(schedule, "dpmpp_3m", remembered=3, coefficients="released") == pytest.approx(2, abs=0.1)
    assert order(schedule, "dpmpp_3m", remembered=3) == pytest.approx(3, abs=0.1)


FROM_PURE_NOISE = {"euler": 1, "heun": 2, "dpm2": 2, "rk4": 4, "dpmpp_2s": 2, "dpm_fast": 2}
FROM_PURE_NOISE |= {"lms": 2, "pndm": 3, "ipndm": 2, "deis": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3}


@pytest.mark.parametrize("sampler", FROM_PURE_NOISE)
@pytest.mark.parametrize("name", ["flow", "zero_snr"])
def test_the_order_from_pure_noise(sampler: str, name: str):
    """sigma/alpha is infinite at the start; slopes along straight paths are not. Steps are equal in sigma/(alpha+sigma), the start cold.

    Solvers in lam take Euler's step first, and those with memory start anew behind it: DEIS and LMS keep 2, PNDM's start by Heun keeps 3.
    """
    schedule = PROCESSES[name]
    share = torch.linspace(1, 0.02, 161, dtype=torch.float64)
    t = schedule.time(-2 * torch.logit(share))
    t[0] = schedule.start
    coarse, fine = error(schedule, sampler, t[::2]), error(schedule, sampler, t)
    assert math.log2(coarse / fine) == pytest.approx(FROM_PURE_NOISE[sampler], abs=0.25)


# Maximal errors of independent implementations (numpy, and diffusers where it has the sampler) on this problem, as printed
STEPS = (10, 20, 40, 80, 160, 320)
COLUMNS = {
    ("ddim", ""): (0.231, 0.118, 0.0598, 0.0301, 0.0151, 0.00756),
    ("euler", ""): (0.231, 0.118, 0.0598, 0.0301, 0.0151, 0.00756),
    ("heun", ""): (0.100, 0.0221, 5.2e-3, 1.3e-3, 3.1e-4),
    ("dpmpp_2m", ""): (4.85e-2, 1.22e-2, 2.98e-3, 7.35e-4, 1.82e-4, 4.54e-5),
    ("dpmpp_2s", ""): (3.35e-2, 9.7e-3, 2.6e-3, 6.8e-4, 1.73e-4, 4.4e-5),
    ("dpmpp_3m", "released"): (1.62e-2, 2.9e-3, 7.3e-4, 1.9e-4, 4.9e-5, 1.2e-5),
    ("unipc", 2): (0.0293, 3.6e-3, 4.5e-4, 5.6e-5, 6.9e-6),
    ("unipc", 3): (0.0139, 9.8e-4, 8.7e-5, 5.9e-6, 3.7e-7),
    ("deis", 2): (0.0609, 0.0185, 5.1e-3, 1.3e-3, 3.4e-4),
    ("deis", 3): (0.0247, 3.8e-3, 4.9e-4, 6.6e-5, 9.9e-6),
    ("lms", 4): (0.0756, 0.0127, 1.4e-3, 1.2e-4, 1.3e-5),
}


@pytest.mark.parametrize("sampler, option", COLUMNS)
def test_errors_are_those_of_other_implementations(sampler: str, option: str | int):
    """dpmpp_2m is the paper's form; exact exponential coefficients would give 8.53e-2, 1.98e-2, 4.71e-3."""
    options = {"coefficients": option} if option == "released" else {"order": option} if option else {}
    for steps, expected in zip(STEPS, COLUMNS[sampler, option], strict=False):
        unit = 10.0 ** (math.floor(math.log10(expected)) - 1)  # of the second digit, which all have
        digits = max(0.55 * unit, 0.01 * expected)
        assert error(SD, sampler, even_times(SD, steps), **options) == pytest.approx(expected, abs=digits), steps


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_more_steps_are_better_also_where_they_do_not_divide_the_table(sampler: str, spacing: str):
    """The next time is the next entry. t - 1000//N instead goes wrong at trailing 80 and 160, lower orders at the end at 15 and more."""
    errors = []
    for steps in (10, 20, 40, 80, 160):
        t = plan(SD, sampler, steps, spacing).levels
        first = EASY.at(SD, t[0].t, SHARES)
        errors.append((walk(EASY, SD, sampler, first, steps=steps, spacing=spacing) - EASY.at(SD, -1.0, SHARES)).abs().max().item())
    floor = 4e-3  # the one step from sigma .0292 to 0 costs 2.2e-3 of it
    assert all(fine < 0.7 * coarse or fine < floor for coarse, fine in pairwise(errors)), errors
    assert errors[-1] < 0.035


@pytest.mark.parametrize("name", ["ddpm", "cosine", "zero_snr", "continuous_vp", "flow", "flow_shift3"])
def test_heun_from_all_but_pure_noise_does_not_overshoot(name: str):
    """In sigma/alpha, 20291 at the cosine table's end, ten trailing steps would err by 65, and two karras steps by 28,600."""
    schedule = PROCESSES[name]
    for steps, largest in ((2, 1.6), (10, 0.25), (40, 0.07)):
        for spacing in GRIDS.keys() - {"lcm", "tcd"}:  # made for functions that jump to the end
            first = EASY.at(schedule, plan(schedule, "heun", steps, spacing).levels[0].t, SHARES)
            found = walk(EASY, schedule, "heun", first, steps=steps, spacing=spacing)
            assert (found - EASY.at(schedule, schedule.end, SHARES)).abs().max().item() < largest, (steps, spacing)
