"""Exact log-likelihood of data under a diffusion model, by the probability-flow ODE (Song et al. 2021b, section 4.3 and appendix D.2).

The ODE carries data to noise and back without loss, so the change of variables holds along it: a density falls at the rate at which the
flow spreads. The paper integrates x and the divergence in t (eq. 39-40); here both are integrated in coordinates whose slopes stay
bounded from clean data to pure noise on every schedule, those of rectified flow:

    y = x / c,  u = sigma / c,  c = alpha + sigma        so that y = (1 - u) x_0 + u eps
    dy/du = eps - x_0 = (y - x_0(c y)) / u
    d log p(y)/du = -div_y (dy/du)                        along a path

With log p_x(x) = log p_y(x / c) - d log c at both ends of the path, the clean one (0) and the noisy one (T):

    log p(x) = log N(x_T; 0, sigma_T² I) + integral of div (dy/du) du + d log(c_T / c_0)

x counts as a draw from the process at the cleanest trained time, `schedule.first`, as in the paper. The prior is the noise alone: what is
left of the data at the noisy end, alpha_T x_0, is the model's error, not the measure's. (The paper's VP prior is N(0, I), where sigma_T² is
1 - alpha_T²: no difference that shows, 1e-5 bits per dimension for Stable Diffusion's table.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unnoise.diffusion.dormand_prince import Path, integrate, root_mean_squares, wide
from unnoise.diffusion.noise import MAX_SEED, Noise, Streams
from unnoise.diffusion.sampling import Denoiser, Estimate, Rows
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError, NonFiniteError, UnknownName

TRACES = ("hutchinson", "exact")


@dataclass(frozen=True)
class Likelihood:
    """What the ODE says of each image."""

    log_density: Tensor  # (b,) float64 on the CPU: nats for the whole image
    latents: Tensor  # (b, ...) where the image lies at the noisy end; of the prior's spread if the model is right
    evaluations: int  # of the denoiser

    def bits_per_dim(self, spacing: float = 2 / 256) -> Tensor:
        """(b,) float64: bits to store one number of an image whose values lie `spacing` apart.

        A value stands for an interval, whose probability is density times spacing. 8-bit pixels in [-1, 1] lie 2/256 apart, which adds 7
        bits; in [0, 1] it is 1/256. It bounds the code length if values were spread over their intervals: x = (k + uniform) / 128 - 1.
        """
        if not spacing > 0:
            raise ArgumentError(f"got spacing {spacing}: expected the distance between neighbouring values of the data, above 0")
        return -self.log_density / (self.latents[0].numel() * math.log(2)) - math.log2(spacing)


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    schedule: Schedule,
    trace: Literal["hutchinson", "exact"] = "hutchinson",
    seed: int | Noise = 0,
    tolerance: float = 1e-5,
    steps: int | None = None,
    cond: Rows | None = None,
) -> Likelihood:
    """The log density of each image of x (b, ...), float32 or float64, in the data's own units.

    denoiser: (x, t) -> x_0, with cond as a third argument where one is given; it must let gradients through.
    trace: of the Jacobian. "hutchinson" multiplies it by one vector of random signs an image: unbiased, and one gradient an evaluation.
    "exact" takes one gradient for each number of an image.
    seed: image i draws its signs from seed + i; or a Noise of your own, whose first draw's signs are used.
    tolerance: of a step's error, in units of the data (root mean square) and in nats per dimension, absolute and relative as the paper's
    rtol = atol = 1e-5. Each image has its own steps.
    steps: so many equal steps in u instead, six evaluations each; the tolerance is not looked at.

    Raises ArgumentError for an x, tolerance, steps or answer that cannot be used, UnknownName for a trace, NonFiniteError.
    """
    _check(x, tolerance, steps)
    x, flow = x.detach(), _Flow(denoiser, schedule, _probes(x, trace, seed), cond)
    (c, low), (c_end, high) = (_position(schedule, t) for t in (schedule.first, schedule.start))
    state = torch.cat([(x / c).flatten(1), x.new_zeros(len(x), 1)], 1)
    state = _answered(integrate(state, (low, high), None if steps else _Error(tolerance), steps or 1), flow)
    latents = c_end * state[:, :-1].reshape(x.shape)
    sigma, d = high * c_end, x[0].numel()
    prior = -(latents.cpu().double() / sigma).square().flatten(1).sum(1) / 2 - d * math.log(sigma * math.sqrt(2 * math.pi))
    return Likelihood(prior + d * (state[:, -1].cpu().double() + math.log(c_end / c)), latents, flow.evaluations)


def _check(x: Tensor, tolerance: float, steps: int | None) -> None:
    if x.ndim < 2 or x.numel() == 0 or x.dtype not in (torch.float32, torch.float64):
        got = f"x of shape {tuple(x.shape)} and {x.dtype}"
        raise ArgumentError(f"got {got}: expected images of shape (b, ...) in float32 or float64, at least one")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ArgumentError(f"got {steps!r} steps: expected a whole number of at least 1, or None to choose them by the tolerance")
    finest = torch.finfo(x.dtype).eps
    if not finest <= tolerance < 1:
        raise ArgumentError(f"got tolerance {tolerance}: expected from {finest:.1e}, the precision of {x.dtype}, to below 1")


def _probes(x: Tensor, trace: str, seed: int | Noise) -> Tensor:
    """(k, b, ...): vectors e whose e·Je add up to the trace of J, in the mean or exactly."""
    if trace not in TRACES:
        raise UnknownName("trace", trace, TRACES)
    if trace == "exact":
        d = x[0].numel()
        return torch.eye(d, dtype=x.dtype, device=x.device).view(d, 1, *x.shape[1:]).expand(d, *x.shape)
    if isinstance(seed, int):
        Streams(range(seed, seed + len(x)))  # refuses what is no seed
        # from the far end: an image made from seed s must not be measured along the very noise that it was made of
        seed = Streams([MAX_SEED - seed - i for i in range(len(x))])
    return torch.where(seed.draw(x) < 0, -1.0, 1.0).to(x)[None]


def _position(schedule: Schedule, t: float) -> tuple[float, float]:
    """(c, u) at t."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return alpha + sigma, sigma / (alpha + sigma)


@dataclass(frozen=True)
class _Error:
    """Of a step, over the tolerance: relative to 1 + |state|, y's root mean square or the divergence's, whichever is larger."""

    tolerance: float

    def __call__(self, error: Tensor, before: Tensor, after: Tensor) -> list[float]:
        scaled = error / (self.tolerance * (1 + after.abs()))
        return [max(pair) for pair in zip(root_mean_squares(scaled[:, :-1]), root_mean_squares(scaled[:, -1:]), strict=True)]


def _answered(path: Path, flow: _Flow) -> Tensor:
    try:
        asked = next(path)
        while True:
            asked = path.send(flow(*asked))
    except StopIteration as stop:
        return stop.value


@dataclass
class _Flow:
    """The slope of the state, whose rows are an image's y, flat, and the integral of its divergence so far, in nats per dimension."""

    denoiser: Denoiser
    schedule: Schedule
    probes: Tensor  # (k, b, ...)
    cond: Rows | None
    evaluations: int = 0

    def __call__(self, state: Tensor, u: list[float]) -> Tensor:
        """state (b, d + 1), one u a row -> (b, d + 1)"""
        self.evaluations += 1
        at = {share: self._time(share) for share in set(u)}
        scale = {share: _position(self.schedule, time)[0] for share, time in at.items()}
        t = torch.tensor(
            [at[share] for share in u], dtype=torch.float64, device="cpu" if state.device.type == "mps" else state.device
        )  # no float64 there
        with torch.enable_grad():
            y = state[:, :-1].reshape(self.probes.shape[1:]).requires_grad_()
            slope = (y - self._x0(wide([scale[share] for share in u], y) * y, t)) / wide(u, y)
            spread = [(e * torch.autograd.grad(slope, y, e, retain_graph=True)[0]).flatten(1).sum(1) for e in self.probes]
        out = torch.cat([slope.detach().flatten(1), sum(spread)[:, None] / y[0].numel()], 1)  # type: ignore[index]
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteError(f"denoiser: its answer or its gradient is not finite at t from {float(t.min()):g} to {float(t.max()):g}")
        return out

    def _time(self, u: float) -> float:
        if u == 1:
            return self.schedule.start
        t = float(self.schedule.time(2 * math.log((1 - u) / u)))
        return min(max(t, self.schedule.first), self.schedule.start)  # rounding

    def _x0(self, x: Tensor, t: Tensor) -> Tensor:
        answer = self.denoiser(x, t) if self.cond is None else self.denoiser(x, t, self.cond)
        x0 = answer.x0 if isinstance(answer, Estimate) else answer
        if x0.shape != x.shape:
            raise ArgumentError(f"the denoiser answered with shape {tuple(x0.shape)}: expected that of x, {tuple(x.shape)}")
        if not x0.requires_grad:
            raise ArgumentError("the denoiser's answer has no gradient: take torch.no_grad, inference_mode or detach out of it")
        return x0
