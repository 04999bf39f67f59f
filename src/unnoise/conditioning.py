"""What a network is told beside the noisy picture. Rows stand in front in every field, so unlike requests share a batch.

Numbers that decide what is computed (lengths, skipped blocks, a hint's scales and window) stay on the CPU: asking them costs no read-back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from unnoise.errors import ArgumentError
from unnoise.transfer import moved


@dataclass(frozen=True, eq=False)
class Hint:
    """What one ControlNet is shown, one row an image. Numbers say how strongly and when, so guess mode and the like are numbers too."""

    image: Tensor  # (b, c, h, w) as this net wants it: a picture in 0..1 at eight times the latents' size, or latents of one
    scales: Tensor  # (b, k) on the CPU: what each of the net's k residuals is multiplied by; 0 is exactly off
    window: Tensor  # (b, 2) on the CPU: the net acts where low < timestep <= high, the timestep being what the network is told
    net: Any = None  # the ControlNet: requests that share a batch join their hints by it
    config: Any = None  # what the net was built from; None: its own config, for a net that nothing wraps

    def __len__(self) -> int:
        return len(self.image)

    def acts(self, t: Tensor) -> Tensor:
        """Tell which rows have anything to add at these timesteps, (b,), on the CPU."""
        low, high = self.window.unbind(1)
        t = t.to(low.device)
        return (self.scales != 0).any(1) & (low < t) & (t <= high)

    def at(self, t: Tensor) -> Hint:
        """Give the same hint with the scales of rows that do not act at these timesteps set to 0."""
        return replace(self, scales=torch.where(self.acts(t)[:, None], self.scales, 0.0))

    def off(self, rows: int) -> Hint:
        """Make so many rows of the same shape that never act."""
        return self._each(lambda value: value.new_zeros(rows, *value.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Hint:
        return replace(self, image=change(self.image), scales=change(self.scales), window=change(self.window))


@dataclass(frozen=True, eq=False)
class Cond:
    """One batch of conditions; every field is None or has one row an image."""

    tokens: Tensor | None = None  # (b, n, d) text states
    pooled: Tensor | None = None  # (b, d) one vector of text
    labels: Tensor | None = None  # (b,) class ids
    concat: Tensor | None = None  # (b, c, h, w) channels that join x: a draft, a mask
    guidance: Tensor | None = None  # (b,) the guidance scale, of networks that guidance was distilled into
    hints: tuple[Hint, ...] | None = None  # one for each use of a ControlNet
    lengths: Tensor | None = None  # (b,) on the CPU: how many tokens each row has; the others are filling. None: all of them
    skip: Tensor | None = None  # (b, depth) bool on the CPU: the blocks that a row leaves out; None: it leaves out none

    def __len__(self) -> int:
        for value in (*self._values(), *(self.hints or ())):
            if value is not None and not isinstance(value, tuple):
                return len(value)
        raise ArgumentError("got a Cond with nothing in it, which has no number of rows: set one of its fields")

    def _values(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def need(self, name: str, network: str) -> Tensor:
        """Return a field that the network cannot do without; raises ArgumentError where it is None."""
        value = getattr(self, name)
        if value is None:
            raise ArgumentError(f"this {network} is conditioned on {name}, got none: set Cond({name}=...)")
        return value

    def rows(self, start: int, stop: int) -> Cond:
        """Return the conditions of the images start..stop-1."""
        return self._each(lambda value: value[start:stop])

    def pick(self, index: Tensor) -> Cond:
        """Return the conditions of the images that `index` (a mask or positions; best on the CPU) names, in its order."""
        return self._each(lambda value: value[moved(index, value.device)])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cond:
        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(hint._each(change) for hint in value)
            return value if value is None else change(value)

        return Cond(*map(changed, self._values()))

    @staticmethod
    def stack(conds: Sequence[Cond]) -> Cond:
        """Put rows of several requests one after another.

        Rows with fewer tokens than others are filled up, and `lengths` says how many are their own. A request without hints of a net, or
        without skipped blocks, gets rows that are off. Every other field must be set in all of them or in none: raises ArgumentError.
        """
        if len(conds) == 1:
            return conds[0]
        plain = {name: _join(name, [getattr(cond, name) for cond in conds]) for name in ("pooled", "labels", "concat", "guidance")}
        tokens, lengths = _join_tokens(conds)
        return Cond(tokens=tokens, lengths=lengths, hints=_join_hints(conds), skip=_join_skips(conds), **plain)


def _join(name: str, column: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in column if value is not None]
    if not present:
        return None
    if len(present) != len(column):
        raise ArgumentError(f"requests that share a batch must all have '{name}' or none of them")
    return torch.cat(present)


def _join_tokens(conds: Sequence[Cond]) -> tuple[Tensor | None, Tensor | None]:
    """Tokens (b, longest, d) and their lengths (b,), None where all rows have as many."""
    column = [cond.tokens for cond in conds]
    widths = [0 if tokens is None else tokens.shape[1] for tokens in column]
    if len(set(widths)) == 1 and all(cond.lengths is None for cond in conds):
        return _join("tokens", column), None
    filled = [None if tokens is None else _filled(tokens, max(widths)) for tokens in column]
    lengths = [torch.full((len(cond),), width) if cond.lengths is None else cond.lengths for cond, width in zip(conds, widths, strict=True)]
    return _join("tokens", filled), torch.cat(lengths)


def _filled(tokens: Tensor, longest: int) -> Tensor:
    return torch.cat([tokens, tokens.new_zeros(len(tokens), longest - tokens.shape[1], tokens.shape[2])], dim=1)


def _join_skips(conds: Sequence[Cond]) -> Tensor | None:
    depth = next((cond.skip.shape[1] for cond in conds if cond.skip is not None), 0)
    if not depth:
        return None
    return torch.cat([torch.zeros(len(cond), depth, dtype=torch.bool) if cond.skip is None else cond.skip for cond in conds])


def _join_hints(conds: Sequence[Cond]) -> tuple[Hint, ...] | None:
    """One hint for each net, or for each use of one where a request shows a net several pictures; others have rows that are off."""
    by_use = [_uses(cond.hints or ()) for cond in conds]
    joined = []
    for use in dict.fromkeys(use for uses in by_use for use in uses):
        like = next(uses[use] for uses in by_use if use in uses)
        parts = [uses[use] if use in uses else like.off(len(cond)) for cond, uses in zip(conds, by_use, strict=True)]
        columns = (torch.cat([getattr(part, name) for part in parts]) for name in ("image", "scales", "window"))
        joined.append(Hint(*columns, net=like.net, config=like.config))
    return tuple(joined) or None


def _uses(hints: Sequence[Hint]) -> dict[Hashable, Hint]:
    """Hints by their net and by how many of the same net stand before them."""
    uses: dict[Hashable, Hint] = {}
    for hint in hints:
        before = sum(1 for net, _ in uses if net == id(hint.net))  # pyright: ignore[reportGeneralTypeIssues]
        uses[id(hint.net), before] = hint
    return uses
