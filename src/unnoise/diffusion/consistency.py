"""Samplers for consistency functions, which map any point of a path to its end: jump to the data, noise the result anew, jump again.

They solve no equation. With a plain denoiser, whose estimate is a mean over pictures, they end on blurred ones.
"""

from __future__ import annotations

import math

from unnoise.diffusion.steps import Solution, Step, combine


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
