"""DPM-Solver in eps: one step with one to three evaluations in it, each of its own order (`dpm_fast`) or its own size (`dpm_adaptive`).

With lam = log(alpha / sigma), z = lam_s - lam_t and x_t = alpha_t x_0 + sigma_t eps, the step of the probability-flow ODE from t to s is

    x_s = alpha_s x_0 + sigma_s (eps - (e^z - 1 - z) d eps / d lam)

exact where eps is linear in lam (Lu et al. 2022a, eq. 3.4).
A step from pure noise (lam = -inf) is Euler's, and so is the step onto the data (lam = inf), which returns x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unnoise.diffusion.ancestral import renoised
from unnoise.diffusion.dormand_prince import root_mean_squares, wide
from unnoise.diffusion.options import Amount, Positive, Share
from unnoise.diffusion.single import onto_data
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
    rows = len(step.x)
    _, x = yield from _singlestep(step, step.x, [step.here.lam] * rows, [step.next.lam] * rows, order)
    return x


@dataclass(frozen=True)
class _Places:
    """Where every image stands. What is one number an image is a float: a tensor's logarithms may depend on its length, in the last bit."""

    levels: list[Level]
    alpha: Tensor  # (b, 1, ...), as x
    sigma: Tensor

    def state(self, x0: Tensor, eps: Tensor) -> Tensor:
        return self.alpha * x0 + self.sigma * eps


def _places(step: Step, lam: Sequence[float]) -> _Places:
    found = {step.here.lam: step.here, step.next.lam: step.next}  # their times, not a rounding error beside them
    found |= {value: step.at(value) for value in set(lam) - set(found)}
    levels = [found[value] for value in lam]
    return _Places(levels, wide([level.alpha for level in levels], step.x), wide([level.sigma for level in levels], step.x))


def _part(start: Sequence[float], end: Sequence[float], part: float) -> list[float]:
    return [a + part * (b - a) for a, b in zip(start, end, strict=True)]


def _weights(here: _Places, there: _Places, weight: Callable[[float], float], x: Tensor) -> Tensor:
    """A function of the step in lam, of every image; what has arrived has a step of 0."""
    pairs = zip(here.levels, there.levels, strict=True)
    return wide([weight(max(to.lam - at.lam, SMALLEST)) for at, to in pairs], x)


def _singlestep(
    step: Step, x: Tensor, start: Sequence[float], end: Sequence[float], order: int
) -> Generator[tuple, Tensor, tuple[Tensor, Tensor]]:
    """From lam to lam, one an image: the solution of the order below, which costs no evaluation of its own, and that of this order.

    DPM-Solver-1 to -3 (Lu et al. 2022a, eq. 3.7 and algorithms 1 and 2), which also look at 1/2 of the step, or at 1/3 and 2/3.
    """
    here, there = _places(step, start), _places(step, end)
    x0 = yield x, here.levels
    eps = (x - here.alpha * x0) / here.sigma
    first = there.state(x0, eps)
    if order == 1:
        return first, first
    mid = _places(step, _part(start, end, 1 / order))
    slope = yield from _slope(here, mid, eps, mid.state(x0, eps))
    second = there.state(x0, eps - _weights(here, there, lambda h: math.expm1(h) * h / 2, x) * slope)
    if order == 2:
        return first, second
    late = _places(step, _part(start, end, 2 / 3))
    slope = yield from _slope(here, late, eps, late.state(x0, eps - _weights(here, late, _linear, x) * slope))
    return second, there.state(x0, eps - _weights(here, there, _linear, x) * slope)


def _linear(z: float) -> float:
    """e^z - 1 - z: the weight of the slope (see the top)."""
    return math.expm1(z) - z


def _slope(here: _Places, there: _Places, eps: Tensor, x: Tensor) -> Generator[tuple, Tensor, Tensor]:
    """d eps / d lam between two places; x is the state at the second."""
    x0 = yield x, there.levels
    return ((x - there.alpha * x0) / there.sigma - eps) * _weights(here, there, lambda z: 1 / z, x)


SMALLEST = 1e-7  # step in lam: below it rounding decides
SAFETY = 0.81  # a step is taken if the next one would be at least so much of it
TINY, HUGE = 1e-8, 1e30  # errors whose logarithm is still a number
MAX_GROWTH = 100.0  # in the logarithm: e^100 and more are one step


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
    if step.next.sigma == 0:
        chosen = {"order": order, "rtol": rtol, "atol": atol, "h_init": h_init, "pcoeff": pcoeff, "icoeff": icoeff, "dcoeff": dcoeff}
        return (yield from onto_data(step, partial(dpm_adaptive, **chosen)))
    if math.isinf(step.h):
        return (yield from _whole(step, 1))
    end = step.next.lam
    powers = [power / order for power in (pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff)]
    images = [_Pace(step.here.lam, min(h_init, step.h), powers) for _ in step.x]
    x = before = step.x
    while any(image.lam < end for image in images):
        to = [min(image.lam + image.h, end) for image in images]
        low, high = yield from _singlestep(step, x, [image.lam for image in images], to, order)
        scale = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        errors = root_mean_squares((low - high) / scale)
        moved = wide([image.take(error, place) for image, error, place in zip(images, errors, to, strict=True)], x) > 0
        x, before = torch.where(moved, high, x), torch.where(moved, low, before)
    return x


class _Pace:
    """Where an image stands and its next step h, which grows by the product of powers of 1 / error at its last three steps."""

    def __init__(self, lam: float, h: float, powers: Sequence[float]):
        self.lam, self.h, self.powers = lam, h, powers
        self.older: tuple[float, float] | None = None  # log(1 / error), the newest first

    def take(self, error: float, to: float) -> bool:
        """Take the step if its error is small enough (or NaN: the driver says so) and it leads anywhere, and choose the next."""
        newest = -math.log(min(error, HUGE) + TINY)
        older = self.older or (newest, newest)
        growth = sum(power * log for power, log in zip(self.powers, (newest, *older), strict=True))
        factor = 1 + math.atan(math.exp(min(growth, MAX_GROWTH)) - 1)
        taken = self.lam < to and (not factor < SAFETY or self.h <= SMALLEST)
        self.older = (newest, older[0]) if taken else older
        self.lam = to if taken else self.lam
        self.h *= 1.0 if math.isnan(factor) else factor
        return taken
