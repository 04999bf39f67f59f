"""The model's one denoiser: guidance, classifiers and kept pixels for any rows, each row as its own request wants it.

A classifier of noisy pictures pulls an estimate towards a label (Dhariwal & Nichol 2021, section 4):

    E[x_0 | x, label] = E[x_0 | x] + sigma²/alpha grad log p(label | x)          by Bayes, and Tweedie's formula twice

A scale above 1 sharpens p(label | x). For DDIM this is the paper's algorithm 2, and it holds for every other solver too. Ancestral
sampling (`ddpm`) has algorithm 1, which moves the mean of the step; it finds the gradient in the answer's `push`.

Kept pixels are inpainting with any model (Lugmayr et al. 2022, without its resampling): the estimate is x_0 itself where a mask is 0. A
state that starts as alpha x_0 + sigma n there stays so under every deterministic solver, for the estimate is the truth; with the authors'
way, noising the kept part anew before each step, it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unnoise.diffusion.guidance import Guidance, Guided
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.networks.classifier import slope
from unnoise.transfer import moved


@dataclass(frozen=True, eq=False)
class Keep:
    """The part of each picture that stays."""

    x0: Tensor  # (b, c, h, w) the state without noise
    mask: Tensor  # (b, 1, h, w): above 0 is painted, 0 is kept

    @staticmethod
    def nothing(like: Tensor) -> Keep:
        """Make rows of the shape (b, c, h, w) of which nothing is kept."""
        return Keep(torch.zeros_like(like), torch.ones_like(like[:, :1]))

    def apply(self, x0: Tensor) -> Tensor:
        """Return the estimates with the kept part in its place."""
        return torch.where(self.mask > 0, x0, self.x0.to(x0))


@dataclass(frozen=True, eq=False)
class Pull:
    """A classifier (x, timestep) -> logits (b, classes), and how strongly it pulls each row towards its label."""

    classifier: nn.Module
    scale: Tensor  # (b,) float64 on the CPU; 0 is exactly off. Published: 1 (64 and 256 pixels), 0.5 (128), 4 (512), 10 (unconditional)
    labels: Tensor  # (b,)
    dtype: torch.dtype | None = None  # what the classifier computes in; None is that of x
    rows: int | None = None  # the classifier sees so many pictures at once, so that none depends on its companions; None: all


class Lane(NamedTuple):
    """What requests must have in common to share a forward."""

    adapters: tuple[str, ...] = ()  # merged into the weights
    shape: tuple[int, ...] = ()  # of one picture's state


@dataclass(frozen=True, eq=False)
class Ask:
    """Everything that b pictures ask with beside x and t, one row each. Hints of ControlNets stand in the guidance's two sides."""

    guidance: Guidance
    keep: Keep | None = None
    pulls: tuple[Pull, ...] = ()
    lane: Lane = field(default_factory=Lane)

    def __len__(self) -> int:
        return len(self.guidance.scale)

    @staticmethod
    def stack(asks: Sequence[Ask]) -> Ask:
        """Put rows of several requests one after another; what a request lacks is rows that are off."""
        if len(asks) == 1:
            return asks[0]
        guidance = Guidance.stack([ask.guidance for ask in asks])
        return Ask(guidance, _stack_keeps(asks), _stack_pulls(asks), asks[0].lane)


def _stack_keeps(asks: Sequence[Ask]) -> Keep | None:
    like = next((ask.keep for ask in asks if ask.keep is not None), None)
    if like is None:
        return None
    keeps = [ask.keep or Keep.nothing(like.x0.new_empty(len(ask), *like.x0.shape[1:])) for ask in asks]
    return Keep(torch.cat([keep.x0 for keep in keeps]), torch.cat([keep.mask for keep in keeps]))


def _stack_pulls(asks: Sequence[Ask]) -> tuple[Pull, ...]:
    """One for each classifier, whichever requests have it."""
    nets = {id(pull.classifier): pull for ask in asks for pull in ask.pulls}
    joined = []
    for key, like in nets.items():
        rows = [next((pull for pull in ask.pulls if id(pull.classifier) == key), _no_pull(like, len(ask))) for ask in asks]
        scale, labels = torch.cat([pull.scale for pull in rows]), torch.cat([pull.labels for pull in rows])
        joined.append(replace(like, scale=scale, labels=labels))
    return tuple(joined)


def _no_pull(like: Pull, rows: int) -> Pull:
    return replace(like, scale=like.scale.new_zeros(rows), labels=like.labels.new_zeros(rows))


@dataclass(frozen=True)
class Steered:
    """(x, t, Ask) -> x_0, or an Estimate with a learned variance and a classifier's push.

    What a classifier adds is not clipped: a denoiser that clips its estimate stands within. t (b,) is on the CPU.
    """

    guided: Guided
    schedule: Schedule
    times_on_cpu: bool = field(default=True, init=False)  # see `sampling.advance`

    def __call__(self, x: Tensor, t: Tensor, ask: Ask) -> Tensor | Estimate:
        guided = self.guided
        question = guided.question(t, ask.guidance)
        answer = guided.joined(x, t, ask.guidance, question, guided.denoiser(*guided.rows(x, t, question)))
        for pull in ask.pulls:
            answer = pulled(answer, pull, x, t, self.schedule)
        if ask.keep is None:
            return answer
        return answer._replace(x0=ask.keep.apply(answer.x0)) if isinstance(answer, Estimate) else ask.keep.apply(answer)


def pulled(answer: Tensor | Estimate, pull: Pull, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor | Estimate:
    """Add a classifier's pull to the rows that have a scale; the other rows keep their bits."""
    rows = pull.scale.nonzero()[:, 0]
    if not len(rows):
        return answer
    x0, variance, before = answer if isinstance(answer, Estimate) else Estimate(answer)
    index = moved(rows, x.device)
    slopes = _slopes(pull, rows, x, t, schedule)
    per_row = (-1, *[1] * (x.ndim - 1))
    push = moved(pull.scale[rows], slopes.device, slopes.dtype).view(per_row) * slopes
    weight = moved(schedule.sigma(t) ** 2 / schedule.alpha(t), x.device, x.dtype).view(per_row)[index]
    nearer = x0.index_copy(0, index, x0[index] + weight * push)
    whole = torch.zeros_like(x0).index_copy(0, index, push)
    return Estimate(nearer, variance, whole if before is None else before + whole)


def _slopes(pull: Pull, rows: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The gradients of log p(label | x) of some rows, in the dtype of x."""
    timestep = moved(schedule.timestep(t), x.device, torch.float32)
    parts = []
    for places in rows.split(pull.rows or len(rows)):
        index = moved(places, x.device)
        noisy = x[index].to(pull.dtype or x.dtype)
        parts.append(slope(pull.classifier, noisy, timestep[index], pull.labels[index]).to(x))
    return torch.cat(parts)
