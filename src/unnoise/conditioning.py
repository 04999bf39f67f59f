"""What a network is told beside the noisy picture. Rows stand in front in every field, so unlike requests share a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from unnoise.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Hint:
    """What one ControlNet is shown, one row an image. Numbers say how strongly and when, so guess mode and the like are numbers too."""

    image: Tensor  # (b, c, h, w) as this net wants it: a picture in 0..1 at eight times the latents' size, or latents of one
    scales: Tensor  # (b, k) what each of the net's k residuals is multiplied by; 0 is exactly off
    window: Tensor  # (b, 2): the net acts where low < timestep <= high, the timestep being what the network is told

    def __len__(self) -> int:
        return len(self.image)

    def acts(self, t: Tensor) -> Tensor:
        """Which rows have anything to add at these timesteps, (b,)."""
        low, high = self.window.to(t.device).unbind(1)
        return (self.scales != 0).any(1).to(t.device) & (low < t) & (t <= high)

    def off(self, rows: int) -> Hint:
        """So many rows of the same shape that never act."""
        return self._each(lambda value: value.new_zeros(rows, *value.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Hint:
        return Hint(change(self.image), change(self.scales), change(self.window))


@dataclass(frozen=True, eq=False)
class Cond:
    """One batch of conditions; every field is None or has one row an image."""

    tokens: Tensor | None = None  # (b, n, d) text states
    pooled: Tensor | None = None  # (b, d) one vector of text
    labels: Tensor | None = None  # (b,) class ids
    concat: Tensor | None = None  # (b, c, h, w) channels that join x: a draft, a mask
    guidance: Tensor | None = None  # (b,) the guidance scale, of networks that guidance was distilled into
    hints: tuple[Hint, ...] | None = None  # one for each ControlNet, in their order
    lengths: Tensor | None = None  # (b,) how many tokens each row has; the others are filling. None: all of them

    def __len__(self) -> int:
        for value in (*self._values(), *(self.hints or ())):
            if value is not None and not isinstance(value, tuple):
                return len(value)
        raise ArgumentError("got a Cond with nothing in it, which has no number of rows: set one of its fields")

    def _values(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def need(self, name: str, network: str) -> Tensor:
        """A field that the network cannot do without; raises ArgumentError where it is None."""
        value = getattr(self, name)
        if value is None:
            raise ArgumentError(f"this {network} is conditioned on {name}, got none: set Cond({name}=...)")
        return value

    def rows(self, start: int, stop: int) -> Cond:
        """The conditions of the images start..stop-1."""
        return self._each(lambda value: value[start:stop])

    def pick(self, index: Tensor) -> Cond:
        """The conditions of the images that `index` (a mask or positions) names, in its order."""
        return self._each(lambda value: value[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cond:
        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(hint._each(change) for hint in value)
            return value if value is None else change(value)

        return Cond(*map(changed, self._values()))

    @staticmethod
    def stack(conds: Sequence[Cond]) -> Cond:
        """Rows of several requests, one after another. Each field must be set in all of them or in none; of hints, rows without are off."""
        columns = {name: [getattr(cond, name) for cond in conds] for name in _NAMES}
        hints = _join_hints(conds, columns.pop("hints"))
        return Cond(**{name: _join(name, column) for name, column in columns.items()}, hints=hints)


_NAMES = [field.name for field in fields(Cond)]


def _join(name: str, column: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in column if value is not None]
    if not present:
        return None
    if len(present) != len(column):
        raise ArgumentError(f"requests that share a batch must all have '{name}' or none of them")
    return torch.cat(present)


def _join_hints(conds: Sequence[Cond], column: Sequence[tuple[Hint, ...] | None]) -> tuple[Hint, ...] | None:
    joined = []
    for given in zip_longest(*(hints or () for hints in column)):  # those of one net
        like = next(hint for hint in given if hint is not None)
        filled = [like.off(len(cond)) if hint is None else hint for cond, hint in zip(conds, given, strict=True)]
        joined.append(Hint(*(torch.cat([getattr(hint, field.name) for hint in filled]) for field in fields(Hint))))
    return tuple(joined) or None
