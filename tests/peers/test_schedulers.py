"""Our solvers step by step against diffusers', at the same times and with the same noise.

Theirs run in float32 where they insist: every state is compared to 1e-5 of the largest.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from peers.schedulers import PREDICTIONS, SD, TABLES, assert_same, feed, flow_times, said, start, states, vp_times, walk_peer
from unnoise.diffusion import schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.predictions import lcm
from unnoise.diffusion.sampling import Run, plan, stream

# numpy 2 inside diffusers, on every conversion of a tensor; nothing of ours
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

STEPS = 12
SCALED = TABLES["scaled_linear"]


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")


# Those that count in timesteps


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("betas", TABLES)
def test_ddim(betas: str, name: str, spacing: str, diffusers: ModuleType):
    """10 steps, which divide 1000: their next time is t - 1000//N, and only then the next of the list. (Never with linspace.)"""
    schedule = schedules.vp(betas)  # type: ignore[arg-type]
    config = {"timestep_spacing": spacing, "prediction_type": PREDICTIONS[name], "clip_sample": False, "set_alpha_to_one": True}
    peer = diffusers.DDIMScheduler(**config, **TABLES[betas])
    peer.set_timesteps(10)
    times = grid(schedule, spacing, 10)
    assert times[:-1].tolist() == peer.timesteps.tolist()
    assert_same(states(schedule, "ddim", start(), times), walk_peer(peer, schedule, name, start()))


@pytest.mark.parametrize("offset, ending", [(0, "clean"), (1, "first")])
def test_ddim_with_noise_and_stable_diffusions_offset(offset: int, ending: str, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """steps_offset 1 and set_alpha_to_one False: the Stable Diffusion configuration ends on the table's first entry."""
    config = {"timestep_spacing": "leading", "clip_sample": False, **SCALED}
    peer = diffusers.DDIMScheduler(steps_offset=offset, set_alpha_to_one=ending == "clean", **config)
    peer.set_timesteps(10)
    times = grid(SD, "leading", 10, offset=offset, ending=ending)
    assert times[:-1].tolist() == peer.timesteps.tolist()
    noises = feed(peer, 10, monkeypatch)
    assert_same(states(SD, "ddim", start(), times, noises, eta=0.7), walk_peer(peer, SD, "eps", start(), eta=0.7))


@pytest.mark.parametrize("variance, theirs", [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm(variance: str, theirs: str, steps: int, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Of a thousand steps the first twenty."""
    schedule = schedules.vp("linear")
    peer = diffusers.DDPMScheduler(variance_type=theirs, clip_sample=False, **TABLES["linear"])
    peer.set_timesteps(steps)
    times = grid(schedule, "leading", steps)
    assert times[:-1].tolist() == peer.timesteps.tolist()
    times = times[:21]
    noises = feed(peer, len(times), monkeypatch)
    mine = states(schedule, "ddpm", start(), times, noises, variance=variance)
    assert_same(mine, walk_peer(peer, schedule, "eps", start(), times[:-1]))


def test_pndm(diffusers: ModuleType):
    """As Stable Diffusion runs it. Two calls make their first step, Heun's."""
    peer = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **SCALED)
    peer.set_timesteps(10)
    times = grid(SD, "leading", 10, offset=1, ending="first")
    assert peer.timesteps.tolist() == [*times[:2].tolist(), *times[1:-1].tolist()]
    assert_same(states(SD, "pndm", start(), times), walk_peer(peer, SD, "eps", start())[1:])


def test_lcm(diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """With the scalings of latent consistency models, which are a prediction here and a part of the scheduler there."""
    peer = diffusers.LCMScheduler(**SCALED)
    peer.set_timesteps(4)
    noises = feed(peer, 3, monkeypatch)
    times = torch.cat([peer.timesteps.double(), torch.tensor([SD.end])])

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in (SD.alpha(t), SD.sigma(t)))
        return lcm(SD).x0(said("eps", SD, x, float(t[0])), x, alpha, sigma)

    mine = [state.x for state in stream(Run(start(), plan(SD, "lcm", times=times), Recorded(noises)), denoiser)]
    assert_same(mine, walk_peer(peer, SD, "eps", start()))


def test_ipndm(diffusers: ModuleType):
    """On any times: their table of sigmas may be given. What they sum up, alpha out + sigma x, is eps for an output v."""
    times = grid(SD, "logsnr", STEPS)
    peer = diffusers.IPNDMScheduler(trained_betas=SD.sigma(times).tolist())
    peer.set_timesteps(STEPS)
    assert_same(states(SD, "ipndm", start(), times), walk_peer(peer, SD, "v", start(), times[:-1]))


# Those that count in sigma / alpha and keep x variance-preserving

DPM, UNIPC, DEIS = (f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS"))
KARRAS, LU = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
FULL = {"lower_order_final": False}  # the order that was asked for to the end
TO_FIRST = {"final_sigmas_type": "sigma_min", **FULL}  # to the cleanest level of the table, not onto the data
THREE = {"solver_order": 3, **FULL}
RELEASED = {"coefficients": "released"}

MULTISTEP: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {  # their class and configuration, our sampler and options
    "2M": (DPM, {}, "dpmpp_2m", {}),
    "2M karras": (DPM, KARRAS, "dpmpp_2m", {}),
    "2M lu": (DPM, LU, "dpmpp_2m", {}),
    "2M SDE": (DPM, SDE, "dpmpp_2m_sde", {}),
    "2M SDE karras": (DPM, {**SDE, **KARRAS}, "dpmpp_2m_sde", {}),
    "2M SDE heun": (DPM, {**SDE, "solver_type": "heun"}, "dpmpp_2m_sde", {"correction": "heun"}),
    "3M": (DPM, THREE, "dpmpp_3m", RELEASED),
    "3M to the first": (DPM, {**THREE, **TO_FIRST}, "dpmpp_3m", RELEASED),
    "UniPC-1": (UNIPC, {"solver_order": 1, **TO_FIRST}, "unipc", {"order": 1}),
    "UniPC-2": (UNIPC, {"solver_order": 2, **TO_FIRST}, "unipc", {"order": 2}),
    "UniPC-2 karras": (UNIPC, {"solver_order": 2, **KARRAS}, "unipc", {"order": 2}),
    "UniPC-3": (UNIPC, {"solver_order": 3, **TO_FIRST}, "unipc", {"order": 3}),
    "DEIS-1": (DEIS, {"solver_order": 1, **FULL}, "deis", {"order": 1}),
    "DEIS-2": (DEIS, {"solver_order": 2, **FULL}, "deis", {"order": 2}),
    "DEIS-3": (DEIS, {"solver_order": 3, **FULL}, "deis", {"order": 3}),
}


@pytest.mark.parametrize("name", ["eps", "v"])
@pytest.mark.parametrize("case", MULTISTEP)
def test_multistep(case: str, name: str, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Their lower order on the last step is ours: the step onto sigma 0 returns the estimate."""
    kind, config, sampler, options = MULTISTEP[case]
    peer = getattr(diffusers, kind)(prediction_type=PREDICTIONS[name], **SCALED, **config)
    peer.set_timesteps(STEPS)
    peer.set_begin_index(0)
    noises = feed(peer, STEPS, monkeypatch) if "sde" in sampler else []
    times = vp_times(peer.sigmas)
    assert_same(states(SD, sampler, start(), times, noises, **options), walk_peer(peer, SD, name, start(), times[:-1]))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sa_solver(order: int, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Theirs adds a term of O(h³) to every formula through two points, also on the way to order 3; once that is taken out they agree."""
    config = {"predictor_order": order, "corrector_order": order + 1, "tau_func": lambda t: torch.tensor(1.0), **FULL}
    peer = diffusers.SASolverScheduler(**config, **SCALED)
    peer.set_timesteps(STEPS)
    peer.set_begin_index(0)
    coefficients = peer.get_coefficients_fn

    def without(points: int, begin: Tensor, end: Tensor, lam: list[Tensor], tau: Tensor) -> list[Tensor]:
        found = coefficients(points, begin, end, lam, tau)
        if points != 2:
            return found
        h, z = end - begin, 1 + tau**2
        term = torch.exp(z * end) * (h**2 / 2 - (h * z - 1 + torch.exp(-z * h)) / z**2) / (lam[0] - lam[1])
        return [found[0] - term, found[1] + term]

    noises = feed(peer, STEPS, monkeypatch)
    times = vp_times(peer.sigmas)
    mine = states(SD, "sa_solver", start(), times, noises, order=order)
    with pytest.raises(AssertionError):
        assert_same(mine, walk_peer(peer, SD, "eps", start(), times[:-1]))
    peer.set_timesteps(STEPS)
    peer.set_begin_index(0)
    peer.get_coefficients_fn = without
    given = iter(noises)
    monkeypatch.setattr(f"{type(peer).__module__}.randn_tensor", lambda *_, **__: next(given))
    assert_same(mine, walk_peer(peer, SD, "eps", start(), times[:-1]))


# On a flow

FLOWS = {
    "2M": (DPM, {}, "dpmpp_2m", {}),
    "2M SDE": (DPM, SDE, "dpmpp_2m_sde", {}),
    "UniPC-2": (UNIPC, {"solver_order": 2}, "unipc", {"order": 2}),
}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("case", FLOWS)
def test_multistep_on_a_flow(case: str, shift: float, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    kind, config, sampler, options = FLOWS[case]
    peer = getattr(diffusers, kind)(use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", **config)
    peer.set_timesteps(STEPS)
    peer.set_begin_index(0)
    schedule = schedules.flow(shift)
    noises = feed(peer, STEPS, monkeypatch) if "sde" in sampler else []
    times = flow_times(peer.sigmas, schedule)
    assert_same(states(schedule, sampler, start(), times, noises, **options), walk_peer(peer, schedule, "flow", start(), times[:-1]))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_flow_matching(sampler: str, shift: float, diffusers: ModuleType):
    """At their sigmas; theirs are shifted twice at the low end, so the times are taken from them."""
    peer = getattr(diffusers, f"FlowMatch{sampler.capitalize()}DiscreteScheduler")(shift=shift)
    peer.set_timesteps(STEPS)
    schedule = schedules.flow(shift)
    asked = flow_times(peer.sigmas, schedule)[: len(peer.timesteps)]
    theirs = walk_peer(peer, schedule, "flow", start(), asked)
    assert_same(states(schedule, sampler, start(), falling(flow_times(peer.sigmas, schedule))), whole_steps(sampler, theirs))


# Those that walk x / alpha over sigma / alpha: the VE form of Stable Diffusion's process

VE_FORM = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
}
TWICE = {"heun", "dpm2", "dpm2_ancestral"}  # two calls of step make one


def falling(sigmas: Tensor) -> Tensor:
    """Each once: the inner ones stand there twice where a step has two calls."""
    return sigmas.unique().flip(0)


def whole_steps(sampler: str, found: list[Tensor]) -> list[Tensor]:
    """Every second call completes a step; the last step has one."""
    return [*found[1:-1:2], found[-1]] if sampler in TWICE else found


@pytest.mark.parametrize(
    "sampler, karras", [(sampler, False) for sampler in VE_FORM] + [(s, True) for s in VE_FORM if s != "euler_ancestral"]
)
def test_ve_form(sampler: str, karras: bool, diffusers: ModuleType, monkeypatch: pytest.MonkeyPatch):
    peer = getattr(diffusers, VE_FORM[sampler])(**SCALED, **(KARRAS if karras else {}))
    peer.set_timesteps(STEPS)
    sigmas = peer.sigmas.double()
    asked = sigmas[: len(peer.timesteps)].clone()
    if sampler.startswith("dpm2"):  # the second call is at the midpoint
        asked[1::2] = peer.sigmas_interpol.double()[sampler == "dpm2" :][: len(asked) - 1 : 2]
    noises = feed(peer, STEPS, monkeypatch) if "ancestral" in sampler else []
    schedule, x = schedules.edm(0.02, 15), start() * sigmas[0]
    theirs = whole_steps(sampler, walk_peer(peer, schedule, "eps", x, asked))
    assert len(theirs) == STEPS
    assert_same(states(schedule, sampler, x, falling(sigmas), noises), theirs)
