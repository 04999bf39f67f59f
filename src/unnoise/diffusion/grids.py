"""Time grids: which times a solver visits, first to last, ending on the data. The next time is always the next entry.

The classic spacings count in a table of T = 1000 indices 0..T-1; on a continuous schedule they run evenly from its cleanest
trained time to its noisy end. They are: leading (DDIM's), linspace (evenly spread), trailing (Lin et al. 2023, table 2), lcm and tcd
(of the few times that a distilled model knows), and beta (Lee et al. 2024), which is dense at both ends. The others are even in a measure
of noise: logsnr (DPM-Solver), karras (sigma^(1/7), Karras et al. 2022, eq. 5), exponential, flow (sigma / (alpha + sigma)), sd3. ays and
its sisters are optimised tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from unnoise.diffusion import options
from unnoise.diffusion.options import Positive, Range
from unnoise.diffusion.schedules import VE, Discrete, Flow, Schedule
from unnoise.errors import ArgumentError, UnknownName

VIRTUAL = 1000  # indices that a continuous schedule is thought to have
MIN_LOGSNR = -10.2  # where logsnr falls to -inf (pure noise), even spacings start here: lambda = -5.1, as DPM-Solver clips it
SAME = 1e-10  # of the span of time: two times this close are one
ENDINGS = ("clean", "first")

Trained = Annotated[int, Range(1, VIRTUAL)]
Offset = Annotated[int, Range(0, VIRTUAL)]


def grid(schedule: Schedule, spacing: str | None, steps: int, *, ending: str = "clean", **own: Any) -> Tensor:
    """At most steps + 1 falling times, float64. steps intervals, each one step of a solver.

    ending: "clean" ends on the data (alpha_bar 1); "first" on the table's first entry (alpha_bar[0]), as CompVis and the Stable Diffusion
    configuration do. own: options of the spacing, such as rho of karras, or offset (Stable Diffusion: 1) of the classic ones, which is
    added to their indices. A time that would stand twice, also but for rounding, is left out: the step between would divide by nothing and
    cost an evaluation. Raises UnknownName or ArgumentError.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"got {steps!r} steps: expected a whole number of at least 1")
    name = default(schedule) if spacing is None else spacing
    check(name, {"ending": ending, **own})
    if isinstance(schedule, Discrete) and steps > len(schedule.alpha_bar):
        raise ArgumentError(f"got {steps} steps: this model's table has {len(schedule.alpha_bar)}, ask for at most that many")
    last = schedule.end if ending == "clean" else schedule.first
    times = torch.cat([GRIDS[name](schedule, steps, **own), torch.tensor([last], dtype=torch.float64)])
    apart = times[:-1] - times[1:] > SAME * (schedule.start - schedule.end)
    if not bool(apart.any()):
        raise ArgumentError(f"got {steps} steps, spacing {name!r} and ending {ending!r}, which hold one time: ask for more steps")
    return times[torch.cat([apart, torch.tensor([True])])]


def check(spacing: str, asked: Mapping[str, Any]) -> None:
    """Raise UnknownName or ArgumentError for a spacing that there is not, or an option that it does not have."""
    if spacing not in GRIDS:
        raise UnknownName("spacing", spacing, GRIDS)
    known = options.of(GRIDS[spacing], skip=2)
    for name, value in asked.items():
        if name == "ending":
            if value not in ENDINGS:
                raise UnknownName("ending", value, ENDINGS)
        elif name not in known:
            raise UnknownName(f"option of spacing {spacing!r}", name, [*known, "ending"])
        else:
            options.check(f"spacing {spacing!r}", GRIDS[spacing], name, value)


def default(schedule: Schedule) -> str:
    """The spacing for a schedule of which nothing more is known."""
    return "karras" if isinstance(schedule, VE) else "flow"


# Even in the index of a table


def _size(schedule: Schedule) -> int:
    return len(schedule.alpha_bar) if isinstance(schedule, Discrete) else VIRTUAL


def _unit(schedule: Schedule) -> float:
    """The time between two indices."""
    return (schedule.start - schedule.first) / (_size(schedule) - 1)


def _time(schedule: Schedule, index: Tensor, offset: int = 0) -> Tensor:
    """The time of a table index; whole in a discrete table."""
    whole = isinstance(schedule, Discrete)
    time = index.round() if whole else schedule.first + index * _unit(schedule)
    return (time.to(torch.float64) + offset * (1 if whole else _unit(schedule))).clamp(max=schedule.start)


def leading(schedule: Schedule, steps: int, *, offset: Offset = 0) -> Tensor:
    size = _size(schedule)
    stride = size // steps if isinstance(schedule, Discrete) else size / steps
    return _time(schedule, torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride, offset)


def linspace(schedule: Schedule, steps: int, *, offset: Offset = 0) -> Tensor:
    return _time(schedule, torch.linspace(_size(schedule) - 1, 0, steps, dtype=torch.float64), offset)


def trailing(schedule: Schedule, steps: int, *, offset: Offset = 0) -> Tensor:
    size = _size(schedule)
    return _time(schedule, size - size / steps * torch.arange(steps, dtype=torch.float64) - 1, offset)


def lcm(schedule: Schedule, steps: int, *, trained: Trained = 50) -> Tensor:
    """Every so many of the times that a consistency model was distilled at, from the noisiest on (Luo et al. 2023, section 4.3)."""
    stride = max(1, trained // steps)
    return _distilled(schedule, trained)[::stride][:steps]


def tcd(schedule: Schedule, steps: int, *, trained: Trained = 50) -> Tensor:
    """The same spread over all of them (Zheng et al. 2024); diffusers' LCM too."""
    steps = min(steps, trained)
    return _distilled(schedule, trained)[torch.arange(steps) * trained // steps]


def _distilled(schedule: Schedule, trained: int) -> Tensor:
    """Falling, equally far apart."""
    size = _size(schedule)
    return _time(schedule, torch.arange(trained, 0, -1, dtype=torch.float64) * (size // trained) - 1)


def beta(schedule: Schedule, steps: int, *, a: Positive = 0.6, b: Positive = 0.6) -> Tensor:
    """Quantiles of the beta distribution (Lee et al. 2024, section 4): with 0.6 both ends of time have more steps than the middle."""
    return _time(schedule, (_size(schedule) - 1) * _beta_quantiles(steps, float(a), float(b)))


@lru_cache(maxsize=64)
def _beta_quantiles(steps: int, a: float, b: float) -> Tensor:
    return beta_quantile(1 - torch.arange(steps, dtype=torch.float64) / steps, a, b)


def beta_quantile(share: Tensor, a: float, b: float) -> Tensor:
    """The inverse of Beta(a, b)'s distribution function, by bisection."""
    low, high = torch.zeros_like(share), torch.ones_like(share)
    for _ in range(60):
        middle = (low + high) / 2
        below = beta_cdf(middle, a, b) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function, by its power series in the smaller of x and 1 - x (Abramowitz & Stegun 26.5.4).

    I_x(a, b) = x^a (1-x)^b / (a B(a, b)) (1 + sum_n  prod_k (a+b+k)/(a+1+k)  x^(n+1)); at x <= 1/2 sixty terms are below 1e-17.
    """
    mirrored = x > 0.5
    small, of_a, of_b = torch.where(mirrored, 1 - x, x), torch.full_like(x, a), torch.full_like(x, b)
    p, q = torch.where(mirrored, of_b, of_a), torch.where(mirrored, of_a, of_b)
    term, total = torch.ones_like(x), torch.ones_like(x)
    for k in range(60):
        term = term * (p + q + k) / (p + 1 + k) * small
        total = total + term
    complete = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    found = small**p * (1 - small) ** q / (p * complete) * total
    return torch.where(mirrored, 1 - found, found)


# Even in a measure of noise


def _even(schedule: Schedule, steps: int, measure: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Even in `measure` of logsnr, from the noisy end to index 0. The first time is the noisy end itself."""
    part = torch.linspace(0, 1, steps, dtype=torch.float64)
    found = schedule.time(inverse(torch.lerp(measure(_noisy(schedule)), measure(schedule.logsnr(schedule.first)), part)))
    found[-1] = schedule.first  # not a rounding error beside it
    found[0] = schedule.start
    return found


def _noisy(schedule: Schedule) -> Tensor:
    """logsnr where an even spacing starts."""
    logsnr = schedule.logsnr(schedule.start)
    return logsnr if isinstance(schedule, VE) else logsnr.clamp(min=MIN_LOGSNR)  # VE's data never fades, however large sigma_max is


def logsnr(schedule: Schedule, steps: int) -> Tensor:
    return _even(schedule, steps, lambda logsnr: logsnr, lambda value: value)


def karras(schedule: Schedule, steps: int, *, rho: Positive = 7.0) -> Tensor:
    """Even in (sigma / alpha)^(1/rho) (Karras et al. 2022, eq. 5)."""
    return _even(schedule, steps, lambda logsnr: (-logsnr / 2 / rho).exp(), lambda value: -2 * rho * value.log())


def exponential(schedule: Schedule, steps: int, *, rho: Positive = 1.0) -> Tensor:
    """Even in the logarithm of the noise level, or in its power 1/rho (k-diffusion's polyexponential).

    The level is sigma / alpha, which makes this `logsnr` for rho 1; on a flow it is sigma, so that the noisy end is finite.
    """
    part = torch.linspace(1, 0, steps, dtype=torch.float64) ** rho
    if isinstance(schedule, Flow):
        clean = schedule.sigma(schedule.first).log()
        sigma = ((1 - part) * clean).exp()
        found = schedule.time(2 * (torch.log1p(-sigma) - sigma.log()))
    else:
        found = schedule.time(torch.lerp(schedule.logsnr(schedule.first), _noisy(schedule), part))
    found[-1] = schedule.first
    found[0] = schedule.start
    return found


def flow(schedule: Schedule, steps: int) -> Tensor:
    """Even in sigma / (alpha + sigma) down to the data, where a straight path has equal steps. A flow's own time is that, unshifted.

    Not below the cleanest trained time: with many steps a table has none of the cleaner levels, and they are left out.
    """
    if isinstance(schedule, Flow):
        return torch.linspace(schedule.start, schedule.end, steps + 1, dtype=torch.float64)[:-1]
    return _shares(schedule, torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1] * _share(schedule, schedule.start))


def sd3(schedule: Schedule, steps: int) -> Tensor:
    """Stable Diffusion 3's: the shift is applied twice at the clean end, so the last time is sigma(1/1000), not 1/1000 (its get_sigmas).

    On other processes: even in sigma / (alpha + sigma) from the noisy end to the cleanest trained time, both included.
    """
    if isinstance(schedule, Flow):
        return torch.linspace(schedule.start, float(schedule.sigma(schedule.first)), steps, dtype=torch.float64)
    noisy, clean = (_share(schedule, t) for t in (schedule.start, schedule.first))
    return _shares(schedule, torch.linspace(noisy, clean, steps, dtype=torch.float64)[1:])


def _share(schedule: Schedule, t: float) -> float:
    """sigma / (alpha + sigma)."""
    return float(torch.sigmoid(-schedule.logsnr(t) / 2))


def _shares(schedule: Schedule, shares: Tensor) -> Tensor:
    """The noisy end, then the times of these shares of noise."""
    found = schedule.time(-2 * torch.logit(shares)).clamp(min=schedule.first)
    return torch.cat([torch.tensor([schedule.start], dtype=torch.float64), found])


# Align Your Steps (Sabour et al. 2024): sigma / alpha at eleven levels; for other numbers of steps interpolated in the logarithm

AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),  # Stable Diffusion 1
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),  # Stable Video Diffusion
}


def _ays(table: tuple[float, ...]) -> Callable[[Schedule, int], Tensor]:
    def times(schedule: Schedule, steps: int) -> Tensor:
        at = np.linspace(0, len(table) - 1, steps + 1)[:-1]
        ratio = np.exp(np.interp(at, np.arange(len(table)), np.log(table)))
        found = schedule.time(torch.from_numpy(-2 * np.log(ratio))).clamp(schedule.first, schedule.start)
        found[0] = schedule.start
        return found

    return times


GRIDS: dict[str, Callable[..., Tensor]] = {  # (schedule, steps, own options) -> the times without the last
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "lcm": lcm,
    "tcd": tcd,
    "beta": beta,
    "logsnr": logsnr,
    "karras": karras,
    "exponential": exponential,
    "flow": flow,
    "sd3": sd3,
    **{name: _ays(table) for name, table in AYS.items()},
}
