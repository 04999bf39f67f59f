"""DPM-Solver in eps: one step with one to three evaluations in it, each of its own order (`dpm_fast`) or its own size (`dpm_adaptive`).

With lam = log(alpha / sigma), z = lam_s - lam_t and x_t = alpha_t x_0 + sigma_t eps, the step of the probability-flow ODE from t to s is

    x_s = alpha_s x_0 + sigma_s (eps - (e^z - 1 - z) d eps / d lam)

exact where eps is linear in lam (Lu et al. 2022a, eq. 3.4).
A step from pure noise (lam = -inf) is Euler's, and so is the step onto the data (lam = inf), which returns x_0.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unnoise.diffusion.ancestral import renoised
from unnoise.diffusion.options import Amount, Positive, Share
from unnoise.diffusion.steps import Level, Solution, Step


def dpm_fast(step: Step, *, rest: Literal[0, 1, 2, 3] = 2, eta: Share = 0.0, s_noise: Amount = 1.0) -> Solution:
    """DPM-Solver-fast (Lu et al. 2022a, section 3.4): order 3 but at the end, so that n steps take 3 (n - 1) + rest evaluations.

    rest: the order of the last step; 0: the last two have orders 2 and 1. The whole is of order 3 with 2 and 3, and onto the data with 1.
    eta: noise as the ancestral solvers add it, but not after the last step (k-diffusion).
    """
    solve = partial(_whole, order=_order(step.steps - 1 - step.index, rest))
    if eta == 0 or step.last:
        return (yield from solve(step))
    return (yield from renoised(step, solve, eta, s_noise))


def _order(left: int, rest: int) -> int:
    """Of a step that so many others follow."""
    return (rest if left == 0 else 3) if rest else min(left + 1, 3)


def _whole(step: Step, order: int) -> Solution:
    """The step in one."""
    if math.isinf(step.h):
        x0 = yield step.x, step.here
        return step.toward(x0)
    start, end = (torch.full((len(step.x),), level.lam, dtype=torch.float64) for level in (step.here, step.next))
    _, x = yield from _singlestep(step, step.x, start, end, order)
    return x


@dataclass(frozen=True)
class _Places:
    """Where every image stands."""

    levels: list[Level]
    lam: Tensor  # (b,) float64
    alpha: Tensor  # (b, 1, ...), as x
    sigma: Tensor

    def state(self, x0: Tensor, eps: Tensor) -> Tensor:
        return self.alpha * x0 + self.sigma * eps


def _places(step: Step, lam: Tensor) -> _Places:
    t = step.schedule.time(2 * lam)
    scales = (values.tolist() for values in (t, step.schedule.alpha(t), step.schedule.sigma(t)))
    ends = {step.here.lam: step.here, step.next.lam: step.next}  # their times, not a rounding error beside them
    levels = [ends.get(value) or Level(*scale) for value, *scale in zip(lam.tolist(), *scales, strict=True)]
    names = ("lam", "alpha", "sigma")  # lam of the levels that were found: a table's inverse is rounded where it is steep
    lam, alpha, sigma = (torch.tensor([getattr(level, name) for level in levels], dtype=torch.float64) for name in names)
    return _Places(levels, lam, _wide(alpha, step.x), _wide(sigma, step.x))


def _wide(rows: Tensor, x: Tensor) -> Tensor:
    """One number an image, against x."""
    return rows.to(x).view(-1, *[1] * (x.ndim - 1))


def _singlestep(step: Step, x: Tensor, start: Tensor, end: Tensor, order: int) -> Generator[tuple, Tensor, tuple[Tensor, Tensor]]:
    """From lam (b,) to lam (b,): the solution of the order below, which costs no evaluation of its own, and that of this order.

    DPM-Solver-1 to -3 (Lu et al. 2022a, eq. 3.7 and algorithms 1 and 2), which also look at 1/2 of the step, or at 1/3 and 2/3.
    """
    here, there = _places(step, start), _places(step, end)
    x0 = yield x, here.levels
    eps = (x - here.alpha * x0) / here.sigma
    first = there.state(x0, eps)
    if order == 1:
        return first, first
    mid = _places(step, start + (end - start) / order)
    slope = yield from _slope(here, mid, eps, mid.state(x0, eps))
    h = there.lam - here.lam
    second = there.state(x0, eps - _wide(torch.expm1(h) * h / 2, x) * slope)
    if order == 2:
        return first, second
    late = _places(step, start + (end - start) * 2 / 3)
    slope = yield from _slope(here, late, eps, late.state(x0, eps - _linear(here, late, x) * slope))
    return second, there.state(x0, eps - _linear(here, there, x) * slope)


def _slope(here: _Places, there: _Places, eps: Tensor, x: Tensor) -> Generator[tuple, Tensor, Tensor]:
    """d eps / d lam between two places; x is the state at the second."""
    x0 = yield x, there.levels
    return ((x - there.alpha * x0) / there.sigma - eps) / _wide((there.lam - here.lam).clamp(min=SMALLEST), x)


def _linear(here: _Places, there: _Places, x: Tensor) -> Tensor:
    """e^z - 1 - z: the weight of the slope."""
    z = there.lam - here.lam
    return _wide(torch.expm1(z) - z, x)


SMALLEST = 1e-7  # step in lam: below it rounding decides
SAFETY = 0.81  # a step is taken if the next one would be at least so much of it
TINY = 1e-8  # an error of 0 has no inverse


def dpm_adaptive(
    step: Step,
    *,
    order: Literal[2, 3] = 3,
    rtol: Positive = 0.05,
    atol: Positive = 0.0078,
    h_init: Positive = 0.5,
    pcoeff: Amount = 0.0,
    icoeff: Positive = 1.0,
    dcoeff: Amount = 0.0,
) -> Solution:
    """DPM-Solver-12 or -23 (Lu et al. 2022a, appendix C) between two times of the grid, its steps set by a PID controller (k-diffusion).

    h_init: the first step in lam. (A very long one can be taken by mistake, where both solutions err alike; k-diffusion has 0.05.)
    pcoeff, icoeff, dcoeff: the controller's. Every image has steps and errors of its own, the root mean square of (low - high) /
    max(atol, rtol |x|), so that none depends on its batch; those that have arrived are carried along.
    """
    if math.isinf(step.h):
        return (yield from _whole(step, 1))
    lam, end = (torch.full((len(step.x),), level.lam, dtype=torch.float64) for level in (step.here, step.next))
    pace = _Pace((end - lam).clamp(max=h_init), order, (pcoeff, icoeff, dcoeff))
    x = before = step.x
    while bool((lam < end).any()):
        to = torch.minimum(lam + pace.h, end)
        low, high = yield from _singlestep(step, x, lam, to, order)
        scale = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        error = ((low - high) / scale).reshape(len(x), -1).double().square().mean(1).sqrt().cpu()
        taken = pace.take(error)
        moved = _wide(taken, x) > 0
        x, before, lam = torch.where(moved, high, x), torch.where(moved, low, before), torch.where(taken, to, lam)
    return x


class _Pace:
    """The step h (b,) of every image: it grows by the product of powers of 1 / error at the last three steps."""

    def __init__(self, h: Tensor, order: int, coefficients: tuple[float, float, float]):
        p, i, d = coefficients
        self.h = h
        self.powers = torch.tensor([p + i + d, -(p + 2 * d), d], dtype=torch.float64) / order
        self.inverses: Tensor | None = None  # (b, 3), the newest first

    def take(self, error: Tensor) -> Tensor:
        """Choose the next step; returns which images take this one. (A NaN is taken: the driver says so.)"""
        inverse = 1 / (error + TINY)
        past = inverse[:, None].expand(-1, 2) if self.inverses is None else self.inverses[:, 1:]
        inverses = torch.cat([inverse[:, None], past], 1)
        factor = 1 + torch.atan((inverses**self.powers).prod(1) - 1)
        taken = ~(factor < SAFETY) | (self.h <= SMALLEST)
        self.inverses = torch.where(taken[:, None], inverses[:, [0, 0, 1]], inverses)
        self.h = torch.nan_to_num(factor, nan=1.0) * self.h
        return taken
