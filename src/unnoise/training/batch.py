"""One batch of training, and the random numbers that its loss takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unnoise.conditioning import Cond
from unnoise.diffusion.losses import TimeSampling
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError

Condition = Cond | Callable[[], Cond]  # a function where the network that makes the condition is trained too: it is called for every loss


@dataclass(frozen=True, eq=False)
class Batch:
    """Clean states and what the network is told of them, on the device of the network."""

    x0: Tensor  # (b, c, h, w) scaled latents, or pictures in -1..1
    cond: Condition  # b rows
    weight: Tensor | None = None  # (b,) factors of the losses; None is 1 for each
    hint: Tensor | None = None  # (b, c, H, W) pictures in 0..1 or latents, in the form that a trained ControlNet reads

    def __len__(self) -> int:
        return len(self.x0)

    def condition(self) -> Cond:
        """The condition itself, computed now where it is a function."""
        return self.cond() if callable(self.cond) else self.cond

    def rows(self, start: int, stop: int) -> Batch:
        """The images start..stop-1. A process of several takes its share of a batch this way."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[start:stop]

        cond = self.cond
        part: Condition = (lambda: cond().rows(start, stop)) if callable(cond) else cond.rows(start, stop)
        return Batch(self.x0[start:stop], part, cut(self.weight), cut(self.hint))


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both, one after another: a subject's pictures and those of its class, for `WithPrior`.

    A weight that one of them lacks is 1. Raises ArgumentError where only one of them has a hint.
    """

    def ones(batch: Batch) -> Tensor:
        return batch.x0.new_ones(len(batch)) if batch.weight is None else batch.weight

    def cond() -> Cond:
        return Cond.stack([first.condition(), second.condition()])

    if (first.hint is None) != (second.hint is None):
        raise ArgumentError("got a hint in one of two batches: expected one in both or in none")
    weight = None if first.weight is None and second.weight is None else torch.cat([ones(first), ones(second)])
    hint = None if first.hint is None or second.hint is None else torch.cat([first.hint, second.hint])
    return Batch(torch.cat([first.x0, second.x0]), cond, weight, hint)


class Draw(Protocol):
    """The random numbers of one loss, asked for in the order in which an objective needs them."""

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like`."""
        ...

    def times(self, rows: int, sampling: TimeSampling, schedule: Schedule) -> Tensor:
        """Times (rows,) of the schedule, float64."""
        ...


@dataclass(frozen=True, eq=False)
class Seeded:
    """Draws from one generator of the CPU, so that every device gets the same numbers."""

    generator: torch.Generator

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)

    def times(self, rows: int, sampling: TimeSampling, schedule: Schedule) -> Tensor:
        return sampling.draw(rows, schedule, self.generator)


def generator(seed: int, number: int) -> torch.Generator:
    """The generator of batch `number`: a function of both numbers alone, so that a resumed run draws what the first one would have."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
