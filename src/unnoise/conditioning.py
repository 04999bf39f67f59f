"""What a network is told beside the noisy picture. Rows stand in front in every field, so unlike requests share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unnoise.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Cond:
    """One batch of conditions; every field is None or has one row an image."""

    tokens: Tensor | None = None  # (b, n, d) text states
    pooled: Tensor | None = None  # (b, d) one vector of text
    labels: Tensor | None = None  # (b,) class ids
    concat: Tensor | None = None  # (b, c, h, w) channels that join x: a draft, a mask

    def __len__(self) -> int:
        for value in self._values():
            if value is not None:
                return len(value)
        raise ArgumentError("got a Cond with nothing in it, which has no number of rows: set one of its fields")

    def _values(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]

    def need(self, name: str, network: str) -> Tensor:
        """A field that the network cannot do without; raises ArgumentError where it is None."""
        value = getattr(self, name)
        if value is None:
            raise ArgumentError(f"this {network} is conditioned on {name}, got none: set Cond({name}=...)")
        return value

    def rows(self, start: int, stop: int) -> Cond:
        """The conditions of the images start..stop-1."""
        return Cond(*(value if value is None else value[start:stop] for value in self._values()))

    def pick(self, index: Tensor) -> Cond:
        """The conditions of the images that `index` (a mask or positions) names, in its order."""
        return Cond(*(value if value is None else value[index] for value in self._values()))

    @staticmethod
    def stack(conds: Sequence[Cond]) -> Cond:
        """Rows of several requests, one after another. Each field must be set in all of them or in none."""
        columns = zip(*(cond._values() for cond in conds), strict=True)
        return Cond(*(_join(field.name, column) for field, column in zip(fields(Cond), columns, strict=True)))


def _join(name: str, column: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in column if value is not None]
    if not present:
        return None
    if len(present) != len(column):
        raise ArgumentError(f"requests that share a batch must all have '{name}' or none of them")
    return torch.cat(present)
