"""A part of the picture that is known: inpainting with any model (Lugmayr et al. 2022, without its resampling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unnoise.diffusion.sampling import Denoiser, Estimate


@dataclass(frozen=True)
class Known:
    """A denoiser whose estimate is `x0` where `mask` is 0.

    A state that starts as alpha x_0 + sigma n there stays so under every deterministic solver, for the estimate is the truth; with the
    authors' way, noising the known part anew before each step, it is the same.
    """

    denoiser: Denoiser
    x0: Tensor  # (b, c, h, w)
    mask: Tensor  # (b, 1, h, w): 1 is painted

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor | Estimate:
        answer = self.denoiser(x, t, cond)
        if isinstance(answer, Estimate):
            return answer._replace(x0=self._kept(answer.x0))
        return self._kept(answer)

    def _kept(self, x0: Tensor) -> Tensor:
        return torch.where(self.mask > 0, x0, self.x0.to(x0))
