"""Where we differ from diffusers on purpose: each test shows what its scheduler does and what ours does, on the same problem.

Errors are distances from the exact solution of the probability-flow ODE, which keeps quantiles.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, GAUSSIAN, SHARES, Mixture, even_times
from peers.schedulers import PREDICTIONS, SD, TABLES, start, states, vp_times, walk_peer
from unnoise.diffusion import schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.predictions import prediction
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import NonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCALED = TABLES["scaled_linear"]
COSINE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
FULL: dict[str, Any] = {"lower_order_final": False}
TO_FIRST: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
HARD = Mixture((0.4, 0.6), (-1.0, 1.0), (0.2, 0.2))


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


def exact(schedule: Schedule, t: float, mixture: Mixture = EASY) -> Tensor:
    """200 paths of the exact solution, each an image of one number."""
    return mixture.at(schedule, t, SHARES)[:, None]


def distance(found: Tensor, schedule: Schedule, t: float, mixture: Mixture = EASY) -> float:
    return (found - exact(schedule, t, mixture)).abs().max().item()


def ours(schedule: Schedule, sampler: str, times: Tensor, mixture: Mixture = EASY, **options: Any) -> float:
    """How far from the exact solution our solver ends on these times."""
    found = states(schedule, sampler, exact(schedule, float(times[0]), mixture), times, mixture=mixture, **options)
    return distance(found[-1], schedule, float(times[-1]), mixture)


def theirs(peer: Any, schedule: Schedule = SD, asked: Tensor | None = None) -> float:
    """The same for a scheduler that counts in sigmas, whose timesteps are set. asked: times that the network is told, for the true ones."""
    peer.set_begin_index(0)
    times = vp_times(peer.sigmas, schedule)
    found = walk_peer(peer, schedule, "eps", exact(schedule, float(times[0])), times[:-1] if asked is None else asked)
    return distance(found[-1], schedule, float(times[-1]))


def dpm(diffusers: ModuleType, steps: int, table: dict[str, Any] = SCALED, **config: Any) -> Any:
    peer = diffusers.DPMSolverMultistepScheduler(**table, **config)
    peer.set_timesteps(steps)
    return peer


def at_even_levels(peer: Any, steps: int) -> Tensor:
    """Give it levels that are even in logsnr, between the ends of its table; returns their times, through its float32."""
    times = even_times(SD, steps)
    peer.sigmas = (SD.sigma(times) / SD.alpha(times)).float()
    return vp_times(peer.sigmas)


# Formulas


def test_released_third_order_is_second(diffusers: ModuleType):
    """The square term of the authors' DPM-Solver++(3M), which diffusers has too, carries half the weight that the integral gives."""
    errors = []
    for steps in (80, 160):
        peer = dpm(diffusers, steps, solver_order=3, **FULL, **TO_FIRST)
        times = at_even_levels(peer, steps)
        errors.append((theirs(peer), ours(SD, "dpmpp_3m", times)))
    (coarse, coarse_ours), (fine, fine_ours) = errors
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.15)
    assert math.log2(coarse_ours / fine_ours) == pytest.approx(3, abs=0.15)
    assert fine > 9 * fine_ours


class Basis:
    """Noise as bookkeeping: draw k is the k-th unit vector, so that a linear run ends on its own coefficients, and their squares add up."""

    def __init__(self, size: int):
        self.rows = iter(torch.eye(size, dtype=torch.float64)[1:, None])

    def draw(self, like: Tensor | None = None) -> Tensor:
        return next(self.rows)


SDES: dict[str, tuple[str, dict[str, Any]]] = {
    "released": ("dpmpp_3m_sde", {"coefficients": "released"}),
    "exact": ("dpmpp_3m_sde", {}),
    "two": ("dpmpp_2m_sde", {}),
}


def test_third_order_sde_has_a_wrong_sign(diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """sde-dpmsolver++ of order 3 has -1/2 where k-diffusion has +1/2, so a difference that should vanish stays: its variance has order 1.

    Weak error: the variance that it makes of N(0, 1/4), to the exact one.
    """
    found: dict[str, list[float]] = {"theirs": [], "released": [], "exact": [], "two": []}
    for steps in (80, 160):
        peer = dpm(diffusers, steps, algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun", **FULL, **TO_FIRST)
        peer.set_begin_index(0)
        times = at_even_levels(peer, steps)
        first, last = (variance(GAUSSIAN, float(times[i])) for i in (0, -1))
        x = math.sqrt(first) * torch.eye(steps + 1, dtype=torch.float64)[:1]
        noise = Basis(steps + 1)
        monkeypatch.setattr(f"{type(peer).__module__}.randn_tensor", lambda *_, noise=noise, **__: noise.draw())
        end = walk_peer(peer, SD, "eps", x, times[:-1], GAUSSIAN)[-1]
        found["theirs"].append(end.square().sum().item() / last - 1)
        for name, (sampler, options) in SDES.items():
            run = Run(x, plan(SD, sampler, times=times, **options), Basis(steps + 1))
            *_, state = stream(run, GAUSSIAN.denoiser(SD))
            found[name].append(state.x.square().sum().item() / last - 1)
    order = {name: math.log2(coarse / fine) for name, (coarse, fine) in found.items()}
    assert order["theirs"] == pytest.approx(1, abs=0.15)
    assert order["released"] == pytest.approx(2, abs=0.15)
    assert order["exact"] == pytest.approx(2, abs=0.15)
    assert found["exact"][1] < found["released"][1] < found["two"][1] < found["theirs"][1] / 25


def variance(mixture: Mixture, t: float) -> float:
    """Of the marginal of a centred Gaussian."""
    return (SD.alpha(t) ** 2 * mixture.sds[0] ** 2 + SD.sigma(t) ** 2).item()


# Grids


def test_a_level_that_stands_twice(diffusers: ModuleType):
    """karras with final_sigmas_type sigma_min ends on that level twice: a step of no length, 0/0 at order 3. Ours is left out."""
    peer = dpm(diffusers, 20, solver_order=3, use_karras_sigmas=True, **TO_FIRST)
    assert peer.sigmas[-1] == peer.sigmas[-2]
    assert math.isnan(theirs(peer))
    times = grid(SD, "karras", 20, ending="first")
    assert len(times) == 20 and bool((times.diff() < 0).all())
    assert ours(SD, "dpmpp_3m", times) < 0.01


def test_lower_order_at_the_end_only_below_fifteen_steps(diffusers: ModuleType):
    """One step more, and the error nearly doubles. Ours has one rule for all numbers of steps: at 14 it is worse than theirs, and falls."""
    errors = {}
    for steps in (10, 14, 15, 20):
        peer = dpm(diffusers, steps, **TO_FIRST)
        errors[steps] = theirs(peer), ours(SD, "dpmpp_2m", vp_times(peer.sigmas).clamp(min=SD.first))
    assert errors[15][0] > 1.6 * errors[14][0]
    assert errors[10][1] > errors[14][1] > errors[15][1] > errors[20][1]
    assert errors[15][0] == pytest.approx(errors[15][1], abs=1e-4)


@pytest.mark.parametrize("sampler, mixture, wrong, right", [("ddim", HARD, 0.5, 0.05), ("pndm", EASY, 0.02, 0.008)])
def test_the_next_time_is_the_next_of_the_list(sampler: str, mixture: Mixture, wrong: float, right: float, diffusers: ModuleType):
    """160 trailing steps are 6.25 apart; theirs go to t - 1000//160 and ask the network for the next of the list."""
    ddim = {"clip_sample": False, "set_alpha_to_one": True}
    kind, config = {"ddim": ("DDIMScheduler", ddim), "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True})}[sampler]
    peer = getattr(diffusers, kind)(timestep_spacing="trailing", **config, **SCALED)
    peer.set_timesteps(160)
    found = walk_peer(peer, SD, "eps", exact(SD, float(peer.timesteps[0]), mixture), mixture=mixture)[-1]
    times = torch.cat([peer.timesteps.unique().flip(0).double(), torch.tensor([SD.end])])  # PNDM asks twice at one
    assert len(times) == 161
    assert distance(found, SD, SD.end, mixture) > wrong
    assert ours(SD, sampler, times, mixture) < right


def test_leading_starts_low(diffusers: ModuleType):
    """DPM-Solver++ counts one point more: it takes pure noise for the state at 950, DDIM and ours for that at 980, which is nearer."""
    peer = dpm(diffusers, 50, timestep_spacing="leading")
    ddim = diffusers.DDIMScheduler(timestep_spacing="leading", **SCALED)
    ddim.set_timesteps(50)
    mine = grid(SD, "leading", 50)
    assert int(peer.timesteps[0]) == 950
    assert int(ddim.timesteps[0]) == int(mine[0]) == 980
    noise = torch.special.ndtri(SHARES)[:, None]
    away = {t: (noise - exact(SD, t)).abs().mean().item() for t in (950.0, 980.0)}
    assert away[950.0] > 1.15 * away[980.0]


def test_the_network_is_told_another_time(diffusers: ModuleType):
    """With karras, theirs rounds the timestep for the network and keeps the exact sigma: 1e-4 of error more at 160 steps."""
    peer = dpm(diffusers, 160, use_karras_sigmas=True, **FULL, **TO_FIRST)
    rounded = theirs(peer, asked=peer.timesteps)
    peer.set_timesteps(160)
    told = theirs(peer)
    mine = ours(SD, "dpmpp_2m", grid(SD, "karras", 160, ending="first"))
    assert told == pytest.approx(mine, abs=5e-6)
    assert rounded > mine + 5e-5


@pytest.mark.parametrize("steps", [20, 40])
def test_the_cosine_table_ends_at_a_sigma_of_twenty_thousand(steps: int, diffusers: ModuleType):
    """Its last beta is cut to .999. Theirs spreads karras from sigma/alpha 20291; ours from there to lambda -5.1 in the first step."""
    peer = dpm(diffusers, steps, COSINE, use_karras_sigmas=True)
    assert float(peer.sigmas[0]) == pytest.approx(20291, rel=1e-4)
    cosine = schedules.vp("cosine")
    times = grid(cosine, "karras", steps)
    assert float(cosine.logsnr(times[1])) / 2 > -5.1
    assert theirs(peer, cosine) > 4 * ours(cosine, "dpmpp_2m", times)


# What is refused, and what is not


def test_pure_noise_holds_no_x0_for_an_eps_network(diffusers: ModuleType):
    """alpha_bar is 0 at the end of a zero-SNR table: DDIM divides by it and goes on with NaN, ours says so. A v network knows x_0 there."""
    schedule = schedules.vp("scaled_linear", zero_terminal_snr=True)
    x = exact(schedule, schedule.start)
    for name in ("eps", "v"):
        config = {"timestep_spacing": "trailing", "clip_sample": False, "rescale_betas_zero_snr": True}
        peer = diffusers.DDIMScheduler(prediction_type=PREDICTIONS[name], **config, **SCALED)
        peer.set_timesteps(10)
        found = walk_peer(peer, schedule, name, x)[-1]
        kind = prediction(name)

        def denoiser(x: Tensor, t: Tensor, kind: Any = kind) -> Tensor:
            alpha, sigma = (value.view(-1, 1) for value in (schedule.alpha(t), schedule.sigma(t)))
            return kind.x0(kind.output(EASY.denoise(x, alpha.expand_as(x), sigma.expand_as(x)), x, alpha, sigma), x, alpha, sigma)

        steps = stream(Run(x, plan(schedule, "ddim", 10, "trailing"), Streams([0] * len(x))), denoiser)
        if name == "eps":
            assert bool(found.isnan().any())
            with pytest.raises(NonFiniteError):
                next(steps)
        else:
            *_, state = steps
            torch.testing.assert_close(state.x, found, rtol=0, atol=1e-5)


def test_runge_kutta_needs_four_steps(diffusers: ModuleType):
    """PNDM with its Runge-Kutta start fails at three, in a broadcast. Ours starts with Heun's step, and any number will do."""
    peer = diffusers.PNDMScheduler(**SCALED)
    peer.set_timesteps(4)
    assert bool(walk_peer(peer, SD, "eps", start())[-1].isfinite().all())
    for steps in (1, 2, 3):
        with pytest.raises(ValueError, match="broadcast"):
            peer.set_timesteps(steps)
        assert bool(states(SD, "pndm", start(), grid(SD, "trailing", steps))[-1].isfinite().all())


def test_unipc_wants_channels(diffusers: ModuleType):
    """Its einsum fails on a batch of numbers. Ours takes any shape, and the number of dimensions changes nothing."""
    peer = diffusers.UniPCMultistepScheduler(**SCALED)
    x = exact(SD, SD.start)
    ends = []
    for shape in ((200,), (200, 1), (200, 1, 1)):
        peer.set_timesteps(10)
        peer.set_begin_index(0)
        times = vp_times(peer.sigmas)
        mine = states(SD, "unipc", x.view(shape), times, order=2)[-1]
        ends.append(mine.flatten())
        if len(shape) == 1:
            with pytest.raises(RuntimeError, match="einsum"):
                walk_peer(peer, SD, "eps", x.view(shape), times[:-1])
        else:
            torch.testing.assert_close(walk_peer(peer, SD, "eps", x.view(shape), times[:-1])[-1], mine, rtol=0, atol=1e-5)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
