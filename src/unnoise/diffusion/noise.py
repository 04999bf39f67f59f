"""Noise: one stream an image, keyed by its seed and drawn on the CPU in float32, so that a picture depends on its seed alone.

Not on the device, not on the batch it is drawn in, not on its place there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from unnoise.errors import ArgumentError
from unnoise.transfer import moved

MAX_SEED = 2**63 - 1


class Noise(Protocol):
    """Where a solver's random numbers come from."""

    def draw(self, like: Tensor) -> Tensor:
        """Standard normal, of the shape, dtype and device of `like` (one row an image)."""
        ...


class Streams:
    """One generator an image."""

    def __init__(self, seeds: Sequence[int]):
        for seed in seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
                raise ArgumentError(f"got seed {seed!r}: expected a whole number from 0 to {MAX_SEED}")
        self.seeds = list(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, like: Tensor) -> Tensor:
        if len(like) != len(self.seeds):  # one stream must never be spread over several images
            raise ArgumentError(f"got {len(self.seeds)} seeds for {len(like)} images: expected one each")
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in self._generators]
        return moved(torch.stack(rows), like.device, like.dtype)

    def states(self) -> list[Tensor]:
        """Return where each stream stands, as bytes (n,)."""
        return [generator.get_state() for generator in self._generators]

    def restore(self, states: Sequence[Tensor]) -> None:
        """Set each stream to where `states` says that it stood."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


class Recorded:
    """Noises given beforehand, used in order: another implementation's draws, for comparing trajectories."""

    def __init__(self, noises: Sequence[Tensor]):
        self._left = iter(noises)

    def draw(self, like: Tensor) -> Tensor:
        noise = next(self._left, None)
        if noise is None or noise.shape != like.shape:
            left = "none left" if noise is None else f"one of shape {tuple(noise.shape)}"
            raise ArgumentError(f"recorded noise: {left}, expected shape {tuple(like.shape)}: record one for every draw of the solver")
        return moved(noise, like.device, like.dtype)
