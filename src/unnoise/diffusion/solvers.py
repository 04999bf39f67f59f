"""Solvers. Each is one step from time t to s < t, written as a generator: it yields a point (x, t), receives the estimate of x_0 there,
and returns the state at s. It never calls a network, and keeps nothing outside itself: what went before is in `step.past`.

`SOLVERS` lists them with their order, which a test measures. `Step` holds what all of them compute with.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from unnoise.diffusion.noise import Noise
from unnoise.errors import ArgumentError, UnknownName


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


@dataclass(frozen=True)
class Past:
    """A step already taken: where it started, and the x_0 that was estimated there."""

    level: Level
    x0: Tensor


@dataclass
class Step:
    """One interval of the grid, and what a solver may use on it."""

    x: Tensor
    here: Level
    next: Level
    index: int  # 0 for the first step
    steps: int
    noise: Noise
    level: Callable[[float], Level]  # scales at any other time
    straight: bool  # whether slopes are measured along straight flow paths; see `slope`
    past: list[Past] = field(default_factory=list)  # newest last
    variance: Tensor | None = None  # a learned variance that came with the last estimate, in -1..1

    @property
    def last(self) -> bool:
        return self.index == self.steps - 1

    def eps(self, x0: Tensor) -> Tensor:
        """The noise in x, given its x_0."""
        return (self.x - self.here.alpha * x0) / self.here.sigma

    def toward(self, x0: Tensor, to: Level | None = None) -> Tensor:
        """The state at `to` (the next level) if x_0 were known: the same noise at another level (DDIM, Song et al. 2021, eq. 12)."""
        to = to or self.next
        ratio = to.sigma / self.here.sigma
        return ratio * self.x + (to.alpha - ratio * self.here.alpha) * x0

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
        eps = (x - level.alpha * x0) / level.sigma
        return eps - x0 if self.straight else eps

    def along(self, slope: Tensor, to: Level | None = None) -> Tensor:
        """From x along a slope to another level."""
        to = to or self.next
        (c, u), (c_to, u_to) = self.position(self.here), self.position(to)
        return c_to / c * self.x + c_to * (u_to - u) * slope


Solution = Generator[tuple[Tensor, Level], Tensor, Tensor]


def euler(step: Step) -> Solution:
    """Euler's method on the probability-flow ODE: exactly DDIM with eta 0 (Karras et al. 2022, algorithm 1 without its correction)."""
    x0 = yield step.x, step.here
    return step.toward(x0)


def heun(step: Step) -> Solution:
    """Heun's method: the mean of the slopes at both ends; the step onto the data is Euler's (Karras et al. 2022, algorithm 1)."""
    x0 = yield step.x, step.here
    guess = step.toward(x0)
    if step.next.sigma == 0:
        return guess
    x0_next = yield guess, step.next
    mean = (step.slope(step.x, x0, step.here) + step.slope(guess, x0_next, step.next)) / 2
    return step.along(mean)


def ddim(step: Step, *, eta: float = 0.0) -> Solution:
    """Song et al. 2021, eq. 12 and 16: eta 0 is deterministic, eta 1 has DDPM's posterior variance."""
    x0 = yield step.x, step.here
    if eta == 0:
        return step.toward(x0)
    noise = eta * math.sqrt(_posterior(step.here, step.next))
    kept = math.sqrt(max(0.0, step.next.sigma**2 - noise**2))
    return step.next.alpha * x0 + kept * step.eps(x0) + noise * step.noise.draw(step.x)


def ddpm(step: Step, *, variance: str = "posterior") -> Solution:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) between any two levels (Kingma et al. 2021, eq. 25).

    variance: "posterior" (beta tilde, fixed small), "beta" (fixed large), or "learned_range", between the two as the network says
    (Nichol & Dhariwal 2021, eq. 15). The step onto the data adds none.
    """
    x0 = yield step.x, step.here
    t, s = step.here, step.next
    beta = _beta(t, s)
    mean = (t.alpha / s.alpha) * (s.sigma / t.sigma) ** 2 * step.x + s.alpha * beta / t.sigma**2 * x0
    if s.sigma == 0 or beta == 0:
        return mean
    return mean + _spread(step, variance, beta) * step.noise.draw(step.x)


def dpmpp_2m(step: Step) -> Solution:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x_0 extrapolated from the last two estimates, linear in log(alpha / sigma)."""
    x0 = yield step.x, step.here
    if not step.past or step.next.sigma == 0:
        return step.toward(x0)
    before = step.past[-1]
    h, h_before = step.next.lam - step.here.lam, step.here.lam - before.level.lam
    return step.toward(x0 + h / (2 * h_before) * (x0 - before.x0))


def _beta(t: Level, s: Level) -> float:
    """Variance that the process adds from s to t: sigma_t² - (alpha_t/alpha_s)² sigma_s²."""
    return max(0.0, t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)  # rounding, between close levels


def _posterior(t: Level, s: Level) -> float:
    """Variance of x_s given x_t and x_0 (Ho et al. 2020, eq. 7)."""
    return (s.sigma / t.sigma) ** 2 * _beta(t, s)


def _spread(step: Step, variance: str, beta: float) -> float | Tensor:
    """The standard deviation of an ancestral step."""
    small = _posterior(step.here, step.next)
    if variance == "posterior":
        return math.sqrt(small)
    if variance == "beta":
        return math.sqrt(beta)
    if step.variance is None:
        raise ArgumentError(
            "variance 'learned_range' needs a network that learned one; this one predicts x_0 alone: use 'posterior' or 'beta'"
        )
    part = (step.variance + 1) / 2
    return (0.5 * (part * math.log(beta) + (1 - part) * math.log(max(small, 1e-20)))).exp()


NAMES = {"variance": ("posterior", "beta", "learned_range")}  # what options of these names may be
RANGES = {"eta": (0.0, 1.0)}


@dataclass(frozen=True)
class Solver:
    """A row of the table. `order`: of the error at a fixed time as steps shrink (weak order where stochastic)."""

    name: str
    step: Callable[..., Solution]
    order: int
    evaluations: int  # of the denoiser, a step
    stochastic: bool
    summary: str

    @property
    def options(self) -> dict[str, Any]:
        """Its keyword options and their defaults."""
        parameters = list(inspect.signature(self.step).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def with_options(self, options: dict[str, Any]) -> Callable[[Step], Solution]:
        """The step with options set; raises UnknownName for one that it does not have, ArgumentError for a value that is not allowed."""
        for name, value in options.items():
            if name not in self.options:
                raise UnknownName(f"option of sampler {self.name!r}", name, self.options)
            self._check(name, value)
        return partial(self.step, **options) if options else self.step

    def _check(self, name: str, value: Any) -> None:
        if name in NAMES:
            if value not in NAMES[name]:
                raise UnknownName(name, value, NAMES[name])
            return
        low, high = RANGES.get(name, (-sys.float_info.max, sys.float_info.max))
        if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # type: ignore[operator]  # NaN fails too
            expected = f"a number from {low:g} to {high:g}" if name in RANGES else "a finite number"
            raise ArgumentError(f"got {name} {value!r} as option of sampler {self.name!r}: expected {expected}")


SOLVERS = {
    solver.name: solver
    for solver in (
        Solver("ddpm", ddpm, 1, 1, True, "ancestral sampling; wants many steps"),
        Solver("ddim", ddim, 1, 1, False, "deterministic DDPM; eta > 0 adds noise"),
        Solver("euler", euler, 1, 1, False, "Euler's method on the probability-flow ODE"),
        Solver("heun", heun, 2, 2, False, "EDM's second-order method, two evaluations a step"),
        Solver("dpmpp_2m", dpmpp_2m, 2, 1, False, "DPM-Solver++ with one step of memory; a good default"),
    )
}


def solver(name: str) -> Solver:
    """By name; raises UnknownName."""
    if name not in SOLVERS:
        raise UnknownName("sampler", name, SOLVERS)
    return SOLVERS[name]


def samplers() -> list[Solver]:
    """Every sampler there is."""
    return list(SOLVERS.values())
