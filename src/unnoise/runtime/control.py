"""ControlNets beside a network: who is asked when, how strongly, and what becomes of several.

    residual = sum over nets of scale * net(x, t, hint)          where the net acts on this row at this time; else nothing at all

A row on which no net acts gets the network's own bits. It may share the batch with rows that are controlled: what is added to it is
minus zero, the one number that leaves every other as it is, zeros of both signs included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond, Hint
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNetConfig
from unnoise.networks.layers import built_from
from unnoise.transfer import moved

ALWAYS = (-torch.inf, torch.inf)
GUESSES = ("power", "logspace")  # how residuals grow in guess mode: see `scales`


def residuals(network: nn.Module, x: Tensor, t: Tensor, cond: Cond, *, config: object = None, steady: bool = False) -> list[Tensor | None]:
    """What all nets of the hints together add to each place of the network; [] where none acts.

    x (b, c, h, w) and t (b,) as the network is given them; hints as `Hint.at` leaves them, so that a row acts if it has a scale.
    config: what the network was built from; None: its own `config`, for a network that nothing wraps.
    steady: a net is always asked for as many rows as came, filled up, so that a picture's rounding does not depend on its companions.
    """
    plain, parts = replace(cond, hints=None), []
    config = getattr(network, "config", None) if config is None else config
    for hint in cond.hints or ():
        rows = (hint.scales != 0).any(1).nonzero()[:, 0]
        if len(rows):
            filled = torch.cat([rows, rows[-1:].expand(len(x) - len(rows))]) if steady else rows
            index = moved(filled, x.device)
            lender = built_from(config, network)  # some nets borrow embeddings of the network
            answer = hint.net(x[index], t[index], plain.pick(filled), hint.image.to(x.device)[index], lender)
            places = (hint.config or own_config(hint.net)).places(config)
            parts.append((places, _scaled([one[: len(rows)] for one in answer], hint.scales, rows, len(x))))
    return _sum(parts)


def _scaled(residuals: Sequence[Tensor], scales: Tensor, rows: Tensor, total: int) -> list[Tensor]:
    """The residuals of some rows, times their scales, among `total` rows; minus zero in the others and where a scale is 0."""
    if scales.shape[1] != len(residuals):
        raise ArgumentError(f"got {scales.shape[1]} scales for a ControlNet of {len(residuals)} residuals: expected one each")
    scaled = []
    for residual, column in zip(residuals, scales[rows].unbind(1), strict=True):
        exact = torch.promote_types(residual.dtype, torch.float32)
        scale = moved(column, residual.device, exact).view(-1, *[1] * (residual.ndim - 1))
        product = torch.where(scale == 0, -0.0, scale * residual).to(residual.dtype)
        among = product.new_full((total, *residual.shape[1:]), -0.0)
        scaled.append(among.index_copy(0, moved(rows, product.device), product) if len(rows) < total else product)
    return scaled


def _sum(parts: Sequence[tuple[list[int | None], list[Tensor]]]) -> list[Tensor | None]:
    """place by place over the nets. Places that take the same residuals share the sum."""
    sums: dict[tuple[int | None, ...], Tensor | None] = {}
    choices = list(zip(*(places for places, _ in parts), strict=True))
    for choice in choices:
        if choice not in sums:
            chosen = [residuals[i] for (_, residuals), i in zip(parts, choice, strict=True) if i is not None]
            sums[choice] = sum(chosen[1:], chosen[0]) if chosen else None
    return [sums[choice] for choice in choices]


def scales(
    residuals: int,
    scale: float = 1.0,
    *,
    guess: Literal["power", "logspace"] | None = None,
    only_mid: bool = False,
) -> Tensor:
    """What a net's residuals are multiplied by, (residuals,) float64: `scale` for all of them, or growing towards the middle.

    guess: guess mode, in which only the prompted rows see the hint. "power" is the authors', scale * 0.825^(12-i) for i = 0, 1, ..., made
    for 13 residuals and cut for fewer; "logspace" is diffusers', from a tenth of the scale to all of it. only_mid: the last alone.
    """
    if guess is not None and guess not in GUESSES:
        raise ArgumentError(f"got guess {guess!r}: expected one of {', '.join(GUESSES)}, or None")
    grow = torch.ones(residuals, dtype=torch.float64)
    if guess == "power":
        grow = 0.825 ** (12 - torch.arange(residuals, dtype=torch.float64))
    if guess == "logspace":
        grow = torch.logspace(-1, 0, residuals, dtype=torch.float64)
    if only_mid:
        grow[:-1] = 0
    return scale * grow


def window(schedule: Schedule, times: Tensor | Sequence[float], start: float = 0.0, end: float = 1.0) -> tuple[float, float]:
    """Between which timesteps a net acts that starts and ends at these shares of the steps; for `Hint.window`.

    times: the grid, falling, one more than there are steps. As in diffusers step i of n acts if start <= i/n and (i+1)/n <= end, with all
    questions of a solver that lie in it, but for one at its very end. Raises ArgumentError for shares that are none.
    """
    if not 0 <= start <= end <= 1:
        raise ArgumentError(f"got start {start} and end {end}: expected shares of the steps, 0 <= start <= end <= 1")
    steps = len(times) - 1
    acting = [i for i in range(steps) if i / steps >= start and (i + 1) / steps <= end]
    if not acting:
        return (0.0, 0.0)
    told = schedule.timestep(torch.as_tensor(times, dtype=torch.float64)).tolist()

    def above(i: int) -> float:
        """A thousandth of a step before step i, which rounding does not cross."""
        return told[i] + 1e-3 * (told[i - 1] - told[i])

    first, behind = acting[0], acting[-1] + 1
    return (above(behind) if behind < steps else -torch.inf, above(first) if first else torch.inf)


def hint(
    net: nn.Module,
    image: Tensor,
    scale: float = 1.0,
    *,
    config: ControlNetConfig | MMDiTControlNetConfig | None = None,
    acts: tuple[float, float] = ALWAYS,
    guess: Literal["power", "logspace"] | None = None,
    only_mid: bool = False,
) -> Hint:
    """Make a hint for all rows of image (b, c, h, w). acts: a `window`. A net that averages has no residuals that grow in guess mode.

    config: what the net was built from; None: its own, for a net that nothing wraps. Raises ArgumentError for a guess mode that is none.
    """
    built = config or own_config(net)
    pooled = isinstance(built, ControlNetConfig) and built.global_pool
    row = scales(built.residuals, scale, guess=None if pooled else guess, only_mid=only_mid)
    window_of_rows = torch.tensor(acts, dtype=torch.float32).expand(len(image), 2)
    return Hint(image, row.expand(len(image), -1), window_of_rows, net, built)


def own_config(net: nn.Module) -> ControlNetConfig | MMDiTControlNetConfig:
    """Return what a ControlNet was built from, of the net itself. Raises ArgumentError for another network."""
    config = getattr(net, "control", None) or getattr(net, "config", None)
    if not isinstance(config, ControlNetConfig | MMDiTControlNetConfig):
        raise ArgumentError(f"got a {type(net).__name__} as ControlNet: expected one of this package, or its config beside it")
    return config
