"""What every solver computes with: a Level (a time and its scales), the Past, and a Step (one interval of the grid).

A solver is a generator over one Step: it yields a point and the level it lies at, receives the estimate of x_0 there, and returns the
state at the next level. It never calls a network and keeps nothing outside itself; what went before is in `step.past`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unnoise.diffusion.noise import Noise
from unnoise.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Level:
    """A time and its scales, as plain float64 numbers."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """log(alpha / sigma), half the logsnr; infinite at the two ends."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of the VE form x / alpha; infinite in pure noise."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    def eps(self, x: Tensor, x0: Tensor) -> Tensor:
        """The noise in x at this level, given its x_0."""
        return combine((1 / self.sigma, x), (-self.alpha / self.sigma, x0))


@dataclass(frozen=True)
class Past:
    """A step already taken: where it started, and the x_0 that was estimated there."""

    level: Level
    x: Tensor
    x0: Tensor


def level(schedule: Schedule, t: float) -> Level:
    """The level at a time."""
    return Level(t, float(schedule.alpha(t)), float(schedule.sigma(t)))


def combine(*terms: tuple[float, Tensor]) -> Tensor:
    """The sum of weight * tensor; a weight of 0 costs nothing."""
    (weight, tensor), *rest = terms
    total = weight * tensor
    for weight, tensor in rest:
        total = total.add(tensor, alpha=weight) if weight else total
    return total


@dataclass
class Step:
    """One interval of the grid, and what a solver may use on it."""

    x: Tensor  # a solver that corrects it sets it, and the past keeps the corrected one
    here: Level
    next: Level
    index: int  # 0 for the first step
    steps: int
    noise: Noise
    schedule: Schedule
    straight: bool  # whether slopes are measured along straight flow paths; see `position`
    past: Sequence[Past] = field(default_factory=list)  # newest last
    variance: Tensor | None = None  # a learned variance that came with the last estimate, in -1..1
    push: Tensor | None = None  # a classifier's, that came with it: see `Estimate`

    @property
    def last(self) -> bool:
        return self.index == self.steps - 1

    @property
    def h(self) -> float:
        """The step in lam; infinite from pure noise and onto the data."""
        return self.next.lam - self.here.lam

    @property
    def known(self) -> list[Past]:
        """The past at finite lam, newest first: what a polynomial in lam can go through."""
        return [past for past in reversed(self.past) if past.level.lam > -math.inf]

    def level(self, t: float) -> Level:
        """The level at any other time."""
        return level(self.schedule, t)

    def at(self, lam: float) -> Level:
        """The level where log(alpha / sigma) is `lam`."""
        return self.level(float(self.schedule.time(2 * lam)))

    def between(self, part: float) -> Level:
        """The level `part` of the step away in lam; from pure noise, where the step in lam has no length, in alpha/sigma."""
        if math.isinf(self.here.lam):
            return self.at(self.next.lam + math.log(part))
        return self.at(self.here.lam + part * self.h)

    def eps(self, x0: Tensor) -> Tensor:
        """The noise in x, given its x_0."""
        return self.here.eps(self.x, x0)

    def toward(self, x0: Tensor, to: Level | None = None) -> Tensor:
        """The state at `to` (the next level) if x_0 were known: the same noise at another level (DDIM, Song et al. 2021, eq. 12)."""
        to = to or self.next
        ratio = to.sigma / self.here.sigma
        return combine((ratio, self.x), (to.alpha - ratio * self.here.alpha, x0))

    def position(self, level: Level) -> tuple[float, float]:
        """(scale c, time u) in which the path of x / c is integrated.

        c = alpha, u = sigma / alpha: Karras et al. 2022, eq. 4. A process that starts from pure noise, or all but (the cosine table: u =
        20291, and 157 of DDPM's linear one), has steps in u so long that Heun's method overshoots by orders of magnitude. For it
        c = alpha + sigma, u = sigma / (alpha + sigma), where rectified flow is straight. Euler's step is the same in both.
        """
        scale = level.alpha + level.sigma if self.straight else level.alpha
        return scale, level.sigma / scale

    def slope(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """d(x/c)/du at a point: eps, or eps - x_0 along straight paths."""
        return combine((1 / level.sigma, x), (-level.alpha / level.sigma - self.straight, x0))

    def along(self, slope: Tensor, to: Level | None = None) -> Tensor:
        """From x along a slope to another level."""
        to = to or self.next
        (c, u), (c_to, u_to) = self.position(self.here), self.position(to)
        return combine((c_to / c, self.x), (c_to * (u_to - u), slope))


Solution = Generator[tuple[Tensor, Level | Sequence[Level]], Tensor, Tensor]  # one level for all rows, or one a row
