"""An exponential moving average of the weights: what is sampled and published (Ho et al. 2020, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """average <- d average + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)) so that the start is forgotten soon."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone().float() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """`step` counts optimiser steps already taken, from 0."""
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.weights.values(), model.parameters(), strict=True):
            average.lerp_(weight.detach().float(), rate)
