"""diffusers' schedulers and our solvers on one mixture, whose exact denoiser both of them ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, Mixture, NoNoise
from unnoise.diffusion import schedules
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.predictions import prediction
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import Schedule

TABLES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
SD = schedules.vp("scaled_linear")
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}  # ours: theirs


def start() -> Tensor:
    return torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def states(
    schedule: Schedule, sampler: str, x: Tensor, times: Tensor, noises: Sequence[Tensor] = (), mixture: Mixture = EASY, **options: Any
) -> list[Tensor]:
    """Ours, after every step."""
    run = Run(x, plan(schedule, sampler, times=times, **options), Recorded(noises) if noises else NoNoise())
    return [state.x for state in stream(run, mixture.denoiser(schedule))]


def said(name: str, schedule: Schedule, x: Tensor, t: float, mixture: Mixture = EASY) -> Tensor:
    """What a network of this prediction says when it knows the mixture exactly."""
    alpha, sigma = (value.expand_as(x) for value in (schedule.alpha(t), schedule.sigma(t)))
    return prediction(name).output(mixture.denoise(x, alpha, sigma), x, alpha, sigma)


def walk_peer(
    peer: Any, schedule: Schedule, name: str, x: Tensor, times: Tensor | None = None, mixture: Mixture = EASY, **arguments: Any
) -> list[Tensor]:
    """Theirs, after every call of step; `times`: where the network is asked, if that is not at all of their timesteps."""
    found = []
    asked = peer.timesteps if times is None else times
    for t, at in zip(peer.timesteps, asked.tolist(), strict=False):
        if hasattr(peer, "is_scale_input_called"):
            peer.is_scale_input_called = True  # an exact denoiser takes x as it is
        x = peer.step(said(name, schedule, x, at, mixture), t, x, **arguments).prev_sample.double()
        found.append(x)
    return found


def feed(peer: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The noises that this scheduler will draw."""
    noises = list(torch.randn(count, *start().shape, dtype=torch.float64))
    given = iter(noises)
    monkeypatch.setattr(f"{type(peer).__module__}.randn_tensor", lambda *_, **__: next(given))
    return noises


def assert_same(mine: list[Tensor], peer: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(mine) == len(peer)
    for step, (a, b) in enumerate(zip(mine, peer, strict=True)):
        atol = tolerance * max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b.double(), rtol=0, atol=atol, msg=lambda m, s=step: f"step {s}: {m}")


def vp_times(sigmas: Tensor, schedule: Schedule = SD) -> Tensor:
    """The times of their sigmas, which are sigma / alpha. Their rounded timesteps are only told to the network."""
    return schedule.time(-2 * sigmas.double().log())


def flow_times(sigmas: Tensor, schedule: Schedule) -> Tensor:
    times = schedule.time(-2 * torch.logit(sigmas.double()))
    return torch.where(sigmas == 0, schedule.end, torch.where(sigmas == 1, schedule.start, times))
