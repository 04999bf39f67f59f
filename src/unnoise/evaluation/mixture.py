"""Data whose best denoiser and whose exact samples are known: a mixture of Gaussians in one dimension, element by element.

With x_t = alpha x_0 + sigma eps and x_0 ~ sum_k w_k N(m_k, s_k²), every marginal is a mixture again:

    x_t ~ sum_k w_k N(alpha m_k, V_k)                                V_k = alpha² s_k² + sigma²
    E[x_0 | x_t = x] = sum_k r_k(x) (m_k + alpha s_k² / V_k (x - alpha m_k))        r_k: how likely x came from k

A probability-flow ODE in one dimension keeps quantiles, so its solution is x_s = F_s^{-1}(F_t(x_t)) on any schedule. Over an even grid of
quantiles the mean |error| is the Wasserstein-1 distance between what a sampler drew and the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unnoise.diffusion import schedules
from unnoise.diffusion.schedules import ContinuousVP, Schedule
from unnoise.errors import ArgumentError, UnknownName

FAR = 1e4  # beyond every quantile that bisection looks for: 125 standard deviations of EDM's noise
HALVINGS = 75  # 2e4 / 2^75 is far below the spacing of float64


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, s_k²). The weights add up to 1; raises ArgumentError where they do not, or where an s_k is not above 0."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.means) == len(self.sds):
            got = f"{len(self.weights)} weights, {len(self.means)} means, {len(self.sds)} standard deviations"
            raise ArgumentError(f"got {got}: expected one of each for every Gaussian")
        if not (min(self.weights, default=0) > 0 and math.isclose(sum(self.weights), 1) and min(self.sds) > 0):
            raise ArgumentError(
                f"got weights {self.weights} and sds {self.sds}: expected weights above 0 that add up to 1, and sds above 0"
            )

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_k = (x - alpha m_k) / sqrt(V_k) and sqrt(V_k), components in the last dimension."""
        m, s = self._row(self.means, x), self._row(self.sds, x)
        sd = ((alpha[..., None] * s) ** 2 + sigma[..., None] ** 2).sqrt()
        return (x[..., None] - alpha[..., None] * m) / sd, sd

    @staticmethod
    def _row(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=like.device)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x], float64, the shape of x; alpha and sigma broadcast against x."""
        w, m, s = (self._row(values, x) for values in (self.weights, self.means, self.sds))
        z, sd = self._components(x, alpha, sigma)
        likely = torch.softmax(w.log() - sd.log() - z**2 / 2, dim=-1)
        return (likely * (m + alpha[..., None] * s**2 / sd * z)).sum(-1)

    def cdf(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """F(x) of the marginal at these scales."""
        z, _ = self._components(x, alpha, sigma)
        return (self._row(self.weights, x) * torch.special.ndtr(z)).sum(-1)

    def quantile(self, share: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """F^{-1} by bisection, to the last bit."""
        low, high = torch.full_like(share, -FAR), torch.full_like(share, FAR)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = self.cdf(middle, alpha, sigma) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def at(self, schedule: Schedule, t: float, share: Tensor) -> Tensor:
        """The points of the marginal at time t that have these shares of it below them: paths of the exact ODE, as t runs."""
        return self.quantile(share, schedule.alpha(t), schedule.sigma(t))

    def solve(self, schedule: Schedule, x: Tensor, t: float, s: float) -> Tensor:
        """Where the exact ODE carries x from time t to time s."""
        return self.at(schedule, s, self.cdf(x, schedule.alpha(t), schedule.sigma(t)))

    def denoiser(self, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) -> E[x_0 | x_t = x], as the driver asks for it: x (b, ...), t (b,)."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            shape = (-1, *[1] * (x.ndim - 1))
            return self.denoise(x, schedule.alpha(t).view(shape), schedule.sigma(t).view(shape))

        return denoise

    def floor(self, n: int) -> float:
        """The expected Wasserstein-1 distance between n independent draws of the data and the data.

        E|F_n(x) - F(x)| is sqrt(2/pi) sqrt(F (1 - F) / n) for all but small n; its integral over x is the distance. For N(0, 1) it is
        1.288 / sqrt(n): a sampler's W1 near this says nothing about the sampler.
        """
        reach = max(abs(m) + 10 * s for m, s in zip(self.means, self.sds, strict=True))
        x = torch.linspace(-reach, reach, 20001, dtype=torch.float64)
        below = self.cdf(x, torch.ones_like(x[:1]), torch.zeros_like(x[:1]))
        return float(torch.trapezoid((2 / math.pi * below * (1 - below) / n).clamp(min=0).sqrt(), x))


TWO = Mixture((0.4, 0.6), (-1.0, 1.0), (0.5, 0.5))  # two modes that overlap: every solver's order shows on it

PROCESSES: dict[str, Callable[[], Schedule]] = {
    "sd": lambda: schedules.vp("scaled_linear"),
    "ddpm": schedules.vp,
    "cosine": lambda: schedules.vp("cosine"),
    "zero_snr": lambda: schedules.vp("scaled_linear", zero_terminal_snr=True),
    "continuous_vp": ContinuousVP,
    "edm": schedules.edm,
    "flow": schedules.flow,
    "flow_shift3": lambda: schedules.flow(3.0),
}


def process(name: str) -> Schedule:
    """A process by name; raises UnknownName."""
    if name not in PROCESSES:
        raise UnknownName("process", name, PROCESSES)
    return PROCESSES[name]()


def shares(n: int) -> Tensor:
    """(n,) the middles of n equal parts of probability."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n
