"""Guidance: one question becomes one or several evaluations of the network, and their answers are joined.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) in the scale s = w + 1 that everyone types:

    x_0 = uncond + s (cond - uncond)          s = 1: the condition alone, one evaluation; s = 0: unconditional, one evaluation

Guidance by a weaker network (Karras et al. 2024; skip-layer guidance of Stable Diffusion 3.5) adds w (cond - weak) in a part of the steps.

Every prediction is affine in x_0 with the same coefficients for all answers, so guiding x_0, eps, v or flow is the same thing. For s > 1
it is an extrapolation, not an average. Everything is per row: rows that need one evaluation cost one, and unlike requests share the batch.
The numbers stay on the CPU, so that deciding who is asked costs no read-back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from unnoise.conditioning import Cond
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError
from unnoise.transfer import moved


@dataclass(frozen=True, eq=False)
class Weak:
    """The side that a guided estimate is pushed away from, one row an image: x_0 gains scale (cond - weak) where low < t <= high."""

    cond: Cond
    scale: Tensor  # (b,) float64
    low: Tensor  # (b,) float64 times of the schedule
    high: Tensor

    def scale_at(self, t: Tensor) -> Tensor:
        """Return the scale that holds at these times, (b,); 0 outside the window."""
        t = t.to(self.low.device)
        return torch.where((self.low < t) & (t <= self.high), self.scale, 0.0)


@dataclass(frozen=True, eq=False)
class Guidance:
    """What b images are guided by; each number field is (b,) float64."""

    positive: Cond
    negative: Cond
    scale: Tensor
    rescale: Tensor
    low: Tensor  # guidance acts where low <= sigma / (alpha + sigma) <= high (Kynkäänniemi et al. 2024); else the scale is 1, but 0 stays
    high: Tensor
    weak: Weak | None = None

    @staticmethod
    def stack(others: Sequence[Guidance]) -> Guidance:
        """Put rows of several requests one after another."""
        scale, rescale, low, high = (torch.cat([getattr(other, name) for other in others]) for name in ("scale", "rescale", "low", "high"))
        positive, negative = Cond.stack([o.positive for o in others]), Cond.stack([o.negative for o in others])
        return Guidance(positive, negative, scale, rescale, low, high, _stack_weak(others))


def _stack_weak(others: Sequence[Guidance]) -> Weak | None:
    """Rows without a weak side are never asked: their scale is 0."""
    if all(other.weak is None for other in others):
        return None
    zeros = [torch.zeros(len(other.scale), dtype=torch.float64) for other in others]
    sides = [other.weak or Weak(other.positive, zero, zero, zero) for other, zero in zip(others, zeros, strict=True)]
    numbers = (torch.cat([getattr(side, name) for side in sides]) for name in ("scale", "low", "high"))
    return Weak(Cond.stack([side.cond for side in sides]), *numbers)


def guidance(
    positive: Cond,
    negative: Cond,
    scale: float | Tensor = 1.0,
    *,
    rescale: float | Tensor = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Guidance:
    """Build a Guidance. scale and rescale: one number for all images or one each. Raises ArgumentError."""
    rows = len(positive)
    if len(negative) != rows:
        raise ArgumentError(f"got {rows} conditions and {len(negative)} negative ones: expected as many")
    for name, value in (("guidance_scale", scale), ("guidance_rescale", rescale)):
        if isinstance(value, Tensor) and value.shape not in ((), (1,), (rows,)):
            raise ArgumentError(f"got {name} of shape {tuple(value.shape)}: expected one number, or one for each of {rows} images")
    low, high = interval
    values = [torch.as_tensor(value, dtype=torch.float64, device="cpu").expand(rows) for value in (scale, rescale, low, high)]
    if not bool(torch.isfinite(values[0]).all()):
        raise ArgumentError(f"got guidance_scale {scale}: expected a finite number")
    if not bool(((values[1] >= 0) & (values[1] <= 1)).all()):
        raise ArgumentError(f"got guidance_rescale {rescale}: expected a number from 0 to 1")
    if not 0 <= low < high <= 1:
        raise ArgumentError(f"got guidance_interval {interval}: expected two shares of noise sigma/(alpha+sigma), 0 <= low < high <= 1")
    scales, rescales, lows, highs = values
    return Guidance(positive, negative, scales, rescales, lows, highs)


class Question(NamedTuple):
    """What a denoiser is asked for b guided images: the rows of every side that matter, in one batch."""

    index: Tensor  # (n,) on the CPU: the image of each asked row
    cond: Cond  # of the n rows
    sides: tuple[Tensor, ...]  # positive, negative, weak: (b,) bool, whether the image is asked on this side
    scale: Tensor  # (b,) the guidance scale that holds now
    push: Tensor  # (b,) the weak side's scale that holds now


@dataclass(frozen=True)
class Guided:
    """A denoiser that takes a Guidance as its condition. `denoiser` is (x, t, Cond) -> x_0, or an Estimate with a learned variance.

    The variance is not guided: it is the condition's own, or the unconditional one where that alone was asked (as in DiT's code).
    """

    denoiser: Callable[[Tensor, Tensor, Cond], Tensor | Estimate]
    schedule: Schedule
    prediction: Prediction  # `rescale` compares standard deviations of this output
    channels: int | None = None  # guidance acts on so many, from the first; the rest are the condition's own, as in DiT's code (3 of 4)
    times_on_cpu: bool = field(default=True, init=False)  # the driver gives t on the CPU: see `sampling.advance`

    def __call__(self, x: Tensor, t: Tensor, cond: Guidance) -> Tensor | Estimate:
        question = self.question(t, cond)
        return self.joined(x, t, cond, question, self.denoiser(*self.rows(x, t, question)))

    def rows(self, x: Tensor, t: Tensor, question: Question) -> tuple[Tensor, Tensor, Cond]:
        """Return x, t and conditions of the asked rows."""
        return x[moved(question.index, x.device)], t[moved(question.index, t.device)], question.cond

    def question(self, t: Tensor, cond: Guidance) -> Question:
        """Decide which rows of which side are asked at the times t (b,)."""
        scale = self._scale_at(t, cond)
        push = torch.zeros_like(scale) if cond.weak is None else cond.weak.scale_at(t)
        sides = ((scale != 0) | (push != 0), scale != 1, push != 0)
        conds = (cond.positive, cond.negative, cond.positive if cond.weak is None else cond.weak.cond)
        asked = [(rows, mask.nonzero()[:, 0]) for rows, mask in zip(conds, sides, strict=True) if bool(mask.any())]
        index = torch.cat([places for _, places in asked])
        return Question(index, Cond.stack([rows.pick(places) for rows, places in asked]), sides, scale, push)

    def joined(self, x: Tensor, t: Tensor, cond: Guidance, question: Question, answer: Tensor | Estimate) -> Tensor | Estimate:
        """Join the answers of all sides into one estimate a image."""
        x0, variance, _ = answer if isinstance(answer, Estimate) else Estimate(answer)
        positive, negative, weak = _split(x0, question.sides)
        guided = self._join(x, t, positive, negative, question.scale, cond)
        if bool(question.push.any()):
            push = moved(question.push, x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
            guided = torch.where(push != 0, guided + push * (positive - weak), guided)
        if variance is None:
            return guided
        alone = moved(question.scale == 0, x.device).view(-1, *[1] * (x.ndim - 1))
        of_positive, of_negative, _ = _split(variance, question.sides)
        return Estimate(guided, torch.where(alone, of_negative, of_positive))

    def _scale_at(self, t: Tensor, cond: Guidance) -> Tensor:
        """The scale that holds at these times; outside the interval 1, but 0, which ignores the prompt, ignores it everywhere."""
        share = torch.sigmoid(-self.schedule.logsnr(t) / 2).to(cond.low.device)
        inside = (share >= cond.low) & (share <= cond.high)
        return torch.where(inside | (cond.scale == 0), cond.scale, 1.0)

    def _join(self, x: Tensor, t: Tensor, positive: Tensor, negative: Tensor, scale: Tensor, cond: Guidance) -> Tensor:
        """Rows guided, rows of the condition alone (scale 1) and unconditional rows (scale 0), each exactly."""
        per_row = (-1, *[1] * (x.ndim - 1))
        s = moved(scale, x.device, x.dtype).view(per_row)
        guided = torch.where(s == 1, positive, torch.where(s == 0, negative, negative + s * (positive - negative)))
        if self.channels is not None:
            guided = torch.cat([guided[:, : self.channels], torch.where(s == 0, negative, positive)[:, self.channels :]], dim=1)
        if bool((cond.rescale > 0).any()):
            active = (cond.rescale > 0) & (scale != 0) & (scale != 1)
            guided = torch.where(moved(active, x.device).view(per_row), self._rescale(x, t, positive, guided, cond.rescale), guided)
        return guided

    def _rescale(self, x: Tensor, t: Tensor, positive: Tensor, guided: Tensor, amount: Tensor) -> Tensor:
        """Bring the output's standard deviation over an image towards the conditional one's (Lin et al. 2023, eq. 15-16)."""
        per_row = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (moved(value, x.device, x.dtype).view(per_row) for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        outputs = [self.prediction.output(x0, x, alpha, sigma) for x0 in (positive, guided)]
        axes = tuple(range(1, x.ndim))
        ratio = outputs[0].std(axes, keepdim=True) / outputs[1].std(axes, keepdim=True)
        share = moved(amount, x.device, x.dtype).view(per_row)
        factor = share * ratio + (1 - share)
        return self.prediction.x0(factor * outputs[1], x, alpha, sigma)


def _split(rows: Tensor, sides: Sequence[Tensor]) -> list[Tensor]:
    """Return the rows that were asked for by each side in turn, back at their images' places; zeros elsewhere."""
    outs = []
    for mask, part in zip(sides, rows.split([int(mask.sum()) for mask in sides]), strict=True):
        whole = len(part) == len(mask)
        out = part if whole else part.new_zeros(len(mask), *part.shape[1:])
        outs.append(out if whole else out.index_copy(0, moved(mask.nonzero()[:, 0], part.device), part))
    return outs
