"""A network made into a denoiser: (x, t, cond) -> x_0, whatever it was trained to predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule


class Output(NamedTuple):
    """What a network said of noisy pictures, in the dtype of x, and the point where it was asked."""

    output: Tensor  # (b, c, h, w) the prediction itself: eps, v, ... or EDM's F
    variance: Tensor | None  # (b, c, h, w) a learned variance in -1..1
    alpha: Tensor  # (b, 1, 1, 1)
    sigma: Tensor  # (b, 1, 1, 1)


@dataclass(frozen=True)
class NetworkDenoiser:
    """Asks the network in its own dtype; answers in the dtype of x. Of twice the channels of x, the second half is a learned variance.

    Sampling takes the estimate that the output means, training compares the same output with its target, so they cannot drift apart.

    dtype: what the network computes in; None is that of x. rows: the network always sees this many images, the last group filled up. A
    matrix product may round a row differently when it has more or fewer companions; with a fixed number, a picture is the same to the
    last bit alone and in any batch. None: all at once.
    """

    network: nn.Module
    schedule: Schedule
    prediction: Prediction
    rows: int | None = None
    dtype: torch.dtype | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor | Estimate:
        output, variance, alpha, sigma = self.output(x, t, cond)
        x0 = self.prediction.x0(output, x, alpha, sigma)
        return x0 if variance is None else Estimate(x0, variance)

    def output(self, x: Tensor, t: Tensor, cond: Cond) -> Output:
        """The network's own output at x (b, c, h, w) and the schedule's times t (b,): the one place that computes its input."""
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (value.to(x).view(shape) for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        scaled = (self.prediction.scale_in(alpha, sigma) * x).to(self.dtype or x.dtype)
        answer = self._ask(scaled, self.schedule.timestep(t).to(x.device, torch.float32), cond)
        said, *variance = answer.to(x.dtype).split(x.shape[1], dim=1)
        return Output(said, variance[0] if variance else None, alpha, sigma)

    def _ask(self, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        if cond.lengths is None or cond.tokens is None:
            return self._grouped(x, timestep, cond)
        answers: dict[int, Tensor] = {}
        for length in cond.lengths.unique().tolist():  # rows of as many tokens together
            index = (cond.lengths == length).nonzero()[:, 0]
            own = replace(cond.pick(index), tokens=cond.tokens[index, :length], lengths=None)
            answers |= dict(zip(index.tolist(), self._grouped(x[index], timestep[index], own), strict=True))
        return torch.stack([answers[i] for i in range(len(x))])

    def _grouped(self, x: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        if self.rows is None:
            return self.network(x, timestep, cond)
        groups = torch.arange(len(x), device=x.device).split(self.rows)
        return torch.cat([self._group(x, timestep, cond, index) for index in groups])

    def _group(self, x: Tensor, timestep: Tensor, cond: Cond, index: Tensor) -> Tensor:
        filled = torch.cat([index, index[-1:].expand(self.rows - len(index))]) if self.rows else index
        return self.network(x[filled], timestep[filled], cond.pick(filled))[: len(index)]
