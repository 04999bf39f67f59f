"""An exponential moving average of the weights: what is sampled and published (Ho et al. 2020, section 4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """average <- d average + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)) so that the start is forgotten soon."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.decay, self.parameters = decay, parameters
        self.weights: dict[str, Tensor] = {name: p.detach().clone().float() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Let the average follow the parameters. `step` counts optimiser steps already taken, from 0."""
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.weights[name].lerp_(parameter.detach().float(), rate)
