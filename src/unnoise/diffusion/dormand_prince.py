"""Adaptive Runge-Kutta of order 5(4) (Dormand & Prince 1980) as a generator: it yields points, and is answered with slopes.

Every row of the state goes its own way with its own steps, so no image depends on its batch; those that have arrived are carried along
with steps of length 0. What decides is computed row by row in plain floats: the same bits in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from unnoise.diffusion.steps import combine
from unnoise.transfer import moved

# Nodes and weights of the stages, and the difference between the solutions of order 5 and 4
STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
FIRST = 0.02  # the first step that is tried, of u: a long one can be taken by mistake, where both orders err alike
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0  # of the next step, as scipy has them
SMALLEST = 1e-7  # step: below it rounding decides

Path = Generator[tuple[Tensor, list[float]], Tensor, Tensor]
Measure = Callable[[Tensor, Tensor, Tensor], list[float]]  # (error, before, after) -> one number a row, at most 1 where it is good


def integrate(y: Tensor, ends: tuple[float, float], measure: Measure | None = None, steps: int = 1) -> Path:
    """y (b, ...) from u = ends[0] to ends[1]. Yields (y, u of every row) and receives dy/du; returns y at the end.

    measure: of a step's error; without one it takes so many equal steps, whatever the error.
    """
    start, end = ends
    first = (end - start) / steps if measure is None else math.copysign(min(FIRST, abs(end - start)), end - start)
    rows = _Rows([start] * len(y), [first] * len(y), end)
    slope = yield y, rows.u
    while not rows.arrived:
        rows.cut()
        h, slopes, to = wide(rows.h, y), [slope], y
        for node, weights in STAGES:
            to = y + h * combine(*zip(weights, slopes, strict=True))
            slopes.append((yield to, rows.at(node)))
        errors = None if measure is None else measure(h * combine(*zip(ERROR, slopes, strict=True)), y, to)
        moved = wide([float(taken) for taken in rows.take(errors)], y) > 0
        y, slope = torch.where(moved, to, y), torch.where(moved, slopes[-1], slope)  # the last stage stands where the next step starts
    return y


def wide(rows: list[float], like: Tensor) -> Tensor:
    """One number a row, to multiply (b, ...) with."""
    return moved(torch.tensor(rows, dtype=torch.float64), like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


def root_mean_squares(scaled: Tensor) -> list[float]:
    """Of every row (b, ...), each on its own."""
    return [float(row.square().mean().sqrt()) for row in scaled.reshape(len(scaled), -1).cpu().double()]


class _Rows:
    """Where every row stands (u), and how far it goes next (h)."""

    def __init__(self, u: list[float], h: list[float], end: float):
        self.u, self.h, self.end = u, h, end

    @property
    def arrived(self) -> bool:
        return all(u == self.end for u in self.u)

    @property
    def left(self) -> list[float]:
        return [self.end - u for u in self.u]

    def cut(self) -> None:
        """No step beyond the end, nor one for what rounding would leave over."""
        self.h = [left if abs(left) <= abs(h) * (1 + 1e-9) else h for h, left in zip(self.h, self.left, strict=True)]

    def at(self, node: float) -> list[float]:
        """u of every row at a stage; the last one of the last step is the end itself."""
        return [self.end if node == 1 and h == left else u + node * h for u, h, left in zip(self.u, self.h, self.left, strict=True)]

    def take(self, errors: list[float] | None) -> list[bool]:
        """Move the rows whose error is small enough (or NaN: the driver says so), and choose the next steps; returns which moved."""
        found = errors or [0.0] * len(self.u)
        moved = [not error > 1 or abs(h) <= SMALLEST for error, h in zip(found, self.h, strict=True)]
        self.u = [there if taken else u for there, taken, u in zip(self.at(1.0), moved, self.u, strict=True)]
        if errors:
            self.h = [h * _factor(error) for h, error in zip(self.h, errors, strict=True)]
        return moved


def _factor(error: float) -> float:
    return GROW if math.isnan(error) or error == 0 else min(GROW, max(SHRINK, SAFETY * error**-0.2))
