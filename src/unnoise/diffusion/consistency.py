"""Samplers for consistency functions, which map any point of a path to its end: jump to the data, noise the result anew, jump again.

They solve no equation. With a plain denoiser, whose estimate is a mean over pictures, they end on blurred ones.
"""

from __future__ import annotations

import math

from unnoise.diffusion.options import Share
from unnoise.diffusion.schedules import Discrete
from unnoise.diffusion.steps import Level, Solution, Step, combine


def lcm(step: Step) -> Solution:
    """Multistep sampling of latent consistency models (Luo et al. 2023, algorithm 3): noise of the next level's sigma."""
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.next.alpha * x0
    return combine((step.next.alpha, x0), (step.next.sigma, step.noise.draw(x0)))


def consistency(step: Step) -> Solution:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): the result already has the cleanest trained level's noise.

    So sqrt(sigma² - sigma_min²) is added, and a step to the cleanest trained level itself adds none.
    """
    x0 = yield step.x, step.here
    least = step.next.alpha * step.level(step.schedule.first).ratio
    noise = math.sqrt(max(0.0, step.next.sigma**2 - least**2))
    mean = step.next.alpha * x0
    return combine((1.0, mean), (noise, step.noise.draw(x0))) if noise > 0 else mean


def tcd(step: Step, *, eta: Share = 0.3) -> Solution:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, algorithm 4; eta is its gamma).

    Along the trajectory to a level that is cleaner than the next by the share eta of its time, and from there noised to the next. 0 is
    DDIM; 1 jumps to the cleanest trained level each time.
    """
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.next.alpha * x0
    middle = _cleaner(step, eta)
    kept = step.next.alpha / middle.alpha
    noise = math.sqrt(max(0.0, step.next.sigma**2 - (kept * middle.sigma) ** 2))
    state = kept * step.toward(x0, middle)
    return combine((1.0, state), (noise, step.noise.draw(x0))) if noise > 0 else state


def _cleaner(step: Step, eta: float) -> Level:
    """A table has whole times."""
    first = step.schedule.first
    time = first + (1 - eta) * (step.next.t - first)
    return step.level(math.floor(time) if isinstance(step.schedule, Discrete) else time)
