"""DPM-Solver in eps: one step with one to three evaluations in it, each of its own order (`dpm_fast`) or its own size (`dpm_adaptive`).

Over lam = log(alpha / sigma) and with z = lam_s - lam_t, the probability-flow ODE for an eps that is linear in lam has the exact step

    x_s = alpha_s / alpha_t x_t - sigma_s ((e^z - 1) eps_t + (e^z - 1 - z) d eps / d lam)          (Lu et al. 2022a, eq. 3.4)

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


def _places(step: Step, lam: Tensor) -> _Places:
    t = step.schedule.time(2 * lam)
    scales = (values.tolist() for values in (t, step.schedule.alpha(t), step.schedule.sigma(t)))
    ends = {step.here.lam: step.here, step.next.lam: step.next}  # their times, not a rounding error beside them
    levels = [ends.get(value) or Level(*scale) for value, *scale in zip(lam.tolist(), *scales, strict=True)]
    alpha, sigma = (torch.tensor([getattr(level, name) for level in levels], dtype=torch.float64) for name in ("alpha", "sigma"))
    return _Places(levels, lam, _wide(alpha, step.x), _wide(sigma, step.x))


def _wide(rows: Tensor, x: Tensor) -> Tensor:
    """One number an image, against x."""
    return rows.to(x).view(-1, *[1] * (x.ndim - 1))


def _singlestep(step: Step, x: Tensor, start: Tensor, end: Tensor, order: int) -> Generator[tuple, Tensor, tuple[Tensor, Tensor]]:
    """From lam (b,) to lam (b,): the solution of the order below, which costs no evaluation of its own, and that of this order.

    DPM-Solver-1 to -3 (Lu et al. 2022a, eq. 3.7 and algorithms 1 and 2), which also look at 1/2 of the step, or at 1/3 and 2/3.
    """
    here, there, h = _places(step, start), _places(step, end), end - start
    eps = yield from _eps(x, here)
    first = _along(x, here, there, eps)
    if order == 1:
        return first, first
    slope = yield from _slope(x, here, _places(step, start + h / order), eps)
    second = _along(x, here, there, eps + _wide(h / 2, x) * slope)
    if order == 2:
        return first, second
    slope = yield from _slope(x, here, _places(step, start + h * 2 / 3), eps, slope)
    return second, _along(x, here, there, eps, slope)


def _eps(x: Tensor, at: _Places) -> Generator[tuple, Tensor, Tensor]:
    """The noise in x."""
    x0 = yield x, at.levels
    return (x - at.alpha * x0) / at.sigma


def _along(x: Tensor, here: _Places, to: _Places, eps: Tensor, slope: Tensor | None = None) -> Tensor:
    """The exact step for an eps that is constant, or linear in lam (see the top)."""
    z = to.lam - here.lam
    pull = _wide(torch.expm1(z), x) * eps
    if slope is not None:
        pull = pull + _wide(torch.expm1(z) - z, x) * slope
    return to.alpha / here.alpha * x - to.sigma * pull


def _slope(x: Tensor, here: _Places, to: _Places, eps: Tensor, slope: Tensor | None = None) -> Generator[tuple, Tensor, Tensor]:
    """d eps / d lam, from here to where the slope that is known so far leads."""
    found = yield from _eps(_along(x, here, to, eps, slope), to)
    return (found - eps) / _wide((to.lam - here.lam).clamp(min=SMALLEST), x)


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
        error = ((low - high) / scale).flatten(1).double().square().mean(1).sqrt().cpu()
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
