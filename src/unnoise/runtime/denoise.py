"""A network made into a denoiser: (x, t, cond) -> x_0, whatever it was trained to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.runtime.control import residuals
from unnoise.transfer import moved


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
    last bit alone and in any batch. None: all at once. ControlNets come with the rows that they steer: see `Hint.net`.
    """

    network: nn.Module
    schedule: Schedule
    prediction: Prediction
    rows: int | None = None
    dtype: torch.dtype | None = None
    config: object = None  # what the network was built from, for ControlNets; None: its own `config`
    times_on_cpu: bool = field(default=True, init=False)  # the driver gives t on the CPU: see `sampling.advance`

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor | Estimate:
        output, variance, alpha, sigma = self.output(x, t, cond)
        x0 = self.prediction.x0(output, x, alpha, sigma)
        return x0 if variance is None else Estimate(x0, variance)

    def output(self, x: Tensor, t: Tensor, cond: Cond) -> Output:
        """The network's own output at x (b, c, h, w) and the schedule's times t (b,): the one place that computes its input."""
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (moved(value, x.device, x.dtype).view(shape) for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        scaled = (self.prediction.scale_in(alpha, sigma) * x).to(self.dtype or x.dtype)
        timestep = self.schedule.timestep(t).to(torch.float32)
        groups, answers = list(self._groups(len(x), cond)), []
        for index, count, asked in groups:
            noisy, told = _take(scaled, index), _take(timestep, index)
            shown = replace(asked, hints=tuple(hint.at(told) for hint in asked.hints)) if asked.hints else asked
            told = moved(told, x.device)
            added = residuals(self.network, noisy, told, shown, config=self.config, steady=self.rows is not None)
            answer = self.network(noisy, told, replace(shown, hints=None), **({"residuals": added} if added else {}))
            answers.append(answer[:count])
        said, *variance = _in_order(answers, groups).to(x.dtype).split(x.shape[1], dim=1)
        return Output(said, variance[0] if variance else None, alpha, sigma)

    def _groups(self, images: int, cond: Cond) -> Iterator[Group]:
        """The images that share a forward: those with as many tokens, at most `rows` at a time."""
        if cond.lengths is None or cond.tokens is None:
            alike = [(None, torch.arange(images))]
        else:
            alike = [(n, (cond.lengths == n).nonzero()[:, 0]) for n in cond.lengths.unique().tolist()]
        for length, places in alike:
            if self.rows is None and length is None:
                yield Group(None, images, cond)
                continue
            for index in places.split(self.rows or images):
                filled = torch.cat([index, index[-1:].expand(max(0, (self.rows or 0) - len(index)))])
                own = cond.pick(filled)
                if length is not None and own.tokens is not None:
                    own = replace(own, tokens=own.tokens[:, :length], lengths=None)
                yield Group(filled, len(index), own)


class Group(NamedTuple):
    """Images that are asked in one forward."""

    index: Tensor | None  # (rows,) on the CPU: their places, the last one repeated up to the fixed number; None: all images in order
    count: int  # how many of the answers count
    cond: Cond


def _take(values: Tensor, index: Tensor | None) -> Tensor:
    return values if index is None else values[moved(index, values.device)]


def _in_order(answers: list[Tensor], groups: list[Group]) -> Tensor:
    """The answers of all groups, (b, ...), each at its image's place."""
    whole = answers[0] if len(answers) == 1 else torch.cat(answers)
    order = [place for index, count, _ in groups if index is not None for place in index[:count].tolist()]
    if order == sorted(order):
        return whole
    return whole[moved(torch.tensor(order).argsort(), whole.device)]
