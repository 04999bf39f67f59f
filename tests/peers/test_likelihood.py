"""The likelihood of score_sde's own network: their bits per dimension, from their random signs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from networks import golden_edm
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.diffusion.likelihood import log_likelihood
from unnoise.diffusion.noise import Recorded
from unnoise.diffusion.schedules import ContinuousVP
from unnoise.runtime.denoise import NetworkDenoiser


@pytest.mark.slow
def test_score_sde(shared: Path):
    """DDPM++ on the continuous VP process from t = 1e-5, pixels in [-1, 1]. Theirs is scipy's RK45 in t at rtol = atol = 1e-5, which is
    within 4e-3 of the ODE's own answer, 15.1990 and 14.9877; ours steps in u. The weights are random, so no image is an ordinary one."""
    network, io, _ = golden_edm.score_sde(shared, "ddpmpp")
    schedule = ContinuousVP(first=1e-5)
    network_denoiser = NetworkDenoiser(network.requires_grad_(False), schedule, predictions.eps)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return network_denoiser(x, t, Cond())  # type: ignore[return-value]

    signs = Recorded([2 * io["likelihood.noises"][0] - 1])  # their draws are bits
    found = log_likelihood(denoise, io["data"], schedule=schedule, seed=signs)
    torch.testing.assert_close(found.bits_per_dim(), io["likelihood.bpd"].double(), rtol=0, atol=5e-3)
    assert float((found.latents - io["likelihood.z"]).abs().max()) < 0.05
