"""Trajectories of pixel models as their authors' code walked them: DDPM and DDIM, IDDPM, ADM, EDM's teacher and consistency models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from networks import golden, golden_pixels
from peers.replay import Clipped, replay
from runtime.classified import Classified
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.sampling import Denoiser, Estimate, plan
from unnoise.diffusion.schedules import Schedule
from unnoise.diffusion.steps import Solution, Step, level
from unnoise.runtime.denoise import NetworkDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")


LEARNED: dict[str, Any] = {"variance": "learned_range"}


def opened(shared: Path, family: str) -> golden_pixels.Golden:
    return golden_pixels.read(shared / "golden" / family, "unet." if family == "adm/unet" else "")


def denoiser(file: golden_pixels.Golden, clip: bool = False, **spec: Any) -> Denoiser:
    """As the file's spec says, or `spec`: its schedule tells the network the time."""
    told = file.found.spec.model_copy(update=spec)
    plain = NetworkDenoiser(file.network(), told.schedule.build(), predictions.prediction(told.prediction), dtype=torch.float32)
    return Clipped(plain) if clip else plain


@pytest.mark.parametrize(
    ("family", "run", "states", "estimates", "clip", "sampler", "spacing", "options"),
    [
        ("ddpm/unet", "ddim_eta0", "xs", "x0", False, "ddim", "leading", {}),
        ("ddpm/unet", "ddim_eta1", "xs", "x0", False, "ddim", "leading", {"eta": 1.0}),
        ("ddpm/unet", "ddpm_noisy", "xs", "x0", True, "ddpm", "leading", {"variance": "beta"}),
        ("adm/unet", "anc", "samples", "pred_xstart", True, "ddpm", "linspace", LEARNED),
        ("adm/unet", "ddim", "samples", "pred_xstart", True, "ddim", "leading", {}),
        ("adm/iddpm", "anc", "samples", "pred_xstart", True, "ddpm", "linspace", LEARNED),
        ("adm/iddpm", "ddim", "samples", "pred_xstart", True, "ddim", "leading", {}),
    ],
)
def test_ddpm_iddpm_and_adm(shared: Path, family, run, states, estimates, clip, sampler, spacing, options) -> None:
    """Respacing "10" keeps both ends of the table, our linspace; "ddim10" is leading. DDIM's own code clips no estimate; where one is
    clipped, the noise in x is derived anew."""
    io, record = (file := opened(shared, family)).io, file.record
    table, walked = file.found.spec.schedule.build(), io["seq" if "seq" in io else f"{run}.timestep_map"]
    times = grid(table, spacing, len(walked))
    assert times.tolist() == [*walked.flip(0).tolist(), -1]
    cond = Cond(labels=io.get("y_T"))
    mine = replay(denoiser(file, clip), io["x_T"], plan(table, sampler, times=times, **options), io[f"{run}.noises"], cond)
    golden.assert_recorded(io, record, {f"{run}.{states}": mine.x, f"{run}.{estimates}": mine.x0})


@pytest.mark.parametrize("clip", [True, False])
def test_one_step_has_the_mean_and_the_learned_variance(shared: Path, clip: bool) -> None:
    """Fed zeros a step is its mean, fed ones it is a standard deviation more; onto the data (t = 0) it is the mean whatever it is fed."""
    io, record = (file := opened(shared, "adm/unet")).io, file.record
    table, ask = file.found.spec.schedule.build(), denoiser(file, clip)
    means, logs, estimates = [], [], []
    for x, t, y in zip(io["x"].double().split(1), io["t"].tolist(), io["y"].split(1), strict=True):
        how = plan(table, "ddpm", times=[t, t - 1], **LEARNED)
        mean, more = (replay(ask, x, how, [fed(x)], Cond(labels=y)) for fed in (torch.zeros_like, torch.ones_like))
        means.append(mean.x[0])
        logs.append(2 * (more.x[0] - mean.x[0]).log())
        estimates.append(mean.x0[0])
    assert io["t"][0] == 0 and bool((logs[0] == -torch.inf).all())
    for name, tensors in (("mean", means), ("log_variance", logs), ("pred_xstart", estimates)):
        name, first = f"pmv_clip{int(clip)}.{name}", 1 if name == "log_variance" else 0
        golden.assert_close(torch.cat(tensors[first:]).float(), io[name][first:], record["float32_vs_float64"][name])


def test_ddim_runs_towards_noise_on_the_same_line(shared: Path) -> None:
    io, record = (file := opened(shared, "adm/unet")).io, file.record
    table, x = file.found.spec.schedule.build(), io["x_T"]
    here, there = (level(table, float(t)) for t in io["ddim.timestep_map"][3:5])
    ask = denoiser(file)
    with torch.no_grad():
        answer = ask(x, torch.full((len(x),), here.t, dtype=torch.float64), Cond(labels=io["y_T"]))
    assert isinstance(answer, Estimate)
    mine = Step(x, here, there, 0, 1, Recorded([]), table, straight=False).toward(answer.x0)
    golden.assert_recorded(io, record, {"ddim_reverse.sample": mine})


def guided(shared: Path, file: golden_pixels.Golden, table: Schedule) -> Classified:
    classifier = golden_pixels.classifier(shared / "golden/adm/unet", "classifier.")
    return Classified(denoiser(file, clip=True), table, classifier, file.record["config"]["classifier_scale"], torch.float32)


def test_a_guided_estimate_is_not_clipped_again(shared: Path) -> None:
    io, record = (file := opened(shared, "adm/unet")).io, file.record
    table = file.found.spec.schedule.build()
    how = plan(table, "ddim", times=grid(table, "leading", 10))
    mine = replay(guided(shared, file, table), io["x_T"], how, cond=Cond(labels=io["y_T"]))
    golden.assert_recorded(io, record, {"ddim_guided.samples": mine.x, "ddim_guided.pred_xstart": mine.x0})
    assert mine.x0.abs().max() > 1


def test_guided_ancestral_sampling_moves_the_mean(shared: Path) -> None:
    """By variance times gradient. The authors' x_0 is what the network said; ours is the guided one, which the other solvers walk to."""
    io, record = (file := opened(shared, "adm/unet")).io, file.record
    table = file.found.spec.schedule.build()
    how = plan(table, "ddpm", times=grid(table, "linspace", 10), **LEARNED)
    mine = replay(guided(shared, file, table), io["x_T"], how, io["anc_guided.noises"], Cond(labels=io["y_T"]))
    golden.assert_recorded(io, record, {"anc_guided.samples": mine.x})


VE = schedules.edm()
KARRAS = grid(VE, "karras", 6)
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}


def karras(file: golden_pixels.Golden, run: str) -> NetworkDenoiser:
    """One set of weights stands for the teacher (EDM) and for what was distilled from it, as which a file is read unless told otherwise."""
    teacher = run not in ("cd", "onestep", "multistep", "progdist")
    found = denoiser(file, **({"prediction": "edm"} if teacher else {}))
    assert isinstance(found, NetworkDenoiser)
    return found


@pytest.mark.parametrize("run", ["edm", "cd"])
def test_preconditioning(shared: Path, run: str) -> None:
    io, record = (file := opened(shared, "consistency/unet")).io, file.record
    sigma, denoise = io["sigma"].double(), karras(file, run)
    alpha, predicts = torch.ones_like(sigma), denoise.prediction
    scalings = [torch.as_tensor(scale) for scale in (*predicts.coefficients(alpha, sigma), predicts.scale_in(alpha, sigma))]
    golden.assert_close(torch.stack(scalings).float(), io[f"{run}.scalings"])
    with torch.no_grad():
        mine = denoise(io["x"], sigma, Cond(labels=io["y"]))
    assert isinstance(mine, Tensor)
    golden.assert_recorded(io, record, {f"{run}.denoised": mine})


@pytest.mark.parametrize(
    ("run", "sampler", "times", "options"),
    [
        ("onestep", "consistency", [80.0, 0.0], {}),
        ("multistep", "consistency", grid(VE, "karras", 40)[[0, 22, 39]], {}),
        ("progdist", "euler", grid(VE, "karras", 4)[:-1], {}),
        ("euler", "euler", KARRAS, {}),
        ("heun", "heun", KARRAS, {}),
        ("heun_churn", "heun", KARRAS, CHURN),
        ("ancestral", "euler_ancestral", KARRAS, {}),
        ("dpm", "midpoint_in_cube_roots", KARRAS, {}),
    ],
)
def test_consistency_models(shared: Path, run, sampler, times, options) -> None:
    """Estimates are clipped, and the picture once more. Where Heun's method has no churn, the authors draw noise and drop it."""
    io, record = (file := opened(shared, "consistency/unet")).io, file.record
    x, noises = 80 * io[f"{run}.noises"][0], io[f"{run}.noises"][1:]
    if options:
        noises = noises[(times[:-1] >= options["s_tmin"]) & (times[:-1] <= options["s_tmax"])]
    if sampler == "midpoint_in_cube_roots":
        how = replace(plan(VE, "dpm2", times=times), step=midpoint_in_cube_roots)
    else:
        how = plan(VE, sampler, times=times, **options)
    mine = replay(Clipped(karras(file, run)), x, how, noises, Cond(labels=io["y_T"]))
    golden.assert_recorded(io, record, {f"{run}.sample": mine.x[-1].clamp(-1, 1)})


def midpoint_in_cube_roots(step: Step) -> Solution:
    """The authors' `dpm`: the middle of sigma^(1/3), not of log(sigma) as in `dpm2`, and so it asks twice for the last step too."""
    x0 = yield step.x, step.here
    middle = step.level(((step.here.t ** (1 / 3) + step.next.t ** (1 / 3)) / 2) ** 3)
    guess = step.toward(x0, middle)
    x0_middle = yield guess, middle
    return step.along(step.slope(guess, x0_middle, middle))


def test_karras_times(shared: Path) -> None:
    io, _, record = golden.read(shared / "golden/consistency/unet")
    golden.assert_recorded(io, record, {"sigmas_karras": grid(VE, "karras", 40).float()})
