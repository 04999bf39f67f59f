"""Ancestral solvers: a step to the next level, of whose noise a share is fresh. With eta 0 they are their deterministic relatives.

All noise comes from `step.noise`, one stream an image. The step onto the data adds none, and returns x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from unnoise.diffusion.options import Amount, Part, Share
from unnoise.diffusion.single import dpmpp_2s, midpoint
from unnoise.diffusion.steps import Level, Solution, Step, combine
from unnoise.errors import ArgumentError


def added(t: Level, s: Level) -> float:
    """beta: the variance that the process adds from s to t, sigma_t² - (alpha_t/alpha_s)² sigma_s²."""
    return max(0.0, t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)  # rounding, between close levels


def posterior(t: Level, s: Level) -> float:
    """Variance of x_s given x_t and x_0 (Ho et al. 2020, eq. 7)."""
    return (s.sigma / t.sigma) ** 2 * added(t, s)


def ancestral(step: Step, x0: Tensor, to: Level, eta: float, noise: Tensor | None, s_noise: float = 1.0) -> Tensor:
    """x_0 and its noise at `to`, eta of that noise's posterior deviation fresh (Song et al. 2021, eq. 12 and 16)."""
    fresh = eta * math.sqrt(posterior(step.here, to))
    kept = math.sqrt(max(0.0, to.sigma**2 - fresh**2))
    state = combine((kept / step.here.sigma, step.x), (to.alpha - kept * step.here.alpha / step.here.sigma, x0))
    return state if noise is None else combine((1.0, state), (s_noise * fresh, noise))


def ddim(step: Step, *, eta: Share = 0.0) -> Solution:
    """Song et al. 2021, eq. 12 and 16: eta 0 is deterministic, eta 1 has DDPM's posterior variance."""
    x0 = yield step.x, step.here
    if eta == 0 or step.next.sigma == 0:
        return step.toward(x0)
    return ancestral(step, x0, step.next, eta, step.noise.draw(step.x))


def euler_ancestral(step: Step, *, eta: Share = 1.0, s_noise: Amount = 1.0) -> Solution:
    """Euler's step to below the next level, then noise back up to it (k-diffusion): the same as `ddim` with this eta."""
    x0 = yield step.x, step.here
    if eta == 0 or step.next.sigma == 0:
        return step.toward(x0)
    return ancestral(step, x0, step.next, eta, step.noise.draw(step.x), s_noise)


def dpm2_ancestral(step: Step, *, eta: Share = 1.0, s_noise: Amount = 1.0) -> Solution:
    """`dpm2` to below the next level, then noise back up to it (k-diffusion)."""
    return (yield from renoised(step, midpoint, eta, s_noise))


def dpmpp_2s_ancestral(step: Step, *, eta: Share = 1.0, s_noise: Amount = 1.0) -> Solution:
    """`dpmpp_2s` to below the next level, then noise back up to it (k-diffusion)."""
    return (yield from renoised(step, dpmpp_2s, eta, s_noise))


def renoised(step: Step, solve: Callable[[Step], Solution], eta: float, s_noise: float) -> Solution:
    """A deterministic step to the level whose noise ratio is that of the kept noise, scaled to alpha at the next, and fresh noise."""
    fresh = eta * math.sqrt(posterior(step.here, step.next))
    kept = math.sqrt(max(0.0, step.next.sigma**2 - fresh**2))
    down = step.at(math.log(step.next.alpha / kept)) if kept > 0 else step.level(step.schedule.end)
    x = yield from solve(replace(step, next=down))
    if fresh == 0:
        return step.next.alpha / down.alpha * x
    return combine((step.next.alpha / down.alpha, x), (s_noise * fresh, step.noise.draw(x)))


def ddpm(step: Step, *, variance: Literal["posterior", "beta", "learned_range"] = "posterior") -> Solution:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) between any two levels (Kingma et al. 2021, eq. 25).

    variance: "posterior" (beta tilde, fixed small), "beta" (fixed large), or "learned_range", between the two as the network says
    (Nichol & Dhariwal 2021, eq. 15). The step onto the data adds none.

    A classifier pushes the mean by the variance times its gradient (Dhariwal & Nichol 2021, algorithm 1), not by way of x_0.
    """
    x0 = yield step.x, step.here
    mean, large = posterior_mean(step, x0), added(step.here, step.next)
    if step.next.sigma == 0 or large == 0:
        return mean
    deviation = spread(step, variance)
    if step.push is not None:
        mean = mean + (deviation**2 - large * step.next.alpha / step.here.alpha) * step.push  # the second went in with x_0
    return mean + deviation * step.noise.draw(step.x)


def posterior_mean(step: Step, x0: Tensor) -> Tensor:
    """Of x_s given x_t and x_0 (Ho et al. 2020, eq. 7)."""
    t, s = step.here, step.next
    return combine(((t.alpha / s.alpha) * (s.sigma / t.sigma) ** 2, step.x), (s.alpha * added(t, s) / t.sigma**2, x0))


def spread(step: Step, variance: str) -> float | Tensor:
    """The standard deviation of an ancestral step."""
    large, small = added(step.here, step.next), posterior(step.here, step.next)
    if variance != "learned_range":
        return math.sqrt(small if variance == "posterior" else large)
    if step.variance is None:
        raise ArgumentError(
            "variance 'learned_range' needs a network that learned one; this one predicts x_0 alone: use 'posterior' or 'beta'"
        )
    part = (step.variance + 1) / 2
    return (0.5 * (part * math.log(large) + (1 - part) * math.log(max(small, 1e-20)))).exp()


def dpmpp_sde(step: Step, *, eta: Share = 1.0, s_noise: Amount = 1.0, r: Part = 1 / 2) -> Solution:
    """SDE-DPM-Solver++(2S) (Lu et al. 2022b; k-diffusion's `dpmpp_sde`): two evaluations, the second r of the step away, and two draws.

    That part of a step is noisy already, and its noise is part of the whole step's: the second draw adds what the rest brings.
    """
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    part = step.between(r)
    first = step.noise.draw(step.x) if eta > 0 else None
    x0_part = yield ancestral(step, x0, part, eta, first, s_noise), part
    mean = combine((1 / (2 * r), x0_part), (1 - 1 / (2 * r), x0))
    if first is None:
        return step.toward(mean)
    shared = shared_noise(step.here, part, step.next)
    whole = combine((shared, first), (math.sqrt(max(0.0, 1 - shared**2)), step.noise.draw(step.x)))
    return ancestral(step, mean, step.next, eta, whole, s_noise)


def shared_noise(t: Level, part: Level, s: Level) -> float:
    """The correlation of a step's noise with that of its first part: the reverse SDE's own, in which old noise fades with sigma/alpha."""
    fresh_part, fresh = (posterior(t, to) / to.sigma**2 for to in (part, s))  # 1 - exp(-2h)
    return s.ratio / part.ratio * math.sqrt(fresh_part / fresh)
