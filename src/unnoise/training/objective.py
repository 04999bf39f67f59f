"""Objectives: a batch and random numbers in, one loss out. The loop knows no more of them than that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from unnoise.diffusion.losses import Loss, TimeSampling, noised
from unnoise.errors import ArgumentError
from unnoise.training.batch import Batch, Draw
from unnoise.training.trainee import Trainee

B = TypeVar("B", contravariant=True)


class Objective(Protocol[B]):
    """What a training run minimises, over batches of one kind."""

    def __call__(self, batch: B, draw: Draw) -> Tensor:
        """The loss, a float32 scalar with a gradient."""
        ...


@dataclass(frozen=True)
class Denoising:
    """The squared error of the network's output at random times (Ho et al. 2020, eq. 14; weights as `Loss` says).

    The output is that of `NetworkDenoiser.output`, which sampling uses too. Of a learned variance nothing is trained.
    autocast: the number format in which networks multiply; None is their own. Weights, outputs and the loss stay in float32.
    """

    trainee: Trainee
    loss: Loss = field(default_factory=Loss)
    times: TimeSampling = field(default_factory=TimeSampling)
    autocast: torch.dtype | None = None

    def __call__(self, batch: Batch, draw: Draw) -> Tensor:
        """The mean over the rows."""
        return self.losses(batch, draw).mean()

    def losses(self, batch: Batch, draw: Draw) -> Tensor:
        """The weighted losses (b,) of the rows, each a mean over c, h, w."""
        denoiser, x0 = self.trainee.denoiser, batch.x0
        noise = draw.noise(x0)
        t = draw.times(len(x0), self.times, denoiser.schedule).to(x0.device)
        x, alpha, sigma = noised(x0, noise, t, denoiser.schedule)
        with torch.autocast(x0.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = denoiser.output(x, t, self.trainee.condition(batch)).output
        losses = self.loss(output, x0, noise, alpha, sigma, denoiser.prediction)
        return losses if batch.weight is None else losses * batch.weight


@dataclass(frozen=True)
class WithPrior:
    """Prior preservation (Ruiz et al. 2023, eq. 2): the loss of the subject plus `weight` times that of pictures of its class.

    A batch has `rows` rows of the subject, then those of the class, as `batch.joined` puts them. Each part has its mean, so that the
    number of class pictures does not change their weight. Raises ArgumentError for a batch without rows of the class.
    """

    denoising: Denoising
    rows: int
    weight: float = 1.0

    def __call__(self, batch: Batch, draw: Draw) -> Tensor:
        if not 0 < self.rows < len(batch):
            raise ArgumentError(f"got {self.rows} rows of the subject in a batch of {len(batch)}: expected rows of the class behind them")
        losses = self.denoising.losses(batch, draw)
        return losses[: self.rows].mean() + self.weight * losses[self.rows :].mean()
