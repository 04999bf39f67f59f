"""Closed forms that the tests trust: the exact denoiser of a mixture of Gaussians, and the exact path of its probability-flow ODE.

With x_t = a x_0 + b n and x_0 ~ sum_k w_k N(m_k, s_k²), every marginal is a mixture again, of N(a m_k, V_k) with V_k = a² s_k² + b².
In one dimension the probability-flow ODE keeps quantiles, so its solution is x_s = F_s^{-1}(F_t(x_t)), whatever the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unnoise.diffusion import schedules
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import ContinuousVP, Schedule


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, s_k²), element by element."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]

    def _rows(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w, m, s and V, components last."""
        w, m, s = (torch.tensor(values, dtype=torch.float64) for values in (self.weights, self.means, self.sds))
        return w, m, s, (alpha[..., None] * s) ** 2 + sigma[..., None] ** 2

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x]: each component's own estimate, weighted by how likely it is that x came from it."""
        w, m, s, variance = self._rows(alpha, sigma)
        away = x[..., None] - alpha[..., None] * m
        likely = torch.softmax(w.log() - variance.log() / 2 - away**2 / (2 * variance), dim=-1)
        return (likely * (m + alpha[..., None] * s**2 / variance * away)).sum(-1)

    def cdf(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        w, m, _, variance = self._rows(alpha, sigma)
        return (w * torch.special.ndtr((x[..., None] - alpha[..., None] * m) / variance.sqrt())).sum(-1)

    def quantile(self, share: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """F^{-1} by bisection, to the last bit."""
        low, high = torch.full_like(share, -1e4), torch.full_like(share, 1e4)
        for _ in range(75):  # 2e4 / 2^75 is far below the spacing of float64
            middle = (low + high) / 2
            below = self.cdf(middle, alpha, sigma) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def at(self, schedule: Schedule, t: float, share: Tensor) -> Tensor:
        """The points of the marginal at time t that have these shares of it below them: a path of the exact ODE, as t runs."""
        found = _points(self, float(schedule.alpha(t)), float(schedule.sigma(t)), tuple(share.flatten().tolist()))
        return found.view_as(share)

    def denoiser(self, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) -> E[x_0 | x_t = x], as the driver asks for it."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            shape = (-1, *[1] * (x.ndim - 1))
            return self.denoise(x, schedule.alpha(t).view(shape), schedule.sigma(t).view(shape))

        return denoise


@lru_cache(maxsize=4096)
def _points(mixture: Mixture, alpha: float, sigma: float, share: tuple[float, ...]) -> Tensor:
    scales = (torch.tensor(value, dtype=torch.float64) for value in (alpha, sigma))
    return mixture.quantile(torch.tensor(share, dtype=torch.float64), *scales)


EASY = Mixture((0.4, 0.6), (-1.0, 1.0), (0.5, 0.5))
GAUSSIAN = Mixture((1.0,), (0.0,), (0.5,))
UNIT = Mixture((1.0,), (0.0,), (1.0,))

SHARES = (torch.arange(200, dtype=torch.float64) + 0.5) / 200  # an even grid of quantiles: the mean error over it is W1


def ones(rows: int = 1) -> Tensor:
    """A state whose image under a linear map is the map's multiplier."""
    return torch.ones(rows, 1, dtype=torch.float64)


def walk(mixture: Mixture, schedule: Schedule, sampler: str, x: Tensor, **arguments: object) -> Tensor:
    """The last state of the sampler under the exact denoiser; x (n,) stands for n images of one number."""
    run = Run(x[:, None], plan(schedule, sampler, **arguments), NoNoise())  # type: ignore[arg-type]
    *_, last = stream(run, mixture.denoiser(schedule))
    return last.x[:, 0]


class NoNoise:
    """For solvers that must draw nothing."""

    def draw(self, like: Tensor) -> Tensor:
        raise AssertionError("a deterministic solver drew noise")


PROCESSES: dict[str, Schedule] = {
    "ddpm": schedules.vp(),
    "sd": schedules.vp("scaled_linear"),
    "cosine": schedules.vp("cosine"),
    "zero_snr": schedules.vp("scaled_linear", zero_terminal_snr=True),
    "continuous_vp": ContinuousVP(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "flow_shift3": schedules.flow(3.0),
}

ENDS = {  # one of every kind, for measuring orders between two levels that all of them have
    "vp": PROCESSES["sd"],
    "ve": PROCESSES["edm"],
    "flow": PROCESSES["flow"],
    "flow shift 3": PROCESSES["flow_shift3"],
    "continuous vp": PROCESSES["continuous_vp"],
}


def even_times(schedule: Schedule, steps: int, low: float = 0.0291671582, high: float = 14.6146412293) -> Tensor:
    """steps + 1 times, even in logsnr, between two levels sigma/alpha: those at the ends of Stable Diffusion's table.

    Not to sigma 0: there the last step alone costs 2e-3.
    """
    return schedule.time(torch.linspace(-2 * math.log(high), -2 * math.log(low), steps + 1, dtype=torch.float64)).clamp(max=schedule.start)


class Alternating:
    """A cheap noise of variance 1: one and minus one in turn."""

    def __init__(self) -> None:
        self.sign = 1.0

    def draw(self, like: Tensor) -> Tensor:
        self.sign = -self.sign
        return torch.full_like(like, self.sign)
