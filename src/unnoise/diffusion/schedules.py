"""Every noising process here is x_t = alpha(t) x_0 + sigma(t) eps. A schedule is the pair (alpha, sigma).

| class         | time t                         | alpha(t)             | sigma(t)             |
|---------------|--------------------------------|----------------------|----------------------|
| Discrete      | index of a table, -1 is clean  | sqrt(alpha_bar_t)    | sqrt(1-alpha_bar_t)  |
| ContinuousVP  | 0 (clean) to 1                 | exp(-integral beta/2)| sqrt(1-alpha^2)      |
| VE            | the noise level sigma itself   | 1                    | t                    |
| Flow          | 0 (clean) to 1 (noise)         | 1 - sigma            | s t / (1 + (s-1) t)  |

Times are continuous and everything is computed in float64. `logsnr` = 2 log(alpha / sigma) falls as t grows, and `time` is its
inverse. A table is interpolated linearly in logsnr (k-diffusion's choice), or in alpha_bar on a segment where logsnr is infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from unnoise.errors import ArgumentError, UnknownName
from unnoise.transfer import moved

Time = float | Tensor


class Schedule(Protocol):
    """What a solver may know of a process. `start` is the noisy end of time, `end` the clean one, `first` the cleanest trained time."""

    @property
    def start(self) -> float: ...
    @property
    def first(self) -> float: ...
    @property
    def end(self) -> float: ...
    def alpha(self, t: Time) -> Tensor:
        """Signal scale at t; float64, the shape of t."""
        ...

    def sigma(self, t: Time) -> Tensor:
        """Noise scale at t; float64, the shape of t."""
        ...

    def logsnr(self, t: Time) -> Tensor:
        """2 log(alpha / sigma); +inf where sigma is 0, -inf where alpha is 0."""
        ...

    def time(self, logsnr: Time) -> Tensor:
        """The t at which `logsnr(t)` has this value."""
        ...

    def timestep(self, t: Time) -> Tensor:
        """What a network trained on this process is told instead of t."""
        ...


def _f64(t: Time) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _ratio_logsnr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return 2 * (alpha.log() - sigma.log())


@dataclass(frozen=True, eq=False)
class Discrete:
    """A variance-preserving table of T steps (DDPM, Ho et al. 2020, eq. 4), made continuous.

    t in [0, T-1] is the table's index; t = -1 is the data itself (alpha_bar = 1).
    """

    alpha_bar: Tensor  # (T,) float64, falling
    first: float = 0.0
    time_scale: float = 1.0  # of the time that the network is told

    @property
    def start(self) -> float:
        return float(len(self.alpha_bar) - 1)

    @property
    def end(self) -> float:
        return -1.0

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """alpha_bar and logsnr at t = -1, 0, .., T-1."""
        bar = torch.cat([torch.ones_like(self.alpha_bar[:1]), self.alpha_bar])
        return bar, bar.log() - (1 - bar).log()

    def _nodes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        bar, logsnr = self._table
        return moved(bar, device), moved(logsnr, device)

    def _interpolate(self, t: Time) -> Tensor:
        """alpha_bar at t."""
        position = (_f64(t) + 1).clamp(0, len(self.alpha_bar))
        bar, logsnr = self._nodes(position.device)
        low = position.floor().long().clamp(max=len(self.alpha_bar) - 1)
        part = position - low
        straight = torch.lerp(bar[low], bar[low + 1], part)
        in_logsnr = torch.sigmoid(torch.lerp(logsnr[low], logsnr[low + 1], part))
        on_node = torch.where(part == 0, bar[low], bar[low + 1])
        between = torch.where(torch.isfinite(logsnr[low] + logsnr[low + 1]), in_logsnr, straight)
        return torch.where((part == 0) | (part == 1), on_node, between)

    def alpha(self, t: Time) -> Tensor:
        return self._interpolate(t).sqrt()

    def sigma(self, t: Time) -> Tensor:
        return (1 - self._interpolate(t)).sqrt()

    def logsnr(self, t: Time) -> Tensor:
        bar = self._interpolate(t)
        return bar.log() - (1 - bar).log()

    def time(self, logsnr: Time) -> Tensor:
        wanted = _f64(logsnr)
        bar, nodes = self._nodes(wanted.device)
        high = torch.searchsorted(-nodes, -wanted.contiguous()).clamp(1, len(bar) - 1)
        low = high - 1
        in_logsnr = (wanted - nodes[low]) / (nodes[high] - nodes[low])
        straight = (torch.sigmoid(wanted) - bar[low]) / (bar[high] - bar[low])
        part = torch.where(torch.isfinite(nodes[low] + nodes[high]), in_logsnr, straight)
        return low - 1 + part.clamp(0, 1)

    def timestep(self, t: Time) -> Tensor:
        return self.time_scale * _f64(t).clamp(min=0)


@dataclass(frozen=True)
class ContinuousVP:
    """The VP SDE (Song et al. 2021, eq. 32-33): beta(t) from beta_min to beta_max over t in [0, 1]."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1.0
    first: float = 1e-3
    end: float = 0.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(_f64(t)).exp()

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(_f64(t)))).sqrt()

    def logsnr(self, t: Time) -> Tensor:
        return _ratio_logsnr(self.alpha(t), self.sigma(t))

    def time(self, logsnr: Time) -> Tensor:
        # alpha^2 = sigmoid(logsnr), so b t^2 / 2 + beta_min t = log(1 + exp(-logsnr)) with b = beta_max - beta_min
        integral = torch.nn.functional.softplus(-_f64(logsnr))
        b = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * b * integral).sqrt())

    def timestep(self, t: Time) -> Tensor:
        return 999 * _f64(t)


@dataclass(frozen=True)
class VE:
    """Variance exploding: x = x_0 + t eps, so time is the noise level (Karras et al. 2022, section 3)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    time_scale: float = 0.25
    unit: float = 1.0

    @property
    def start(self) -> float:
        return self.sigma_max

    @property
    def first(self) -> float:
        return self.sigma_min

    @property
    def end(self) -> float:
        return 0.0

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(_f64(t))

    def sigma(self, t: Time) -> Tensor:
        return _f64(t)

    def logsnr(self, t: Time) -> Tensor:
        return -2 * _f64(t).log()

    def time(self, logsnr: Time) -> Tensor:
        return (-_f64(logsnr) / 2).exp()

    def timestep(self, t: Time) -> Tensor:
        return self.time_scale * (self.unit * _f64(t)).log()


@dataclass(frozen=True)
class Flow:
    """Rectified flow: alpha = 1 - sigma (Liu et al. 2022). `shift` moves time towards noise (Esser et al. 2024, eq. 23)."""

    shift: float = 1.0
    start: float = 1.0
    first: float = 1e-3
    end: float = 0.0

    def alpha(self, t: Time) -> Tensor:
        t = _f64(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Time) -> Tensor:
        t = _f64(t)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def logsnr(self, t: Time) -> Tensor:
        return _ratio_logsnr(self.alpha(t), self.sigma(t))

    def time(self, logsnr: Time) -> Tensor:
        sigma = torch.sigmoid(-_f64(logsnr) / 2)
        return sigma / (self.shift + (1 - self.shift) * sigma)

    def timestep(self, t: Time) -> Tensor:
        return 1000 * self.sigma(t)


BETAS = ("linear", "scaled_linear", "cosine")


def vp(
    betas: Literal["linear", "scaled_linear", "cosine"] | Tensor = "linear",
    *,
    beta_start: float | None = None,
    beta_end: float | None = None,
    steps: int = 1000,
    told_steps: int | None = None,
    zero_terminal_snr: bool = False,
) -> Discrete:
    """A VP table from betas, by name or as a tensor (T,).

    linear: DDPM, 1e-4 to 0.02. scaled_linear: latent diffusion, linear in sqrt(beta), 0.00085 to 0.012 (CompVis calls this "linear").
    cosine: improved DDPM (Nichol & Dhariwal 2021, eq. 17), beta capped at 0.999; it takes no ends.
    told_steps: the network is told t as if there were so many steps; improved DDPM's 4000 are told as 1000.
    zero_terminal_snr: shift and scale sqrt(alpha_bar) so that the last step is pure noise (Lin et al. 2023, algorithm 1).
    """
    if isinstance(betas, Tensor) and (beta_start is not None or beta_end is not None):
        raise ArgumentError("betas given as a tensor have their own ends: leave beta_start and beta_end out")
    if steps < 2:
        raise ArgumentError(f"got steps {steps}: a table has at least 2")
    table = betas if isinstance(betas, Tensor) else _betas(betas, beta_start, beta_end, steps)
    table = table.to(torch.float64)
    if table.ndim != 1 or len(table) < 2 or not bool(((table > 0) & (table <= 1)).all() & (table[:-1] < 1).all()):
        raise ArgumentError("betas must be at least two values in (0, 1), in one dimension; only the last may be 1")
    alpha_bar = torch.cumprod(1 - table, 0)
    if zero_terminal_snr:
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return Discrete(alpha_bar, time_scale=1.0 if told_steps is None else told_steps / len(table))


def _betas(name: str, start: float | None, end: float | None, steps: int) -> Tensor:
    if name == "linear":
        return torch.linspace(1e-4 if start is None else start, 0.02 if end is None else end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        start, end = 0.00085 if start is None else start, 0.012 if end is None else end
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if name != "cosine":
        raise UnknownName("betas", name, BETAS)
    if start is not None or end is not None:
        raise ArgumentError("betas 'cosine' has no beta_start or beta_end: leave them out")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    bar = torch.cos((t + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, time_scale: float = 0.25, unit: float = 1.0) -> VE:
    """The VE process of EDM; time is sigma, and a network is told time_scale ln(unit sigma).

    EDM: ln(sigma)/4 (Karras et al. 2022, table 1). Consistency models: 250 ln(sigma). score_sde: ln(sigma/2), for its pictures lie in 0..1.
    """
    if not 0 < sigma_min < sigma_max:
        raise ArgumentError(f"got sigma_min {sigma_min}, sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max")
    return VE(sigma_min, sigma_max, time_scale, unit)


def flow(shift: float = 1.0) -> Flow:
    """Rectified flow with a time shift; 3.0 is Stable Diffusion 3's."""
    if not shift > 0:
        raise ArgumentError(f"got shift {shift}: expected a number above 0")
    return Flow(shift)
