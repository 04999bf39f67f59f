"""diffusers' schedulers, walked with an exact network: the peers of `solvers.py`.

A scheduler is told what a network that knows the mixture would say at its own noise level, in its own scaling. That an integer timestep
rounds this level (in DPM-Solver, UniPC and DEIS off their classic spacings) is left out, in its favour. It starts on the exact quantiles
at its own first level and is compared with the exact ones at its own last: sigma 0, or the cleanest level of the table.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from unnoise.evaluation.mixture import Mixture

diffusers_logging.set_verbosity_error()
warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # numpy 2 inside diffusers

SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VE = ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete")  # they walk x / alpha over sigma / alpha
TABLED = ("DDIM", "PNDM")  # they walk over alpha_bar
DATA, FIRST = "clean", "first"  # the two ends, as `unnoise.diffusion.grids` calls them


@dataclass(frozen=True)
class Peer:
    """A scheduler with its settings, and the sampler and spacing of ours that mean the same (where something does)."""

    name: str
    kind: str
    settings: dict[str, Any]
    process: str = "sd"
    ours: tuple[str, str | None, dict[str, Any]] = ("", None, {})
    lengths: dict[int, int] = field(default_factory=dict)  # evaluations of so many steps

    def scheduler(self, steps: int) -> Any:
        made = getattr(diffusers, f"{self.kind}Scheduler")(**({} if self.kind.startswith("Flow") else SD), **self.settings)
        made.set_timesteps(steps)
        return made

    def evaluations(self, steps: int) -> int:
        """One a timestep; 0 where these steps are refused."""
        if steps not in self.lengths:
            try:
                self.lengths[steps] = len(self.scheduler(steps).timesteps)
            except Exception:
                self.lengths[steps] = 0
        return self.lengths[steps]

    def most_steps(self, budget: int) -> int:
        """0 where the fewest steps that it takes ask for more."""
        steps = bisect_right(range(1, budget + 1), budget, key=self.evaluations)
        return steps if steps and self.evaluations(steps) else 0

    def level(self, sigma: float) -> tuple[Tensor, Tensor]:
        """alpha and sigma at an entry of its `sigmas`."""
        value = torch.tensor(sigma, dtype=torch.float64)
        if self.process != "sd":
            return 1 - value, value
        return (torch.ones_like(value), value) if self.kind in VE else _preserving(1 / (1 + value**2))


def _preserving(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@dataclass(frozen=True)
class Walk:
    """How it ended. `error` (n,) is NaN where the scheduler's state is."""

    error: Tensor
    evaluations: int
    end: str


def walk(peer: Peer, steps: int, mixture: Mixture, shares: Tensor) -> Walk:
    """The scheduler's own loop, in float64 where it lets us. Raises what the scheduler raises."""
    scheduler = peer.scheduler(steps)
    tabled = peer.kind in TABLED
    table = scheduler.alphas_cumprod.double() if tabled else torch.empty(0)
    first = _preserving(table[int(scheduler.timesteps[0])]) if tabled else peer.level(float(scheduler.sigmas[0]))
    x = quantile(mixture, shares, *first)[:, None]
    for i, t in enumerate(scheduler.timesteps):
        at = _preserving(table[int(t)]) if tabled else _scaled(peer, peer.level(_sigma(scheduler, i)))
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        alpha, sigma = (scale.expand(seen.shape) for scale in at)
        x0 = mixture.denoise(seen.double(), alpha, sigma)
        noise = (seen.double() - alpha * x0) / sigma
        said = noise if peer.process == "sd" else noise - x0
        x = scheduler.step(said.to(x.dtype), t, x).prev_sample
    last = torch.as_tensor(float(scheduler.final_alpha_cumprod), dtype=torch.float64) if tabled else None
    alpha, sigma = peer.level(float(scheduler.sigmas[-1])) if last is None else _preserving(last)
    error = (x.double()[:, 0] - quantile(mixture, shares, alpha, sigma)).abs()
    return Walk(error, len(scheduler.timesteps), DATA if float(sigma) == 0 else FIRST)


def _sigma(scheduler: Any, i: int) -> float:
    """The level of the i-th question. KDPM2 keeps those of its midpoints apart."""
    between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
    return float((scheduler.sigmas_interpol if between else scheduler.sigmas)[i])


def _scaled(peer: Peer, level: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What `scale_model_input` makes of it: x / alpha becomes variance-preserving."""
    alpha, sigma = level
    norm = (1 + sigma**2).sqrt() if peer.kind in VE else torch.ones_like(sigma)
    return alpha / norm, sigma / norm


def quantile(mixture: Mixture, shares: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The exact quantiles at a level, kept for the next method that asks."""
    return _cached(mixture, len(shares), float(alpha), float(sigma))


@lru_cache(maxsize=4096)
def _cached(mixture: Mixture, n: int, alpha: float, sigma: float) -> Tensor:
    shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return mixture.quantile(shares, *(torch.tensor(value, dtype=torch.float64) for value in (alpha, sigma)))


# What is raced: every deterministic scheduler, every set of sigmas and every end that it offers

SIGMAS: dict[str, tuple[dict[str, Any], str]] = {  # settings, and our spacing
    "linspace": ({}, "linspace"),  # the default of them all
    "trailing": ({"timestep_spacing": "trailing"}, "trailing"),
    "leading": ({"timestep_spacing": "leading"}, "leading"),
    "karras": ({"use_karras_sigmas": True}, "karras"),
    "exponential": ({"use_exponential_sigmas": True}, "exponential"),
    "beta": ({"use_beta_sigmas": True}, "beta"),
    "lu": ({"use_lu_lambdas": True}, "logsnr"),
}
ENDS: dict[str, dict[str, Any]] = {"": {}, ", sigma_min": {"final_sigmas_type": "sigma_min"}}
METHODS: dict[str, tuple[str, dict[str, Any], tuple[str, dict[str, Any]]]] = {  # settings, and our sampler
    "DPM++2M": ("DPMSolverMultistep", {}, ("dpmpp_2m", {})),
    "DPM++2M heun": ("DPMSolverMultistep", {"solver_type": "heun"}, ("dpmpp_2m", {})),
    "DPM++3M": ("DPMSolverMultistep", {"solver_order": 3}, ("dpmpp_3m", {})),
    "DPM++2S": ("DPMSolverSinglestep", {"lower_order_final": True}, ("dpmpp_2s", {})),
    "DPM++3S": ("DPMSolverSinglestep", {"solver_order": 3, "lower_order_final": True}, ("dpmpp_3m", {})),
    "UniPC-2": ("UniPCMultistep", {}, ("unipc", {})),
    "UniPC-2 bh1": ("UniPCMultistep", {"solver_type": "bh1"}, ("unipc", {})),
    "UniPC-3": ("UniPCMultistep", {"solver_order": 3}, ("unipc", {"order": 3})),
    "DEIS-2": ("DEISMultistep", {}, ("deis", {"order": 2})),
    "DEIS-3": ("DEISMultistep", {"solver_order": 3}, ("deis", {})),
    "Euler": ("EulerDiscrete", {}, ("euler", {})),
    "Heun": ("HeunDiscrete", {}, ("heun", {})),
    "KDPM2": ("KDPM2Discrete", {}, ("dpm2", {})),
    "LMS-4": ("LMSDiscrete", {}, ("lms", {})),
}
FLOW = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")


def _offers(kind: str, settings: dict[str, Any]) -> bool:
    return settings.keys() <= getattr(diffusers, f"{kind}Scheduler").__init__.__wrapped__.__annotations__.keys()


def sd_peers() -> list[Peer]:
    found = [
        Peer(f"{name} {sigmas}{end}", kind, {**own, **chosen, **last}, ours=(sampler, spacing, options))
        for name, (kind, own, (sampler, options)) in METHODS.items()
        for sigmas, (chosen, spacing) in SIGMAS.items()
        for end, last in ENDS.items()
        if _offers(kind, {**chosen, **last})
    ]
    stable = {"steps_offset": 1, "set_alpha_to_one": False}
    pndm = ("pndm", "leading", {})
    return [
        Peer("DDIM leading", "DDIM", {"clip_sample": False}, ours=("ddim", "leading", {})),
        Peer("DDIM, SD's settings", "DDIM", {"clip_sample": False, **stable}, ours=("ddim", "leading", {})),
        Peer("PNDM, SD's settings", "PNDM", {"skip_prk_steps": True, **stable}, ours=pndm),
        Peer("PNDM with PRK", "PNDM", {}, ours=pndm),
        Peer("PNDM with PRK, SD's settings", "PNDM", stable, ours=pndm),
        *found,
    ]


def flow_peers(shift: float, process: str) -> list[Peer]:
    plain = [
        Peer("FlowMatchEuler", "FlowMatchEulerDiscrete", {"shift": shift}, process, ("euler", "sd3", {})),
        Peer("FlowMatchHeun", "FlowMatchHeunDiscrete", {"shift": shift}, process, ("heun", "sd3", {})),
    ]
    own = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    others = [
        Peer(f"{name} flow", kind, {**settings, **own}, process, (sampler, "flow", options))
        for name, (kind, settings, (sampler, options)) in METHODS.items()
        if kind in FLOW
    ]
    return plain + others
