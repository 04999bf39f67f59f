"""Recorded runs of EDM and of score_sde, taken again with our solvers: the authors' networks, times and noises, step by step.

Both are floating point runs of random networks: what they share with ours is every formula, and what differs is rounding (`floor`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from networks import golden, golden_edm
from peers.replay import Replay, replay
from unnoise import schedules
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.diffusion.sampling import Plan, plan
from unnoise.diffusion.solvers import solver
from unnoise.diffusion.steps import Level
from unnoise.runtime.denoise import NetworkDenoiser

VP = schedules.ContinuousVP()

# EDM: generate.py. The state is float64 and the network float32, there and here.


class Edm:
    """A golden network in the preconditioning that it was sampled with, which notes at which sigmas it was asked and what it said."""

    def __init__(self, shared: Path, name: str):
        network, self.io, record = golden_edm.edm(shared, name)
        self.floor, self.churn = record["float32_vs_float64"], record["config"]["churn"]
        precond = record["config"]["precond"]
        self._denoise = golden_edm.PRECONDITIONED[precond](network)
        self.schedule = schedules.edm(0.02 if precond == "VEPrecond" else 0.002)  # the authors begin where the network was trained
        self.cond = golden_edm.labels(self.io, "class_labels_T")
        self.sigmas: list[float] = []
        self.said: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        self.sigmas.append(float(sigma[0]))
        self.said.append(self._denoise(x, sigma, cond))
        return self.said[-1]

    def run(self, plan: Plan, noises: list[Tensor]) -> Replay:
        return replay(self, self.io["latents"].double() * plan.levels[0].sigma, plan, noises, self.cond)

    def check(self, run: Replay, name: str) -> None:
        """Every sigma; x and x_0 at the calls that were recorded; the picture."""
        torch.testing.assert_close(torch.tensor(self.sigmas, dtype=torch.float64), self.io[f"{name}.sigma"], rtol=1e-9, atol=0)
        golden.assert_close(run.x[-1], self.io[f"{name}.sample"], self.floor[f"{name}.sample"])
        calls = self.io.get(f"{name}.call_index", torch.arange(0))
        for i, call in enumerate(calls.tolist()):
            golden.assert_close(run.asked[call], self.io[f"{name}.x_in"][i], self.floor[f"{name}.x_in"])
            golden.assert_close(self.said[call].float(), self.io[f"{name}.denoised"][i], self.floor[f"{name}.denoised"])


NETWORKS = ["ddpmpp", "ddpmpp_vp", "ncsnpp", "dhariwal"]


@pytest.mark.parametrize("name", NETWORKS)
def test_heun(shared: Path, name: str) -> None:
    """Algorithm 1 of Karras et al. 2022: 18 steps, 35 evaluations."""
    edm = Edm(shared, name)
    edm.check(edm.run(plan(edm.schedule, "heun", 18, "karras"), []), "heun")
    assert len(edm.sigmas) == 35


@pytest.mark.parametrize("name", NETWORKS)
def test_churn(shared: Path, name: str) -> None:
    """Algorithm 2. The authors draw noise at every step; we draw where the level is raised."""
    edm = Edm(shared, name)
    low, high = edm.churn["S_min"], edm.churn["S_max"]
    options = {"s_churn": edm.churn["S_churn"], "s_tmin": low, "s_tmax": high, "s_noise": edm.churn["S_noise"]}
    walk = plan(edm.schedule, "heun", edm.churn["num_steps"], "karras", **options)
    noises = [noise for noise, level in zip(edm.io["churn.noises"], walk.levels, strict=False) if low <= level.sigma <= high]
    assert 0 < len(noises) < edm.churn["num_steps"]
    edm.check(edm.run(walk, noises), "churn")


def _vp_times(steps: int) -> Tensor:
    return torch.linspace(1, 1e-3, steps, dtype=torch.float64)


def test_heun_on_the_levels_of_vp(shared: Path) -> None:
    """The ablation with VP's levels of noise in the VE process: times, not another solver."""
    edm = Edm(shared, "ddpmpp_vp")
    t = _vp_times(6)
    walk = plan(schedules.edm(sigma_max=200), "heun", times=[*(VP.sigma(t) / VP.alpha(t)).tolist(), 0.0])
    edm.check(edm.run(walk, []), "ablation1")


def test_euler_in_the_time_of_vp(shared: Path) -> None:
    """Euler's method on dx/dt = -beta/2 (x + score) itself, with steps in t (Song et al. 2021).

    Our Euler is exact for a constant x_0, whatever the time is called. The other one takes x_0 and the noise along scales that Euler's
    method has integrated as well: (alpha, sigma) -> A (alpha, sigma) + (B, 0) if x -> A x + B x_0. With those it is ours.
    """
    edm = Edm(shared, "ddpmpp_vp")
    t = [*_vp_times(8).tolist(), 0.0]
    alpha, sigma = float(VP.alpha(1.0)), float(VP.sigma(1.0))
    levels = [Level(0, alpha, sigma)]
    for here, there in itertools.pairwise(t):
        h, beta = there - here, VP.beta_min + here * (VP.beta_max - VP.beta_min)
        true = Level(here, float(VP.alpha(here)), float(VP.sigma(here)))
        grown, pulled = 1 - beta / 2 * h * (1 - 1 / true.sigma**2), -beta / 2 * h * true.alpha / true.sigma**2
        alpha, sigma = grown * alpha + pulled, grown * sigma
        levels.append(Level(len(levels), alpha, sigma))

    def denoiser(x: Tensor, index: Tensor, cond: Cond) -> Tensor:
        true = torch.tensor([t[int(i)] for i in index], dtype=torch.float64)
        scale = VP.alpha(true)
        return edm(x / scale.view(-1, 1, 1, 1), VP.sigma(true) / scale, cond)

    walk = Plan(VP, tuple(levels), solver("euler").with_options({}), straight=False)
    edm.check(replay(denoiser, edm.io["latents"].double() * levels[0].sigma, walk), "ablation0")


# score_sde: sde_lib.py and sampling.py

Score = Callable[[Tensor, Tensor], Tensor]  # (x, t) of the SDE -> score


class ScoreSde:
    """A golden network as the authors' score function, and their tables for N steps."""

    def __init__(self, shared: Path, name: str):
        self.network, self.io, record = golden_edm.score_sde(shared, name)
        self.name, self.floor, self.eps = name, record["float32_vs_float64"], record["config"]["eps"]

    def close(self, mine: Tensor, name: str, rows: slice = slice(None)) -> None:
        """Against the recorded output; single rows by the tolerance of all, since rows differ by orders of magnitude."""
        whole = self.io[name].clone()
        whole[rows] = mine.to(whole)
        golden.assert_close(whole, self.io[name], self.floor[name])

    def score(self, x: Tensor, t: Tensor, steps: int = 1000) -> Tensor:
        """x (b, c, h, w), t (b,) in 0..1."""
        wide = (-1, 1, 1, 1)
        if self.name == "ncsnpp":  # VE: pictures of 0..1, and the network is told log(sigma)
            sigma = ve_sigma(t)
            return self.network(2 * x.float() - 1, sigma.log().float()).to(x) / sigma.to(x).view(wide)
        if self.name == "ddpmpp":  # VP
            x0 = NetworkDenoiser(self.network, VP, predictions.eps, dtype=torch.float32)(x, t, Cond())
            assert isinstance(x0, Tensor)
            alpha, sigma = (scale(t).to(x).view(wide) for scale in (VP.alpha, VP.sigma))
            return (alpha * x0 - x) / sigma**2
        label = t * (steps - 1)  # discrete VP: the network is told a fraction, the deviation is that of the index below it
        sigma = vp_table(steps).sigma(label.floor()).to(x).view(wide)
        return -self.network(x.float(), label.float()).to(x) / sigma

    def times(self, steps: int) -> list[float]:
        """From noise to data."""
        return torch.linspace(1, self.eps, steps, dtype=torch.float64).tolist()


def vp_table(steps: int) -> schedules.Discrete:
    """The VP SDE in N steps (Song et al. 2021, appendix E): beta_i = beta_min/N .. beta_max/N, alpha_bar their cumulated 1 - beta_i."""
    return schedules.vp(torch.linspace(VP.beta_min / steps, VP.beta_max / steps, steps, dtype=torch.float64))


def vp_table_not_quite_clean(steps: int) -> schedules.Discrete:
    """`vp_table` one index later, behind an entry that differs from the data by rounding only.

    Our step onto the data returns x_0; the authors' is a step like the others, which is another number for reverse diffusion.
    """
    almost = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    return schedules.Discrete(torch.cat([almost, vp_table(steps).alpha_bar]))


def ve_sigma(t: Tensor) -> Tensor:
    return 0.01 * 5000 ** t.double()


def ve_table(steps: int) -> Tensor:
    return ve_sigma(torch.linspace(0, 1, steps, dtype=torch.float64)).clamp(max=50.0)


def as_denoiser(score: Callable[[Tensor, float], Tensor], walk: Plan, times: list[float]) -> Callable[[Tensor, Tensor, Cond], Tensor]:
    """x_0 = (x + sigma² score) / alpha at the scales of the walk's levels, with the score of the authors' own time there."""
    known = {level.t: (level, t) for level, t in zip(walk.levels, times, strict=False)}

    def denoise(x: Tensor, at: Tensor, cond: Cond) -> Tensor:
        level, t = known[float(at[0])]
        return (x + level.sigma**2 * score(x, t)) / level.alpha

    return denoise


@pytest.mark.parametrize("name", ["ddpm", "ddpmpp", "ncsnpp"])
def test_score(shared: Path, name: str) -> None:
    sde = ScoreSde(shared, name)
    with torch.no_grad():
        sde.close(sde.score(sde.io["x_state"].double(), sde.io["t"].double()), "score")


@pytest.mark.parametrize("name", ["ddpm", "ddpmpp"])
def test_scales_of_vp(shared: Path, name: str) -> None:
    sde = ScoreSde(shared, name)
    t = sde.io["t"].double()
    sde.close(VP.alpha(t).view(-1, 1, 1, 1) * sde.io["x"].double(), "marginal.mean")
    sde.close(VP.sigma(t), "marginal.std")


def one_step(sde: ScoreSde, predictor: str, t: float) -> Plan:
    """The two levels between which the authors' predictor goes from t with N = 1000."""
    index, ve = int(t * 999), sde.name == "ncsnpp"
    variance = "posterior" if ve else "beta"
    options = {"predictor": predictor, "variance": variance, "corrector_steps": 0}
    if predictor == "euler_maruyama" and ve:  # g² dt = sigma² 2 log(sigma_max / sigma_min) / N
        sigma = float(ve_sigma(torch.tensor(t)))
        times = [sigma, sigma * math.sqrt(1 - 2 * math.log(5000) / 1000)]
        return plan(schedules.edm(0.001, 50.0), "pc", times=times, **options)
    if predictor == "euler_maruyama":  # beta(t) / N
        bar, beta = float(VP.alpha(t)) ** 2, (VP.beta_min + t * (VP.beta_max - VP.beta_min)) / 1000
        table = schedules.Discrete(torch.tensor([bar / (1 - beta), bar], dtype=torch.float64))
        return plan(table, "pc", times=[1, 0], **options)
    if ve:
        return plan(schedules.edm(0.001, 50.0), "pc", times=ve_table(1000)[[index, index - 1]], **options)
    return plan(vp_table(1000), "pc", times=[index, index - 1], **options)


THEIRS = {"reverse_diffusion": "reverse_diffusion", "ancestral": "ancestral_sampling", "euler_maruyama": "euler_maruyama"}


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize(
    ("name", "predictor"), [("ddpm", "ancestral"), *[(name, predictor) for name in ("ddpmpp", "ncsnpp") for predictor in THEIRS]]
)
def test_predictors(shared: Path, name: str, predictor: str, row: int) -> None:
    """One step of a thousand, from three times: its mean, where the noise is zero, and its sample."""
    sde, rows = ScoreSde(shared, name), slice(row, row + 1)
    t, x, theirs = float(sde.io["t"][row]), sde.io["x_state"][rows].double(), f"pred_{THEIRS[predictor]}"
    walk = one_step(sde, predictor, t)
    denoiser = as_denoiser(lambda x, t: sde.score(x, torch.tensor([t], dtype=torch.float64)), walk, [t])
    noise = sde.io[f"{theirs}.noises"][0, rows]
    sde.close(replay(denoiser, x, walk, [torch.zeros_like(noise)]).x[0], f"{theirs}.x_mean", rows)
    sde.close(replay(denoiser, x, walk, [noise]).x[0], f"{theirs}.x", rows)


def test_langevin(shared: Path) -> None:
    """Two steps of the corrector, whose size the authors take from norms averaged over the batch. VE: the size knows no level."""
    sde = ScoreSde(shared, "ncsnpp")
    walk = plan(schedules.edm(), "pc", times=[1.0, 0.5], corrector_steps=2, snr=0.16, norm="batch")
    denoiser = as_denoiser(lambda x, _: sde.score(x, sde.io["t"].double()), walk, [1.0])  # every row at its own time
    noises = [*sde.io["corr_langevin.noises"], torch.zeros_like(sde.io["x_state"])]
    run = replay(denoiser, sde.io["x_state"].double(), walk, noises)
    sde.close(run.asked[2], "corr_langevin.x")


def trajectory(sde: ScoreSde, name: str, walk: Plan, x: Tensor, noises: list[Tensor]) -> None:
    times = sde.times(walk_steps := len(walk.levels) - 1)
    denoiser = as_denoiser(lambda x, t: sde.score(x, torch.full((len(x),), t, dtype=torch.float64), walk_steps), walk, times)
    sde.close(replay(denoiser, x, walk, noises).x[-1], f"{name}.sample")


def test_ancestral_sampling(shared: Path) -> None:
    """DDPM in 24 steps with the large variance."""
    sde = ScoreSde(shared, "ddpm")
    x, *noises = sde.io["pc_anc.noises"]
    walk = plan(vp_table(24), "pc", times=range(23, -2, -1), predictor="ancestral", variance="beta", corrector_steps=0)
    trajectory(sde, "pc_anc", walk, x, noises)


def test_predictor_and_corrector_vp(shared: Path) -> None:
    """Reverse diffusion and Langevin in 24 steps. The authors leave the last noise out."""
    sde = ScoreSde(shared, "ddpmpp")
    x, *noises, last = sde.io["pc_rd.noises"]
    walk = plan(vp_table_not_quite_clean(24), "pc", times=range(24, -1, -1), snr=0.16, norm="batch")
    trajectory(sde, "pc_rd", walk, x, [*noises, torch.zeros_like(last)])


def test_predictor_and_corrector_ve(shared: Path) -> None:
    sde = ScoreSde(shared, "ncsnpp")
    x, *noises = sde.io["pc.noises"]
    walk = plan(schedules.edm(0.01, 50.0), "pc", times=[*ve_table(6).flip(0).tolist(), 0.0], snr=0.16, norm="batch")
    trajectory(sde, "pc", walk, 50 * x, noises)
