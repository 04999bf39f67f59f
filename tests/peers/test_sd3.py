"""Stable Diffusion 3 and 3.5: whole runs of the authors' code, and the transformer of diffusers on the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks.controlled import skipping
from networks.golden_sd3 import Golden, read
from peers import tiny
from peers.replay import replay
from unnoise.checkpoints.found import Part
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import diffusers as layouts
from unnoise.checkpoints.store.weights import Weights
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.guidance import Guidance, Guided, Weak, guidance
from unnoise.diffusion.sampling import initial, plan
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.mmdit import MMDiT
from unnoise.runtime.denoise import NetworkDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULE = schedules.flow(shift=3.0)


def recorded_times(found: Golden) -> Tensor:
    """The grid as the authors' code had it, rounded to float32: this network feels the last bit of a timestep in the fourth decimal."""
    sigma = found["out.get_sigmas"].double()
    return sigma / (SCHEDULE.shift + (1 - SCHEDULE.shift) * sigma)


def denoiser(network: nn.Module) -> NetworkDenoiser:
    return NetworkDenoiser(network, SCHEDULE, predictions.flow)


def prompts(found: Golden) -> Guidance:
    rows = Cond(tokens=found["in.context"], pooled=found["in.y"])
    return guidance(rows.rows(0, 1), rows.rows(1, 2), found.record["sampling"]["cfg_scale"])


def prompts_with_skipped_layers(found: Golden, mmdit: MMDiT) -> Guidance:
    """Classifier-free guidance, and skip-layer guidance where it was recorded. Its authors count in shares of the steps, ends excluded."""
    guided, skip = prompts(found), found.record["sampling"]["slg"]
    if skip is None:
        return guided
    times = recorded_times(found).tolist()
    steps = len(times) - 1
    acting = [k for k in range(steps) if skip["start"] * steps < k < skip["end"] * steps]
    low, high = times[acting[-1] + 1], times[acting[0]]
    assert len(acting) == 4 == sum(low < t <= high for t in times)
    scale, low, high = (torch.tensor([value], dtype=torch.float64) for value in (skip["scale"], low, high))
    return replace(guided, weak=Weak(skipping(guided.positive, skip["layers"], mmdit.config.depth), scale, low, high))


@pytest.fixture(scope="module", params=["mmdit_medium", "mmdit_medium35"])
def recorded(shared: Path, request: pytest.FixtureRequest) -> tuple[Golden, MMDiT]:
    return read(shared / "golden/sd3" / request.param)


def test_times(recorded: tuple[Golden, MMDiT]) -> None:
    found, _ = recorded
    found.assert_close(SCHEDULE.sigma(torch.arange(1, 1001) / 1000).float(), "out.sigma_table")
    times = grid(SCHEDULE, "sd3", 8)
    found.assert_close(SCHEDULE.sigma(times).float(), "out.get_sigmas")
    found.assert_close(SCHEDULE.sigma(times[3:]).float(), "out.img2img.sigmas")


@pytest.mark.parametrize(("sampler", "options"), [("euler", {}), ("dpmpp_2m", {"clock": "sigma"})], ids=["euler", "dpmpp_2m"])
def test_text_to_image(recorded: tuple[Golden, MMDiT], sampler: str, options: dict[str, Any]) -> None:
    """Every question, every estimate, and the end; with skip-layer guidance for 3.5 medium."""
    found, mmdit = recorded
    name = f"out.{sampler}" + ("_slg" if found.record["sampling"]["slg"] else "")
    fixed = plan(SCHEDULE, sampler, times=recorded_times(found), **options)
    start = initial(found["in.noise"], fixed)
    found.assert_close(start, "out.start_x")
    guided = Guided(denoiser(mmdit), SCHEDULE, predictions.flow)
    mine = replay(guided, start, fixed, cond=prompts_with_skipped_layers(found, mmdit))
    found.assert_close(mine.asked, f"{name}.x_in")
    found.assert_close(mine.x0, f"{name}.denoised")
    found.assert_close(mine.x[-1], f"{name}.x_final")
    if sampler == "dpmpp_2m":
        with torch.device("meta"):  # its scale and shift are numbers
            autoencoder = Autoencoder(AutoencoderConfig(latent_channels=16, quant_convs=False, scale=1.5305, shift=0.0609))
        found.assert_close(autoencoder.unscaled(mine.x[-1]), "out.process_out_final")


def test_image_to_image(recorded: tuple[Golden, MMDiT]) -> None:
    """The last 60 % of the steps, from a picture with the noise of that level; classifier-free guidance alone."""
    found, mmdit = recorded
    fixed = plan(SCHEDULE, "euler", times=recorded_times(found)[int(8 * (1 - 0.6)) :])
    first = fixed.levels[0]
    start = first.alpha * found["in.init_latent"] + first.sigma * found["in.noise"]
    found.assert_close(start, "out.img2img.start_x")
    guided = Guided(denoiser(mmdit), SCHEDULE, predictions.flow)
    found.assert_close(replay(guided, start, fixed, cond=prompts(found)).x[-1], "out.img2img.x_final")


def shared_with(peer: nn.Module, layout: Layout, config: Any) -> Any:
    """Random values in all of the peer's parameters, and our network with the same, read as from its file."""
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.2 if p.ndim == 1 else p[0].numel() ** -0.5)
    return Part(config, layout, Weights.open(dict(peer.eval().state_dict()))).load()


@pytest.mark.parametrize("size", [(16, 16), (8, 20)], ids=["square", "wide"])
@pytest.mark.parametrize(("qk_norm", "dual"), [(False, 0), (True, 0), (True, 2)], ids=["medium", "large-3.5", "medium-3.5"])
@torch.no_grad()
def test_diffusers(qk_norm: bool, dual: int, size: tuple[int, int]) -> None:
    pytest.importorskip("diffusers")
    peer, config = tiny.joint(qk_norm=qk_norm, dual=dual)
    mine = shared_with(peer, layouts.mmdit(config), config)
    x, t, tokens, pooled = torch.randn(2, 4, *size), torch.tensor([3.0, 977.5]), torch.randn(2, 7, 12), torch.randn(2, 10)
    for skip in ([], [0], [1]):
        expected = peer(x, tokens, pooled, t, skip_layers=skip).sample
        found = mine(x, t, skipping(Cond(tokens, pooled), skip, config.depth))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
