"""Deterministic solvers without memory: one step, one or more evaluations in it. The step onto the data is Euler's: it returns x_0.

Euler, Heun and DPM2 can first raise the noise ("churn", Karras et al. 2022, algorithm 2), which makes them stochastic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from unnoise.diffusion.dormand_prince import Path, integrate, root_mean_squares, wide
from unnoise.diffusion.options import Amount, Limit, Positive
from unnoise.diffusion.steps import Level, Solution, Step, combine

MAX_CHURN = math.sqrt(2) - 1  # of one step: no more new noise than is there (Karras et al. 2022, algorithm 2)


def churned(step: Step, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Step:
    """The step started from a raised level: sigma/alpha times (1 + gamma) (Karras et al. 2022, algorithm 2).

    Not beyond the noisy end, where no network was trained; EDM's own code goes there unless s_tmax forbids it.
    """
    gamma = min(s_churn / step.steps, MAX_CHURN) if s_tmin <= step.here.ratio <= s_tmax else 0.0
    if gamma == 0 or math.isinf(step.here.ratio):
        return step
    raised = step.at(step.here.lam - math.log1p(gamma))
    raised = raised if raised.t < step.schedule.start else step.level(step.schedule.start)
    added = raised.alpha * math.sqrt(max(0.0, raised.ratio**2 - step.here.ratio**2))
    if added == 0:
        return step
    x = combine((raised.alpha / step.here.alpha, step.x), (s_noise * added, step.noise.draw(step.x)))
    return replace(step, x=x, here=raised)


def euler(step: Step, *, s_churn: Amount = 0.0, s_tmin: Amount = 0.0, s_tmax: Limit = math.inf, s_noise: Amount = 1.0) -> Solution:
    """Euler's method on the probability-flow ODE: exactly DDIM with eta 0 (Karras et al. 2022, algorithm 2 without its correction)."""
    step = churned(step, s_churn, s_tmin, s_tmax, s_noise)
    x0 = yield step.x, step.here
    return step.toward(x0)


def heun(step: Step, *, s_churn: Amount = 0.0, s_tmin: Amount = 0.0, s_tmax: Limit = math.inf, s_noise: Amount = 1.0) -> Solution:
    """Heun's method: the mean of the slopes at both ends (Karras et al. 2022, algorithms 1 and 2)."""
    step = churned(step, s_churn, s_tmin, s_tmax, s_noise)
    x0 = yield step.x, step.here
    guess = step.toward(x0)
    if step.next.sigma == 0:
        return guess
    x0_next = yield guess, step.next
    mean = (step.slope(step.x, x0, step.here) + step.slope(guess, x0_next, step.next)) / 2
    return step.along(mean)


def dpm2(step: Step, *, s_churn: Amount = 0.0, s_tmin: Amount = 0.0, s_tmax: Limit = math.inf, s_noise: Amount = 1.0) -> Solution:
    """The midpoint method with its midpoint in lam: DPM-Solver-2 as k-diffusion runs it (Lu et al. 2022a, algorithm 1; Karras' churn)."""
    return (yield from midpoint(churned(step, s_churn, s_tmin, s_tmax, s_noise)))


def midpoint(step: Step) -> Solution:
    """A whole step along the slope that is found half a step away."""
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    half = step.between(1 / 2)
    guess = step.toward(x0, half)
    x0_half = yield guess, half
    return step.along(step.slope(guess, x0_half, half))


def dpmpp_2s(step: Step) -> Solution:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1 with r = 1/2): the estimate from half a step away holds for all of it."""
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    half = step.between(1 / 2)
    x0_half = yield step.toward(x0, half), half
    return step.toward(x0_half)


def rk4(step: Step) -> Solution:
    """The classical Runge-Kutta method, in the coordinates where slopes stay bounded: x/(alpha+sigma) over sigma/(alpha+sigma)."""
    step = replace(step, straight=True)
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    half = _at_share(step, (step.position(step.here)[1] + step.position(step.next)[1]) / 2)
    first = step.slope(step.x, x0, step.here)
    second = yield from _slope(step, first, half)
    third = yield from _slope(step, second, half)
    fourth = yield from _slope(step, third, step.next)
    return step.along((first + 2 * (second + third) + fourth) / 6)


def _at_share(step: Step, share: float) -> Level:
    """The level where sigma / (alpha + sigma) is `share`."""
    return step.at(math.log((1 - share) / share))


def _slope(step: Step, slope: Tensor, to: Level) -> Generator[tuple[Tensor, Level], Tensor, Tensor]:
    """The slope found at the end of another one."""
    x = step.along(slope, to)
    x0 = yield x, to
    return step.slope(x, x0, to)


def rk45(step: Step, *, rtol: Positive = 1e-4, atol: Positive = 1e-4) -> Solution:
    """Adaptive Runge-Kutta 5(4) between two times of the grid (Dormand & Prince 1980; Song et al. 2021b, section 4.3).

    In the coordinates of `rk4`. Every image has its own steps and its own error, measured as scipy does: the root mean square of
    error / (atol + rtol |y|).
    """
    if step.next.sigma == 0:
        return (yield from onto_data(step, partial(rk45, rtol=rtol, atol=atol)))
    step = replace(step, straight=True)
    (scale, u), (scale_next, u_next) = step.position(step.here), step.position(step.next)

    def measure(error: Tensor, before: Tensor, after: Tensor) -> list[float]:
        return root_mean_squares(error / (atol + rtol * torch.maximum(before.abs(), after.abs())))

    y = yield from _bounded_slopes(step, integrate(step.x / scale, (u, u_next), measure))
    return y * scale_next


def onto_data(step: Step, solve: Callable[[Step], Solution]) -> Solution:
    """For adaptive solvers, which choose their own steps: to the cleanest trained level by `solve`, where the estimate is the picture.

    A run of a single step returns the estimate at once, as with every other solver.
    """
    first = step.level(step.schedule.first)
    if step.steps == 1 or step.here.t <= first.t:
        x0 = yield step.x, step.here
        return step.toward(x0)
    x = yield from solve(replace(step, next=first))
    x0 = yield x, first
    return replace(step, x=x, here=first).toward(x0)


def _bounded_slopes(step: Step, path: Path) -> Solution:
    """Answer a path of y = x / (alpha + sigma) over u = sigma / (alpha + sigma), each row at its own u, with eps - x_0."""
    known = {step.position(level)[1]: level for level in (step.here, step.next)}  # exactly as the grid has them
    try:
        y, u = next(path)
        while True:
            at = {share: known.get(share) or _at_share(step, share) for share in set(u)}
            levels = [at[share] for share in u]
            alpha, sigma = (wide([getattr(level, scale) for level in levels], y) for scale in ("alpha", "sigma"))
            x = y * (alpha + sigma)
            x0 = yield x, levels
            y, u = path.send((x - alpha * x0) / sigma - x0)
    except StopIteration as stop:
        return stop.value
