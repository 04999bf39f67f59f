"""A recorded run of the authors' code, taken again with our solver: the same network, the same times, the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unnoise.conditioning import Cond
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.sampling import Denoiser, Estimate, Plan, Run, stream

NOTHING = Cond()


@dataclass(frozen=True)
class Replay:
    """What the authors' code was recorded with, in order."""

    asked: Tensor  # (questions, b, ...) x wherever the network was asked
    x: Tensor  # (steps, b, ...) after every step
    x0: Tensor  # (steps, b, ...) the estimate of every step


def replay(denoiser: Denoiser, x: Tensor, plan: Plan, noises: Sequence[Tensor] | Tensor = (), cond: Any = NOTHING) -> Replay:
    """Walk from x. Of noises that the authors draw and do not use, those at the end may be left in."""
    asked = []

    def watched(x: Tensor, t: Tensor, cond: Any) -> Tensor | Estimate:
        asked.append(x)
        return denoiser(x, t, cond)

    with torch.no_grad():
        states = list(stream(Run(x, plan, Recorded(list(noises)), cond), watched))
    return Replay(torch.stack(asked), torch.stack([state.x for state in states]), torch.stack([state.x0 for state in states]))


@dataclass(frozen=True)
class Clipped:
    """A denoiser whose estimate stays within the range of pictures; the noise that a solver then derives belongs to the clipped one."""

    denoiser: Denoiser

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor | Estimate:
        answer = self.denoiser(x, t, cond)
        if isinstance(answer, Estimate):
            return Estimate(answer.x0.clamp(-1, 1), answer.variance)
        return answer.clamp(-1, 1)
