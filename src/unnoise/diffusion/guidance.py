"""Guidance: one question becomes one or two evaluations of the network, and their answers are joined.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) in the scale s = w + 1 that everyone types:

    x_0 = uncond + s (cond - uncond)          s = 1: the condition alone, one evaluation; s = 0: unconditional, one evaluation

Every prediction is affine in x_0 with the same coefficients for both answers, so guiding x_0, eps, v or flow is the same thing. For s > 1
it is an extrapolation, not an average. Everything is per row: rows that need one evaluation cost one, and unlike requests share the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unnoise.conditioning import Cond
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Guidance:
    """What b images are guided by; each number field is (b,) float64."""

    positive: Cond
    negative: Cond
    scale: Tensor
    rescale: Tensor
    low: Tensor  # guidance acts where low <= sigma / (alpha + sigma) <= high (Kynkäänniemi et al. 2024); elsewhere the scale is 1
    high: Tensor

    @staticmethod
    def stack(others: Sequence[Guidance]) -> Guidance:
        """Rows of several requests, one after another."""
        numbers = (torch.cat([getattr(other, name) for other in others]) for name in ("scale", "rescale", "low", "high"))
        return Guidance(Cond.stack([o.positive for o in others]), Cond.stack([o.negative for o in others]), *numbers)


def guidance(
    positive: Cond,
    negative: Cond,
    scale: float | Tensor = 1.0,
    *,
    rescale: float | Tensor = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Guidance:
    """Guidance of len(positive) images; a number holds for all of them, a tensor (b,) gives each its own. Raises ArgumentError."""
    rows = len(positive)
    low, high = interval
    values = [torch.as_tensor(value, dtype=torch.float64).expand(rows) for value in (scale, rescale, low, high)]
    if not bool(torch.isfinite(values[0]).all()):
        raise ArgumentError(f"got guidance_scale {scale}: expected a finite number")
    if not bool(((values[1] >= 0) & (values[1] <= 1)).all()):
        raise ArgumentError(f"got guidance_rescale {rescale}: expected a number from 0 to 1")
    if not 0 <= low < high <= 1:
        raise ArgumentError(f"got guidance_interval {interval}: expected two shares of noise sigma/(alpha+sigma), 0 <= low < high <= 1")
    return Guidance(positive, negative, *values)


@dataclass(frozen=True)
class Guided:
    """A denoiser that takes a Guidance as its condition. `denoiser` is (x, t, Cond) -> x_0."""

    denoiser: Callable[[Tensor, Tensor, Cond], Tensor]
    schedule: Schedule
    prediction: Prediction  # `rescale` compares standard deviations of this output

    def __call__(self, x: Tensor, t: Tensor, cond: Guidance) -> Tensor:
        scale = self._scale_at(t, cond)
        ask_positive, ask_negative = scale != 0, scale != 1
        parts = [(cond.positive, ask_positive), (cond.negative, ask_negative)]
        asked = [(rows, mask.nonzero()[:, 0]) for rows, mask in parts if bool(mask.any())]
        index = torch.cat([places for _, places in asked])
        answer = self.denoiser(x[index], t[index], Cond.stack([rows.pick(places) for rows, places in asked]))
        count = int(ask_positive.sum())
        positive = _scatter(answer[:count], ask_positive, x)
        negative = _scatter(answer[count:], ask_negative, x)
        return self._join(x, t, positive, negative, scale, cond)

    def _scale_at(self, t: Tensor, cond: Guidance) -> Tensor:
        """The scale that holds at these times; outside the interval 1."""
        share = torch.sigmoid(-self.schedule.logsnr(t) / 2).to(cond.low.device)
        return torch.where((share >= cond.low) & (share <= cond.high), cond.scale, 1.0)

    def _join(self, x: Tensor, t: Tensor, positive: Tensor, negative: Tensor, scale: Tensor, cond: Guidance) -> Tensor:
        """Rows guided, rows of the condition alone (scale 1) and unconditional rows (scale 0), each exactly."""
        per_row = (-1, *[1] * (x.ndim - 1))
        s = scale.to(x).view(per_row)
        guided = torch.where(s == 1, positive, torch.where(s == 0, negative, negative + s * (positive - negative)))
        if bool((cond.rescale > 0).any()):
            active = (cond.rescale > 0) & (scale != 0) & (scale != 1)
            guided = torch.where(active.to(x.device).view(per_row), self._rescale(x, t, positive, guided, cond.rescale), guided)
        return guided

    def _rescale(self, x: Tensor, t: Tensor, positive: Tensor, guided: Tensor, amount: Tensor) -> Tensor:
        """Bring the output's standard deviation over an image towards the conditional one's (Lin et al. 2023, eq. 15-16)."""
        per_row = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (value.to(x).view(per_row) for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        outputs = [self.prediction.output(x0, x, alpha, sigma) for x0 in (positive, guided)]
        axes = tuple(range(1, x.ndim))
        ratio = outputs[0].std(axes, keepdim=True) / outputs[1].std(axes, keepdim=True)
        factor = amount.to(x).view(per_row) * ratio + (1 - amount.to(x).view(per_row))
        return self.prediction.x0(factor * outputs[1], x, alpha, sigma)


def _scatter(rows: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """Rows to the places where the mask is true, zeros elsewhere."""
    out = torch.zeros_like(like, dtype=rows.dtype)
    out[mask.to(like.device)] = rows
    return out
