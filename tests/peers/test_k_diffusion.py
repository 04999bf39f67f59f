"""Our solvers against k-diffusion's, recorded in float64 on a mixture: every state to 1e-10 of the largest, and the number of evaluations.

k-diffusion also draws noise where it multiplies it by 0; what it is fed here are the draws that count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unnoise.diffusion import schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import VE, ContinuousVP

CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 8.0, "s_noise": 1.003}
PID = {"rtol": 0.02, "atol": 0.004, "h_init": 0.1, "pcoeff": 0.2, "icoeff": 0.6, "dcoeff": 0.1}
RELEASED = {"coefficients": "released"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {  # theirs: ours, with these options
    "euler": ("euler", {}),
    "euler_churn": ("euler", CHURN),
    "euler_ancestral": ("euler_ancestral", {}),
    "euler_ancestral_eta": ("euler_ancestral", {"eta": 0.6, "s_noise": 1.02}),
    "heun": ("heun", {}),
    "heun_churn": ("heun", CHURN),
    "dpm_2": ("dpm2", {}),
    "dpm_2_churn": ("dpm2", CHURN),
    "dpm_2_ancestral": ("dpm2_ancestral", {}),
    "dpm_2_ancestral_eta": ("dpm2_ancestral", {"eta": 0.5, "s_noise": 0.98}),
    "lms": ("lms", {}),
    "lms_order2": ("lms", {"order": 2}),
    "lms_order3": ("lms", {"order": 3}),
    "dpmpp_2s": ("dpmpp_2s", {}),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}),
    "dpmpp_2s_ancestral_eta": ("dpmpp_2s_ancestral", {"eta": 0.3, "s_noise": 1.01}),
    "dpmpp_sde": ("dpmpp_sde", {}),
    "dpmpp_sde_eta_r": ("dpmpp_sde", {"eta": 0.5, "s_noise": 1.02, "r": 1 / 3}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"correction": "heun"}),
    "dpmpp_2m_sde_eta0": ("dpmpp_2m_sde", {"eta": 0.0}),
    "dpmpp_2m_sde_eta": ("dpmpp_2m_sde", {"eta": 0.5, "s_noise": 1.01}),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", RELEASED),
    "dpmpp_3m_sde_eta0": ("dpmpp_3m_sde", {"eta": 0.0, **RELEASED}),
    "dpmpp_3m_sde_eta": ("dpmpp_3m_sde", {"eta": 0.7, "s_noise": 0.99, **RELEASED}),
    "dpm_fast": ("dpm_fast", {"rest": 1}),
    "dpm_fast_n11": ("dpm_fast", {"rest": 2}),
    "dpm_fast_n12": ("dpm_fast", {"rest": 0}),
    "dpm_fast_eta": ("dpm_fast", {"rest": 1, "eta": 0.7, "s_noise": 1.01}),
    "dpm_adaptive": ("dpm_adaptive", {"h_init": 0.05}),
    "dpm_adaptive_order2": ("dpm_adaptive", {"h_init": 0.05, "order": 2}),
    "dpm_adaptive_pid": ("dpm_adaptive", PID),
}
AGAIN = {"dpm_adaptive_eta": ("dpm_fast", {"rest": 3, "eta": 0.4})}  # its steps, not its choice of them
ADAPTIVE = [case for case in CASES if case.startswith("dpm_adaptive")]
FAST = [case for case in CASES if case.startswith("dpm_fast")]
FIXED = [case for case in CASES if case not in ADAPTIVE + FAST]
TIMES_ZERO = {"euler", "heun", "dpm_2", "dpmpp_2s", "dpm_fast", "dpm_fast_n11", "dpm_fast_n12"}  # they draw, and lose it


@dataclass(frozen=True)
class Golden:
    """The recorded tensors, their description, and the mixture's exact denoiser."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def schedule(self) -> VE:
        return schedules.edm(self.config["schedule"]["sigma_min"], self.config["schedule"]["sigma_max"])

    def states(self, case: str) -> Tensor:
        """What every step first looks at (after its churn), and the end."""
        return torch.cat([self.tensors[f"out.{case}.x_at_callback"], self.tensors[f"out.{case}.x_final"][None]])

    def noise(self, case: str) -> list[Tensor]:
        """What they drew, but for what they multiply by 0."""
        noise, (_, options) = self.tensors.get(f"in.{case}.noise"), CASES[case]
        if noise is None or case in TIMES_ZERO:
            return []
        if "s_churn" in options:
            sigmas = self.tensors["in.sigmas"].tolist()
            return [one for one, sigma in zip(noise, sigmas, strict=False) if options["s_tmin"] <= sigma <= options["s_tmax"]]
        return list(noise)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (b, ..., channel, height, width): each channel has three components, the same in every image."""
        mixture = self.config["mixture"]
        mean = torch.tensor(mixture["means_per_channel"], dtype=torch.float64).view(3, *[1] * (x.ndim - 3), 3, 1, 1)
        weight, sd = (torch.tensor(mixture[key], dtype=torch.float64).view(3, *[1] * x.ndim) for key in ("weights", "sds"))
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        variance = sd**2 + sigma**2
        likely = torch.softmax(weight.log() - variance.log() / 2 - (x - mean) ** 2 / (2 * variance), 0)
        return (likely * (sd**2 * x + sigma**2 * mean) / variance).sum(0)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    folder = shared / "golden" / "kdiff"
    if not folder.is_dir():
        pytest.skip("no golden tensors kdiff")
    return Golden(load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text()))


class Fed:
    """Noises in order; whoever draws more than there are fails."""

    def __init__(self, noises: list[Tensor]):
        self.left = list(noises)

    def draw(self, like: Tensor) -> Tensor:
        return self.left.pop(0)


def walk(golden: Golden, solver: tuple[str, dict[str, Any]], x: Tensor, times: Tensor, noises: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What every step first looks at, with the end; and every point that was denoised. All noises must be used."""
    asked = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        asked.append(x)
        return golden.denoise(x, t)

    (sampler, options), noise = solver, Fed(noises)
    run = Run(x, plan(golden.schedule, sampler, times=times, **options), noise)
    first, final = [0], x
    for state in stream(run, denoiser):
        first.append(len(asked))
        final = state.x
    assert not noise.left
    return torch.stack([*(asked[i] for i in first[:-1]), final]), asked


def assert_same(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10 * float(theirs.abs().max()))


def test_every_recorded_setting_is_here(golden: Golden):
    assert {*CASES, *AGAIN} == set(golden.config["samplers"])
    assert len(golden.config["samplers"]) == 34


def test_the_denoiser_is_theirs(golden: Golden):
    found = golden.denoise(golden.tensors["in.denoiser_check_x"], golden.tensors["in.denoiser_check_sigma"])
    torch.testing.assert_close(found, golden.tensors["out.denoiser_check"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", FIXED)
def test_their_sigmas(case: str, golden: Golden):
    noises = golden.noise(case)
    if case.startswith("dpmpp_sde"):
        noises = correlated(noises, golden.tensors["in.sigmas"][:-1], CASES[case][1].get("r", 1 / 2))
    mine, asked = walk(golden, CASES[case], golden.tensors["in.x_start"], golden.tensors["in.sigmas"], noises)
    assert_same(mine, golden.states(case))
    assert len(asked) == int(golden.tensors[f"out.{case}.model_calls"])


def correlated(noises: list[Tensor], sigmas: Tensor, r: float) -> list[Tensor]:
    """Their second noise of a step stands for the whole of it, ours for what its first part lacks: theirs = c first + sqrt(1 - c²) ours.

    c = exp(-(1 - r) h) sqrt((1 - exp(-2 r h)) / (1 - exp(-2 h))): the reverse SDE's, over the step h in log sigma. Theirs is drawn from a
    Brownian motion in sigma, of another correlation; the recorded ones are independent.
    """
    found = []
    for first, whole, h in zip(noises[::2], noises[1::2], -sigmas.log().diff(), strict=True):
        c = torch.exp(-(1 - r) * h) * (torch.expm1(-2 * r * h) / torch.expm1(-2 * h)).sqrt()
        found += [first, (whole - c * first) / (1 - c**2).sqrt()]
    return found


@pytest.mark.parametrize("case", FAST)
def test_dpm_fast(case: str, golden: Golden):
    """Even in log sigma and not to 0. Of the noise, the last is multiplied by 0."""
    steps = len(golden.states(case)) - 1
    times = grid(golden.schedule, "exponential", steps + 1, ending="first")
    mine, asked = walk(golden, CASES[case], golden.tensors["in.x_start"], times, golden.noise(case)[:-1])
    assert_same(mine, golden.states(case))
    assert len(asked) == int(golden.tensors[f"out.{case}.model_calls"])


@pytest.mark.parametrize("case", ADAPTIVE)
def test_dpm_adaptive(case: str, golden: Golden):
    """Their step is the whole batch's, ours an image's own: so their two images are given as one. Rejected steps are compared too.

    Their callback is called after a step, ours here before it.
    """
    times = golden.tensors["in.sigmas"][[0, -2]]
    ends, asked = walk(golden, CASES[case], golden.tensors["in.x_start"][None], times, [])
    order = CASES[case][1].get("order", 3)
    mine = torch.stack([*asked[order::order], ends[-1]])[:, 0]
    assert_same(mine, golden.states(case)[:-1])
    assert len(asked) == int(golden.tensors[f"out.{case}.model_calls"])


def test_the_steps_that_dpm_adaptive_took_with_noise(golden: Golden):
    """Ours has none: an image that takes a step while its neighbour does not would draw out of turn. Theirs again, without the choice."""
    taken = golden.tensors["out.dpm_adaptive_eta.noise_sigma_pairs"]
    times = torch.cat([taken[:1, 0], taken[:, 1]]).clamp(max=golden.schedule.start)
    noises = list(golden.tensors["in.dpm_adaptive_eta.noise"])[:-1]
    mine, _ = walk(golden, AGAIN["dpm_adaptive_eta"], golden.tensors["in.x_start"], times, noises)
    theirs = golden.states("dpm_adaptive_eta")[:-1]
    moved = torch.cat([theirs[:1] - mine[0], theirs.diff(dim=0)]).flatten(1).abs().amax(1) > 0  # not rejected
    assert_same(mine[1:], theirs[moved])


@pytest.mark.parametrize(
    "name, options, theirs",
    [
        ("karras", {}, "in.sigmas"),
        ("exponential", {}, "out.sigmas_exponential"),
        ("logsnr", {}, "out.sigmas_exponential"),
        ("exponential", {"rho": 1.5}, "out.sigmas_polyexponential_rho1.5"),
    ],
)
def test_sigma_schedules(name: str, options: dict[str, Any], theirs: str, golden: Golden):
    torch.testing.assert_close(grid(golden.schedule, name, 10, **options), golden.tensors[theirs], rtol=1e-12, atol=0)


def test_their_vp_sigmas(golden: Golden):
    """sigma / alpha of the continuous process at even times."""
    schedule = ContinuousVP()
    times = grid(schedule, "linspace", 10)
    torch.testing.assert_close(schedule.sigma(times) / schedule.alpha(times), golden.tensors["out.sigmas_vp"], rtol=1e-12, atol=0)
