"""Our solvers step by step against diffusers and k-diffusion, at the same times and with the same noise.

Peers run in float32 where they insist (1e-5 of the largest state); k-diffusion's recorded trajectories are float64.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion.oracle import EASY, NoNoise
from unnoise.diffusion import schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.predictions import prediction
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import Discrete, Schedule

# numpy 2 inside diffusers, on every conversion of a tensor; nothing of ours
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 12
TABLES = {"linear": {"beta_start": 1e-4, "beta_end": 0.02}, "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


def start() -> Tensor:
    return torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def states(
    schedule: Schedule, sampler: str, x: Tensor, times: Tensor, noises: list[Tensor] | None = None, **options: object
) -> list[Tensor]:
    run = Run(x, plan(schedule, sampler, times=times, **options), Recorded(noises) if noises else NoNoise())
    return [state.x for state in stream(run, EASY.denoiser(schedule))]


def assert_same(mine: list[Tensor], peer: list[Tensor]) -> None:
    assert len(mine) == len(peer)
    for step, (a, b) in enumerate(zip(mine, peer, strict=True)):
        torch.testing.assert_close(
            a, b.double(), rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())), msg=lambda m, s=step: f"step {s}: {m}"
        )


def said(name: str, schedule: Schedule, x: Tensor, t: float) -> Tensor:
    """What a network of this prediction says when it knows the mixture exactly."""
    alpha, sigma = (value.expand_as(x) for value in (schedule.alpha(t), schedule.sigma(t)))
    return prediction(name).output(EASY.denoise(x, alpha, sigma), x, alpha, sigma)


def walk_peer(scheduler, schedule: Discrete, name: str, x: Tensor) -> list[Tensor]:
    """The peer's own loop, with the same exact network; x is variance-preserving throughout."""
    found = []
    for t in scheduler.timesteps:
        x = scheduler.step(said(name, schedule, x, float(t)), t, x).prev_sample.double()
        found.append(x)
    return found


DIFFUSERS_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", DIFFUSERS_PREDICTIONS)
@pytest.mark.parametrize("betas", TABLES)
def test_ddim(betas: str, name: str, spacing: str, diffusers: ModuleType):
    """10 steps, which divide 1000: their next time is t - 1000//N, and only then the next of the list. (Never with linspace.)"""
    schedule = schedules.vp(betas)  # type: ignore[arg-type]
    peer = diffusers.DDIMScheduler(
        beta_schedule=betas,
        timestep_spacing=spacing,
        prediction_type=DIFFUSERS_PREDICTIONS[name],
        clip_sample=False,
        set_alpha_to_one=True,
        **TABLES[betas],
    )
    peer.set_timesteps(10)
    times = grid(schedule, spacing, 10)
    assert times[:-1].tolist() == peer.timesteps.tolist()
    assert_same(states(schedule, "ddim", start(), times), walk_peer(peer, schedule, name, start()))


@pytest.mark.parametrize("offset, ending", [(0, "clean"), (1, "first")])
def test_ddim_with_noise_and_stable_diffusions_offset(offset: int, ending: str, diffusers: ModuleType):
    """steps_offset 1 and set_alpha_to_one False: the Stable Diffusion configuration ends on the table's first entry."""
    schedule = schedules.vp("scaled_linear")
    config = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "clip_sample": False, **TABLES["scaled_linear"]}
    peer = diffusers.DDIMScheduler(steps_offset=offset, set_alpha_to_one=ending == "clean", **config)
    peer.set_timesteps(10)
    times = grid(schedule, "leading", 10, offset=offset, ending=ending)  # type: ignore[arg-type]
    assert times[:-1].tolist() == peer.timesteps.tolist()
    noises = list(torch.randn(10, *start().shape, dtype=torch.float64))
    x, theirs = start(), []
    for t, noise in zip(peer.timesteps, noises, strict=True):
        x = peer.step(said("eps", schedule, x, float(t)), t, x, eta=0.7, variance_noise=noise).prev_sample.double()
        theirs.append(x)
    assert_same(states(schedule, "ddim", start(), times, noises, eta=0.7), theirs)


@pytest.mark.parametrize("variance, theirs", [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm(variance: str, theirs: str, steps: int, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    schedule = schedules.vp("linear")
    peer = diffusers.DDPMScheduler(beta_schedule="linear", variance_type=theirs, clip_sample=False, **TABLES["linear"])
    peer.set_timesteps(steps)
    times = grid(schedule, "leading", steps)
    assert times[:-1].tolist() == peer.timesteps.tolist()
    times = times[:21] if steps == 1000 else times  # its first twenty of a thousand
    noises = list(torch.randn(len(times), *start().shape, dtype=torch.float64))
    given = iter(noises)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(given))
    x, found = start(), []
    for t in peer.timesteps[: len(times) - 1]:
        x = peer.step(said("eps", schedule, x, float(t)), t, x).prev_sample.double()
        found.append(x)
    assert_same(states(schedule, "ddpm", start(), times, noises, variance=variance), found)


def walk_sigmas(scheduler, x: Tensor) -> list[Tensor]:
    """Of peers that walk x/alpha over sigma/alpha: the mixture seen from there, one evaluation a call of step."""
    found = []
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)  # it wants to be asked; an exact denoiser takes x as it is
        sigma = scheduler.sigmas[scheduler.step_index].double()
        x0 = EASY.denoise(x, torch.ones_like(x), sigma.expand_as(x))
        x = scheduler.step((x - x0) / sigma, t, x).prev_sample.double()
        found.append(x)
    return found


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("sampler, evaluations", [("euler", 1), ("heun", 2)])
def test_euler_and_heun(sampler: str, evaluations: int, karras: bool, diffusers: ModuleType):
    """At their sigmas, on the VE form of Stable Diffusion's process."""
    kind = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}[sampler]
    peer = kind(beta_schedule="scaled_linear", use_karras_sigmas=karras, **TABLES["scaled_linear"])
    peer.set_timesteps(STEPS)
    sigmas = peer.sigmas.double()
    sigmas = torch.cat([sigmas[:1], sigmas[1:-1:evaluations], sigmas[-1:]]) if evaluations == 2 else sigmas
    assert len(sigmas) == STEPS + 1
    x = start() * sigmas[0]
    theirs = walk_sigmas(peer, x)
    if evaluations == 2:  # every second call completes a step; the last step has one
        theirs = [*theirs[1:-1:2], theirs[-1]]
    assert_same(states(schedules.edm(0.02, 15), sampler, x, sigmas), theirs)


@pytest.mark.parametrize("name", ["eps", "v"])
@pytest.mark.parametrize("settings", [{"use_karras_sigmas": True}, {"use_lu_lambdas": True}, {}], ids=["karras", "lu", "linspace"])
def test_dpmpp_2m(settings: dict, name: str, diffusers: ModuleType):
    """Their lower order on the last step is ours: the step onto sigma 0 returns the estimate."""
    peer = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", prediction_type=DIFFUSERS_PREDICTIONS[name], **TABLES["scaled_linear"], **settings
    )
    peer.set_timesteps(STEPS)
    schedule = schedules.vp("scaled_linear")
    sigmas = peer.sigmas.double()
    times = schedule.time(-2 * sigmas.log())  # their rounded timesteps are only told to the network; their sigmas are exact
    x, theirs = start(), []
    for i, t in enumerate(peer.timesteps):
        x = peer.step(said(name, schedule, x, float(times[i])), t, x).prev_sample.double()
        theirs.append(x)
    assert_same(states(schedule, "dpmpp_2m", start(), times), theirs)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float, diffusers: ModuleType):
    """At their sigmas; theirs are shifted twice at the low end, so the times are taken from them."""
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    peer.set_timesteps(STEPS)
    schedule = schedules.flow(shift)
    sigmas = peer.sigmas.double()
    times = schedule.time(-2 * torch.logit(sigmas))
    times[0], times[-1] = 1, 0
    x, theirs = start(), []
    for i, t in enumerate(peer.timesteps):
        x = peer.step(said("flow", schedule, x, float(times[i])), t, x).prev_sample.double()
        theirs.append(x)
    assert_same(states(schedule, "euler", start(), times), theirs)
