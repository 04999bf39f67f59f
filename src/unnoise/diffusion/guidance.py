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
from unnoise.diffusion.sampling import Estimate
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Guidance:
    """What b images are guided by; each number field is (b,) float64."""

    positive: Cond
    negative: Cond
    scale: Tensor
    rescale: Tensor
    low: Tensor  # guidance acts where low <= sigma / (alpha + sigma) <= high (Kynkäänniemi et al. 2024); else the scale is 1, but 0 stays
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
    if len(negative) != rows:
        raise ArgumentError(f"got {rows} conditions and {len(negative)} negative ones: expected as many")
    for name, value in (("guidance_scale", scale), ("guidance_rescale", rescale)):
        if isinstance(value, Tensor) and value.shape not in ((), (1,), (rows,)):
            raise ArgumentError(f"got {name} of shape {tuple(value.shape)}: expected one number, or one for each of {rows} images")
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
    """A denoiser that takes a Guidance as its condition. `denoiser` is (x, t, Cond) -> x_0, or an Estimate with a learned variance.

    The variance is not guided: it is the condition's own, or the unconditional one where that alone was asked (as in DiT's code).
    """

    denoiser: Callable[[Tensor, Tensor, Cond], Tensor | Estimate]
    schedule: Schedule
    prediction: Prediction  # `rescale` compares standard deviations of this output
    channels: int | None = None  # guidance acts on so many, from the first; the rest are the condition's own, as in DiT's code (3 of 4)

    def __call__(self, x: Tensor, t: Tensor, cond: Guidance) -> Tensor | Estimate:
        scale = self._scale_at(t, cond)
        ask_positive, ask_negative = scale != 0, scale != 1
        parts = [(cond.positive, ask_positive), (cond.negative, ask_negative)]
        asked = [(rows, mask.nonzero()[:, 0]) for rows, mask in parts if bool(mask.any())]
        index = torch.cat([places for _, places in asked])
        answer = self.denoiser(x[index], t[index], Cond.stack([rows.pick(places) for rows, places in asked]))
        x0, variance, _ = answer if isinstance(answer, Estimate) else Estimate(answer)
        positive, negative = _split(x0, ask_positive, ask_negative)
        guided = self._join(x, t, positive, negative, scale, cond)
        if variance is None:
            return guided
        alone = (scale == 0).to(x.device).view(-1, *[1] * (x.ndim - 1))
        return Estimate(guided, torch.where(alone, *reversed(_split(variance, ask_positive, ask_negative))))

    def _scale_at(self, t: Tensor, cond: Guidance) -> Tensor:
        """The scale that holds at these times; outside the interval 1, but 0, which ignores the prompt, ignores it everywhere."""
        share = torch.sigmoid(-self.schedule.logsnr(t) / 2).to(cond.low.device)
        inside = (share >= cond.low) & (share <= cond.high)
        return torch.where(inside | (cond.scale == 0), cond.scale, 1.0)

    def _join(self, x: Tensor, t: Tensor, positive: Tensor, negative: Tensor, scale: Tensor, cond: Guidance) -> Tensor:
        """Rows guided, rows of the condition alone (scale 1) and unconditional rows (scale 0), each exactly."""
        per_row = (-1, *[1] * (x.ndim - 1))
        s = scale.to(x).view(per_row)
        guided = torch.where(s == 1, positive, torch.where(s == 0, negative, negative + s * (positive - negative)))
        if self.channels is not None:
            guided = torch.cat([guided[:, : self.channels], torch.where(s == 0, negative, positive)[:, self.channels :]], dim=1)
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


def _split(rows: Tensor, *masks: Tensor) -> list[Tensor]:
    """Rows that were asked for by each mask in turn, back to the places where it is true; zeros elsewhere."""
    outs = []
    for mask, part in zip(masks, rows.split([int(mask.sum()) for mask in masks]), strict=True):
        out = torch.zeros(len(mask), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        out[mask.to(rows.device)] = part
        outs.append(out)
    return outs
