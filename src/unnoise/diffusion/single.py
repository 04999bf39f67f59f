"""Deterministic solvers without memory: one step, one or more evaluations in it. The step onto the data is Euler's: it returns x_0.

Euler, Heun and DPM2 can first raise the noise ("churn", Karras et al. 2022, algorithm 2), which makes them stochastic.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from unnoise.diffusion.options import Amount, Positive
from unnoise.diffusion.steps import Level, Solution, Step, combine

MAX_CHURN = math.sqrt(2) - 1  # of one step: no more new noise than is there (Karras et al. 2022, algorithm 2)


def churned(step: Step, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Step:
    """The step started from a raised level: sigma/alpha times (1 + gamma), not beyond the noisy end (Karras et al. 2022, algorithm 2)."""
    gamma = min(s_churn / step.steps, MAX_CHURN) if s_tmin <= step.here.ratio <= s_tmax else 0.0
    if gamma == 0 or math.isinf(step.here.ratio):
        return step
    raised = step.at(step.here.lam - math.log1p(gamma))
    added = raised.alpha * math.sqrt(max(0.0, raised.ratio**2 - step.here.ratio**2))
    x = combine((raised.alpha / step.here.alpha, step.x), (s_noise * added, step.noise.draw(step.x)))
    return replace(step, x=x, here=raised)


def euler(step: Step, *, s_churn: Amount = 0.0, s_tmin: Amount = 0.0, s_tmax: Amount = math.inf, s_noise: Amount = 1.0) -> Solution:
    """Euler's method on the probability-flow ODE: exactly DDIM with eta 0 (Karras et al. 2022, algorithm 2 without its correction)."""
    step = churned(step, s_churn, s_tmin, s_tmax, s_noise)
    x0 = yield step.x, step.here
    return step.toward(x0)


def heun(step: Step, *, s_churn: Amount = 0.0, s_tmin: Amount = 0.0, s_tmax: Amount = math.inf, s_noise: Amount = 1.0) -> Solution:
    """Heun's method: the mean of the slopes at both ends (Karras et al. 2022, algorithms 1 and 2)."""
    step = churned(step, s_churn, s_tmin, s_tmax, s_noise)
    x0 = yield step.x, step.here
    guess = step.toward(x0)
    if step.next.sigma == 0:
        return guess
    x0_next = yield guess, step.next
    mean = (step.slope(step.x, x0, step.here) + step.slope(guess, x0_next, step.next)) / 2
    return step.along(mean)


def dpm2(step: Step, *, s_churn: Amount = 0.0, s_tmin: Amount = 0.0, s_tmax: Amount = math.inf, s_noise: Amount = 1.0) -> Solution:
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


# Dormand & Prince 1980: stages, and the difference between the solutions of order 5 and 4
STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0  # of the next step, as scipy has them
SMALLEST = 1e-7  # step: below it rounding decides


def rk45(step: Step, *, rtol: Positive = 1e-4, atol: Positive = 1e-4) -> Solution:
    """Adaptive Runge-Kutta 5(4) between two times of the grid (Dormand & Prince 1980; Song et al. 2021b, section 4.3).

    In the coordinates of `rk4`. Every image has its own step size and its own error, measured as scipy does: the root mean square of
    error / (atol + rtol |y|). So no image depends on its batch; those that have arrived are carried along.
    """
    if step.next.sigma == 0:
        x0 = yield step.x, step.here
        return step.toward(x0)
    path = _Rows(replace(step, straight=True))
    first = yield from path.slope(path.y, path.u)
    while bool((path.left != 0).any()):
        slopes = [first]
        for part, row in STAGES:
            y = path.y + path.wide(path.h) * combine(*zip(row, slopes, strict=True))
            slopes.append((yield from path.slope(y, path.u + part * path.h)))
        error = path.wide(path.h) * combine(*zip(ERROR, slopes, strict=True))
        moved = path.move(y, error, rtol, atol)
        first = torch.where(path.wide(moved) > 0, slopes[-1], first)  # the last stage stands where the next step starts
    return path.y * path.step.position(step.next)[0]


class _Rows:
    """y = x / (alpha + sigma) and u = sigma / (alpha + sigma) of every image, each at its own u."""

    def __init__(self, step: Step):
        self.step = step
        (scale, start), (_, self.end) = step.position(step.here), step.position(step.next)
        self.known = {start: step.here, self.end: step.next}
        self.y = step.x / scale
        self.u = torch.full((len(step.x),), start, dtype=torch.float64)
        self.h = self.left

    @property
    def left(self) -> Tensor:
        return self.end - self.u

    def wide(self, rows: Tensor) -> Tensor:
        return rows.to(self.y).view(-1, *[1] * (self.y.ndim - 1))

    def slope(self, y: Tensor, u: Tensor) -> Generator[tuple[Tensor, list[Level]], Tensor, Tensor]:
        """eps - x_0 of every row at its own level."""
        levels = self.levels(u)
        alpha, sigma = (
            self.wide(torch.tensor(scales, dtype=torch.float64)) for scales in zip(*((v.alpha, v.sigma) for v in levels), strict=True)
        )
        x = y * (alpha + sigma)
        x0 = yield x, levels
        return (x - alpha * x0) / sigma - x0

    def levels(self, u: Tensor) -> list[Level]:
        """The level of every share; both ends exactly as the grid has them."""
        schedule = self.step.schedule
        t = schedule.time(2 * torch.log((1 - u) / u))
        found = zip(u.tolist(), t.tolist(), schedule.alpha(t).tolist(), schedule.sigma(t).tolist(), strict=True)
        return [self.known.get(share) or Level(*scales) for share, *scales in found]

    def move(self, y: Tensor, error: Tensor, rtol: float, atol: float) -> Tensor:
        """Take the step where its error is small enough (or NaN: the driver says so), and choose the next; returns which rows moved."""
        scaled = error / (atol + rtol * torch.maximum(self.y.abs(), y.abs()))
        norm = scaled.flatten(1).double().square().mean(1).sqrt().cpu()
        moved = ~(norm > 1) | (self.h.abs() <= SMALLEST)
        self.y = torch.where(self.wide(moved) > 0, y, self.y)
        self.u = torch.where(moved, torch.where(self.h == self.left, self.end, self.u + self.h), self.u)
        factor = torch.nan_to_num(SAFETY * norm.clamp(min=1e-10) ** -0.2, nan=GROW).clamp(SHRINK, GROW)
        self.h = torch.maximum(factor * self.h, self.left)  # both are negative: not beyond the end
        return moved
