"""A denoiser beside a classifier, without guidance and rows of other requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.runtime.guides import Pull, pulled


@dataclass(frozen=True)
class Classified:
    """(x, t, Cond) -> the denoiser's estimate, pulled towards the labels of the condition."""

    denoiser: Callable[[Tensor, Tensor, Cond], Tensor | Estimate]
    schedule: Schedule
    classifier: nn.Module
    scale: float = 1.0
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor | Estimate:
        scale = torch.full((len(x),), self.scale, dtype=torch.float64)
        pull = Pull(self.classifier, scale, cond.need("labels", "classifier"), self.dtype)
        return pulled(self.denoiser(x, t, cond), pull, x, t, self.schedule)
