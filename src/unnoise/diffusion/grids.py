"""Time grids: which times a solver visits, first to last, ending on the data. The next time is always the next entry.

The classic spacings count in a table of T = 1000 indices 0..T-1; on a continuous schedule they run evenly from its cleanest
trained time to its noisy end. They are: leading (DDIM's), linspace (evenly spread), trailing (Lin et al. 2023, table 2).
The others are even in a measure of noise: logsnr (DPM-Solver), karras (sigma^(1/7), Karras et al. 2022, eq. 5), flow
(sigma / (alpha + sigma)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unnoise.diffusion.schedules import VE, Discrete, Flow, Schedule
from unnoise.errors import ArgumentError, UnknownName

VIRTUAL = 1000  # indices that a continuous schedule is thought to have
MIN_LOGSNR = -10.2  # where logsnr falls to -inf (pure noise), even spacings start here: lambda = -5.1, as DPM-Solver clips it
RHO = 7.0
SAME = 1e-10  # of the span of time: two times this close are one
ENDINGS = ("clean", "first")


def grid(schedule: Schedule, spacing: str | None, steps: int, *, offset: int = 0, ending: Literal["clean", "first"] = "clean") -> Tensor:
    """At most steps + 1 falling times, float64. steps intervals, each one step of a solver.

    offset is added to the indices of `leading` (Stable Diffusion: 1). ending: "clean" ends on the data (alpha_bar 1); "first" on the
    table's first entry (alpha_bar[0]), as CompVis and the Stable Diffusion configuration do. A time that would stand twice, also but for
    rounding, is left out: the step between would divide by nothing and cost an evaluation.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"got {steps!r} steps: expected a whole number of at least 1")
    name = default(schedule) if spacing is None else spacing
    if name not in GRIDS:
        raise UnknownName("spacing", name, GRIDS)
    if ending not in ENDINGS:
        raise UnknownName("ending", ending, ENDINGS)
    if not offset >= 0:
        raise ArgumentError(f"got offset {offset}: expected a number of indices of at least 0")
    if isinstance(schedule, Discrete) and steps > len(schedule.alpha_bar):
        raise ArgumentError(f"got {steps} steps: this model's table has {len(schedule.alpha_bar)}, ask for at most that many")
    last = schedule.end if ending == "clean" else schedule.first
    times = GRIDS[name](schedule, steps)
    if name == "leading" and offset:
        times = (times + offset * _unit(schedule)).clamp(max=schedule.start)
    times = torch.cat([times, torch.tensor([last], dtype=torch.float64)])
    apart = times[:-1] - times[1:] > SAME * (schedule.start - schedule.end)
    if not bool(apart.any()):
        raise ArgumentError(f"got {steps} steps, spacing {name!r} and ending {ending!r}, which hold one time: ask for more steps")
    return times[torch.cat([apart, torch.tensor([True])])]


def default(schedule: Schedule) -> str:
    """The spacing for a schedule of which nothing more is known."""
    if isinstance(schedule, Discrete):
        return "trailing"
    return "flow" if isinstance(schedule, Flow) else "karras"


def _size(schedule: Schedule) -> int:
    return len(schedule.alpha_bar) if isinstance(schedule, Discrete) else VIRTUAL


def _unit(schedule: Schedule) -> float:
    """The time between two indices."""
    return (schedule.start - schedule.first) / (_size(schedule) - 1)


def _time(schedule: Schedule, index: Tensor) -> Tensor:
    """The time of a table index; whole in a discrete table."""
    if isinstance(schedule, Discrete):
        return index.round().to(torch.float64)
    return schedule.first + index.to(torch.float64) * _unit(schedule)


def _leading(schedule: Schedule, steps: int) -> Tensor:
    size = _size(schedule)
    stride = size // steps if isinstance(schedule, Discrete) else size / steps
    return _time(schedule, torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride)


def _linspace(schedule: Schedule, steps: int) -> Tensor:
    return _time(schedule, torch.linspace(_size(schedule) - 1, 0, steps, dtype=torch.float64))


def _trailing(schedule: Schedule, steps: int) -> Tensor:
    size = _size(schedule)
    return _time(schedule, size - size / steps * torch.arange(steps, dtype=torch.float64) - 1)


def _even(measure: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]) -> Callable[[Schedule, int], Tensor]:
    """A grid that is even in `measure` of logsnr, from the noisy end to index 0. The first time is the noisy end itself."""

    def times(schedule: Schedule, steps: int) -> Tensor:
        clean = schedule.logsnr(schedule.first)
        noisy = schedule.logsnr(schedule.start)
        if not isinstance(schedule, VE):  # its data never fades, however large sigma_max is
            noisy = noisy.clamp(min=MIN_LOGSNR)
        part = torch.linspace(0, 1, steps, dtype=torch.float64)
        found = schedule.time(inverse(torch.lerp(measure(noisy), measure(clean), part)))
        found[-1] = schedule.first  # not a rounding error beside it
        found[0] = schedule.start
        return found

    return times


def _flow(schedule: Schedule, steps: int) -> Tensor:
    """Even in sigma / (alpha + sigma) down to the data, where a straight path has equal steps. A flow's own time is that, unshifted.

    Not below the cleanest trained time: with many steps a table has none of the cleaner levels, and they are left out.
    """
    if isinstance(schedule, Flow):
        return torch.linspace(schedule.start, schedule.end, steps + 1, dtype=torch.float64)[:-1]
    top = torch.sigmoid(-schedule.logsnr(schedule.start) / 2)
    level = top * torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
    found = schedule.time(-2 * torch.logit(level)).clamp(min=schedule.first)
    return torch.cat([torch.tensor([schedule.start], dtype=torch.float64), found])


GRIDS: dict[str, Callable[[Schedule, int], Tensor]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
    "logsnr": _even(lambda logsnr: logsnr, lambda value: value),
    "karras": _even(lambda logsnr: (-logsnr / 2 / RHO).exp(), lambda value: -2 * RHO * value.log()),
    "flow": _flow,
}
