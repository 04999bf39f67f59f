"""Skip-layer guidance (Stable Diffusion 3.5 medium): away from the same network without some of its blocks, in a part of the steps.

    x_0 = uncond + s (cond - uncond) + w (cond - weak)

The authors have w = 2.5 and blocks 7, 8 and 9, from 1 % to 20 % of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unnoise.diffusion.guidance import Guidance


@dataclass(frozen=True)
class SkipLayerGuided:
    """A denoiser around a guided one; where it acts it asks the prompt's side twice more."""

    guided: Callable[..., Any]  # (x, t, Guidance)
    strong: Callable[..., Any]  # (x, t, Cond)
    weak: Callable[..., Any]  # the same with a network of `SkipLayers`
    scale: float
    window: tuple[float, float]  # it acts where low < t <= high

    def __call__(self, x: Tensor, t: Tensor, cond: Guidance) -> Tensor:
        x0 = self.guided(x, t, cond)
        rows = ((self.window[0] < t) & (t <= self.window[1])).nonzero()[:, 0].to(x.device)
        if not len(rows):
            return x0
        asked = (x[rows], t[rows.to(t.device)], cond.positive.pick(rows))
        push = self.scale * (self.strong(*asked) - self.weak(*asked))
        return x0.index_add(0, rows, push)


def window(times: Sequence[float], start: float, stop: float) -> tuple[float, float]:
    """Of a falling grid, in shares of its n steps: the steps k with start n < k < stop n, as the authors and diffusers count."""
    steps = len(times) - 1
    acting = [k for k in range(steps) if start * steps < k < stop * steps]
    return (times[acting[-1] + 1], times[acting[0]]) if acting else (torch.inf, torch.inf)
