"""Trajectories of latent models as their authors' code walked them: latent diffusion, Stable Diffusion 1 and 2, SDXL, DiT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import golden, golden_latents, golden_pixels
from networks.golden_pixels import Golden
from peers.replay import replay
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.guidance import Guidance, Guided, guidance
from unnoise.diffusion.sampling import Estimate, plan
from unnoise.runtime.denoise import NetworkDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")

CFG = {"ldm/sd1": 7.5, "ldm/sd2": 3.5, "ldm/cin": 3.0, "ldm/inpaint": 7.5}
STABLE = schedules.vp("scaled_linear")


def opened(shared: Path, family: str, **file: Any) -> Golden:
    return golden_latents.read(shared / "golden" / family, **file)


def latent(found: Golden) -> Guided:
    """The network as `Model` asks it: schedule and prediction are those that the file was told to have."""
    spec = found.found.spec
    table, predicts = spec.schedule.build(), predictions.prediction(spec.prediction)
    return Guided(NetworkDenoiser(found.network(), table, predicts), table, predicts)


def conditions(family: str, found: Golden) -> tuple[Cond, Cond]:
    """(positive, negative)"""
    io = found.io
    if family == "ldm/cin":  # the label is a text of one word, the unconditional one the last
        words, null = golden_latents.part(found, "text_encoder"), found.found.spec.null_label
        return Cond(tokens=words(io["y_T"])), Cond(tokens=words(torch.full_like(io["y_T"], null)))
    concat = torch.cat([io["mask"], io["masked_latent"]], dim=1) if family == "ldm/inpaint" else None
    return Cond(tokens=io["c"], concat=concat), Cond(tokens=io["uc"], concat=concat)


@pytest.mark.parametrize(
    ("family", "run", "eta"),
    [
        ("ldm/sd1", "ddim_eta0", 0.0),
        ("ldm/sd1", "ddim_eta", 1.0),
        ("ldm/sd1", "ddim_nocfg", 0.0),
        ("ldm/sd2", "ddim_eta0", 0.0),
        ("ldm/sd2", "ddim_eta", 1.0),
        ("ldm/cin", "ddim_eta0", 0.0),
        ("ldm/cin", "ddim_eta", 1.0),
        ("ldm/inpaint", "ddim", 1.0),
    ],
)
def test_latent_diffusion_counts_from_one_and_ends_on_the_tables_first_entry(shared: Path, family: str, run: str, eta: float) -> None:
    """Times 901, 801 .. 1, 0: with eta there is noise in the last step too, and some is left in the picture."""
    found = opened(shared, family)
    io, record, denoiser = found.io, found.record, latent(found)
    walked = io[f"{run}.timesteps"]
    times = grid(denoiser.schedule, "leading", len(walked), offset=1, ending="first")
    assert times.tolist() == [*walked.flip(0).tolist(), 0]
    cond = guidance(*conditions(family, found), 1.0 if run == "ddim_nocfg" else CFG[family])
    mine = replay(denoiser, io["x_T"], plan(denoiser.schedule, "ddim", times=times, eta=eta), io[f"{run}.noises"], cond)
    golden.assert_recorded(io, record, {f"{run}.x": mine.x, f"{run}.pred_x0": mine.x0})


def test_v_means_what_the_authors_derive_from_it(shared: Path) -> None:
    io, _, record = golden.read(shared / "golden/ldm/sd2")
    alpha, sigma = (scale(io["t"]).float().view(-1, 1, 1, 1) for scale in (STABLE.alpha, STABLE.sigma))
    x0 = predictions.v.x0(io["unet.v"], io["x"], alpha, sigma)
    mine = {"x0": x0, "eps": (io["x"] - alpha * x0) / sigma, "v_target": predictions.v.target(io["z0"], io["noise"], alpha, sigma)}
    golden.assert_recorded(io, record, mine)


def test_plms(shared: Path) -> None:
    """The first step is Heun's; what the authors call its x_0 is that of the joined slopes, which we do not keep."""
    found = opened(shared, "ldm/sd1")
    io, record = found.io, found.record
    times = grid(STABLE, "leading", 10, offset=1, ending="first")
    cond = guidance(*conditions("ldm/sd1", found), CFG["ldm/sd1"])
    mine = replay(latent(found), io["x_T"], plan(STABLE, "pndm", times=times), cond=cond)
    golden.assert_recorded(io, record, {"plms.x": mine.x})
    assert len(mine.asked) == 11


def test_image_to_image_noises_for_one_step_more_than_it_takes_away(shared: Path) -> None:
    """Strength 0.6 of 10 steps: the latents get the noise of index 6, time 601, and the walk starts at index 5, time 501."""
    found = opened(shared, "ldm/sd1")
    io, record = found.io, found.record
    x = STABLE.alpha(601).float() * io["z0"] + STABLE.sigma(601).float() * io["img2img.noises"][0]
    golden.assert_close(x, io["img2img.encoded"])
    times = grid(STABLE, "leading", 10, offset=1, ending="first")[-7:]
    assert times[0] == 501
    cond = guidance(*conditions("ldm/sd1", found), CFG["ldm/sd1"])
    mine = replay(latent(found), x, plan(STABLE, "ddim", times=times), cond=cond)
    golden.assert_recorded(io, record, {"img2img.out": mine.x[-1]})


@pytest.mark.parametrize(("run", "eta"), [("ddim_ema", 0.0), ("ddim_eta1", 1.0)])
def test_unconditional(shared: Path, run: str, eta: float) -> None:
    """The averaged weights lie under `model_ema.`, in names without dots."""
    found = opened(shared, "ldm/uncond", ema=run == "ddim_ema")
    io, record, denoiser = found.io, found.record, latent(found).denoiser
    older = found.found.spec.schedule.build()
    times = grid(older, "leading", 5, offset=1, ending="first")
    mine = replay(denoiser, io["x_T"], plan(older, "ddim", times=times, eta=eta), io[f"{run}.noises"])
    golden.assert_recorded(io, record, {f"{run}.x": mine.x, f"{run}.pred_x0": mine.x0})


VE = schedules.edm(sigma_max=15.0)


@dataclass(frozen=True)
class Snapped:
    """SDXL's own denoiser, of x = x_0 + sigma eps: the network hears the index of the nearest sigma in Stable Diffusion's table, and by
    that sigma its answer is understood; the solver goes on with the one it asked for."""

    network: nn.Module
    table: Tensor  # (1000,) sigmas, rising

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        index = (sigma.float()[:, None] - self.table).abs().argmin(1)
        nearest = self.table[index].view(-1, 1, 1, 1)
        return x - nearest * self.network(x / (1 + nearest**2).sqrt(), index, cond)


@pytest.mark.parametrize("family", ["sdxl/base", "sdxl/refiner"])
def test_sdxl_snaps_sigma_to_its_table(shared: Path, family: str) -> None:
    found = opened(shared, family)
    io, record = found.io, found.record
    golden.assert_close((STABLE.sigma(torch.arange(1000)) / STABLE.alpha(torch.arange(1000))).float(), io["denoiser.sigmas_table"])
    with torch.no_grad():
        denoiser = Snapped(found.network(), io["denoiser.sigmas_table"])
        mine = denoiser(io["x"], io["denoised.sigma"], Cond(io["txt"], io["cond.vector"]))
    golden.assert_recorded(io, record, {"denoised": mine})


CHURN = {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 12.0, "s_noise": 1.003}


@pytest.mark.parametrize(
    ("family", "run", "sampler", "options"),
    [
        ("sdxl/base", "euler", "euler", {}),
        ("sdxl/base", "euler_churn", "euler", CHURN),
        ("sdxl/base", "ancestral", "euler_ancestral", {}),
        ("sdxl/base", "ancestral", "ddim", {"eta": 1.0}),
        ("sdxl/base", "dpmpp2m", "dpmpp_2m", {}),
        ("sdxl/base", "heun", "heun", {}),
        ("sdxl/refiner", "euler", "euler", {}),
    ],
)
def test_sdxl_starts_at_the_end_of_the_table(shared: Path, family, run, sampler, options) -> None:
    """Times linspace(999, 0, n, endpoint=False), cut to whole ones; then the data. The noise is that of sqrt(1 + sigma²): all of x."""
    found = opened(shared, family)
    io, record = found.io, found.record
    sigmas, zero = io[f"{run}.sigmas"], run == "euler" and family == "sdxl/base"
    walked = torch.linspace(999, 0, len(sigmas), dtype=torch.float64)[:-1].long()
    assert torch.equal(sigmas[:-1], io["denoiser.sigmas_table"][walked])
    tokens, pooled = (torch.zeros_like(io["txt"]), io["uncond_zero.vector"]) if zero else (io["uc_txt"], io["uncond.vector"])
    cond = guidance(Cond(io["txt"], io["cond.vector"]), Cond(tokens, pooled), 5.0)
    denoiser = Guided(Snapped(found.network(), io["denoiser.sigmas_table"]), VE, predictions.eps)
    x = io["noise"] * (1 + sigmas[0] ** 2).sqrt()
    mine = replay(denoiser, x, plan(VE, sampler, times=sigmas, **options), io.get(f"{run}.noises", ()), cond)
    golden.assert_recorded(io, record, {f"{run}.x_in": mine.asked, f"{run}.sample": mine.x[-1]})


@dataclass(frozen=True)
class ThreeChannels:
    """DiT guides the first three channels of its latents; the fourth is the condition's alone."""

    guided: Guided

    def __call__(self, x: Tensor, t: Tensor, cond: Guidance) -> Estimate:
        joined, alone = self.guided(x, t, cond), self.guided(x, t, replace(cond, scale=torch.ones_like(cond.scale)))
        assert isinstance(joined, Estimate) and isinstance(alone, Estimate)
        return Estimate(torch.cat([joined.x0[:, :3], alone.x0[:, 3:]], dim=1), alone.variance)


def test_dit_guides_three_channels_of_four(shared: Path) -> None:
    """Of the authors' batch the second half only carries the null label: its states are thrown away."""
    io, record = (file := golden_pixels.read(shared / "golden/dit/dit_patch2")).io, file.record
    dit, table = file.network(), file.found.spec.schedule.build()
    times = grid(table, "linspace", 10)
    assert times.tolist() == [*io["out.timestep_map"].flip(0).tolist(), -1]
    labels, null = io["in.y_cfg"].chunk(2)
    denoiser = ThreeChannels(Guided(NetworkDenoiser(dit, table, predictions.eps), table, predictions.eps))
    cond = guidance(Cond(labels=labels), Cond(labels=null), record["diffusion"]["cfg_scale"])
    x, noises = io["in.z"][: len(labels)], io["in.step_noise"][:, : len(labels)]
    mine = replay(denoiser, x, plan(table, "ddpm", times=times, variance="learned_range"), noises, cond)
    for name, tensors in (("out.traj_x", mine.x), ("out.traj_pred_x0", mine.x0)):
        written = record["tensors"][name]
        theirs = io[name][:, : len(labels)]
        golden.assert_close(tensors, theirs, written["max_abs_float32_minus_float64"] / written["rms"])
