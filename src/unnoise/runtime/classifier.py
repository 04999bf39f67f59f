"""Classifier guidance (Dhariwal & Nichol 2021, section 4): a classifier of noisy pictures pulls every estimate towards a label.

    E[x_0 | x, label] = E[x_0 | x] + sigma²/alpha grad log p(label | x)          by Bayes, and Tweedie's formula twice

A scale above 1 sharpens p(label | x). For DDIM this is the paper's algorithm 2, and it holds for every other solver too. Ancestral
sampling (`ddpm`) has algorithm 1, which moves the mean of the step; it finds the gradient in the answer's `push`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.diffusion.guidance import Guidance
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.networks.classifier import slope


@dataclass(frozen=True)
class ClassifierGuided:
    """A denoiser around another one; `cond.labels` (b,) are the classifier's labels too, whether or not the network looks at them.

    What it adds is not clipped: a denoiser that clips its estimate stands within. A Guidance as condition is passed on, and its positive
    side has the labels. The published scales are 1 (64 and 256 pixels), 0.5 (128), 4 (512), and 10 for the unconditional network.
    """

    denoiser: Callable[[Tensor, Tensor, Any], Tensor | Estimate]
    schedule: Schedule
    classifier: nn.Module  # (x, timestep) -> logits (b, classes)
    scale: float = 1.0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | Guidance) -> Tensor | Estimate:
        answer = self.denoiser(x, t, cond)
        if self.scale == 0:
            return answer
        x0, variance, _ = answer if isinstance(answer, Estimate) else Estimate(answer)
        push = self.scale * self._slope(x, t, cond.positive if isinstance(cond, Guidance) else cond)
        pull = (self.schedule.sigma(t) ** 2 / self.schedule.alpha(t)).to(x).view(-1, *[1] * (x.ndim - 1))
        return Estimate(x0 + pull * push, variance, push)

    def _slope(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """In the classifier's dtype, given in that of x."""
        labels = cond.need("labels", "classifier")
        mine = x.to(next(self.classifier.parameters()).dtype)
        return slope(self.classifier, mine, self.schedule.timestep(t).to(x.device, torch.float32), labels).to(x)
