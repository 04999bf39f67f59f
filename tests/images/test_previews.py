"""Previews: linear where they say so, fitted ones on photographs that the fit has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from networks.test_taesd import photograph, psnr, taef2
from unnoise.errors import ArgumentError, NonFiniteError
from unnoise.families.table import FAMILIES
from unnoise.images.previews import SD, SD3, SDXL, SPACES, Factors, decoded, factors, fit, preview, strongest
from unnoise.networks.taesd import TinyAutoencoder, TinyAutoencoderConfig
from unnoise.runtime.placement import CPU


@pytest.mark.parametrize("name", SPACES)
def test_a_unit_latent_has_its_channels_colour(name: str) -> None:
    space = SPACES[name]
    for channel, colour in enumerate(space.channels):
        latents = torch.zeros(1, len(space.channels), 2, 3)
        latents[:, channel] = 1
        (picture,) = preview(latents, name)
        expected = [round(127.5 * (1 + min(max(c + b, -1), 1))) for c, b in zip(colour, space.bias, strict=True)]
        assert picture.size == (3, 2) and np.abs(np.asarray(picture)[0, 0] - expected).max() <= 1


def test_which_factors_a_family_has() -> None:
    expected = {"sd1": SD, "sd1-inpainting": SD, "sd2-base": SD, "sdxl-refiner": SDXL, "sd3-medium": SD3, "sd3.5-large": SD3}
    assert {name: factors(name) for name in expected} == expected
    for name, spec in FAMILIES.items():
        if spec.first_stage and (known := factors(name)):
            assert len(known.channels) == spec.first_stage.latent_channels, name


def test_a_family_without_factors_shows_shapes_in_grey() -> None:
    latents = 0.1 * torch.randn(2, 3, 8, 8)
    latents[0, :, :, 4:] += torch.tensor([2.0, 1.0, -0.5])[:, None, None]  # a step at the middle
    first, _ = preview(latents, "ldm-uncond")
    values = np.asarray(first).astype(int)
    assert first.mode == "RGB" and np.ptp(values, axis=2).max() == 0
    assert values[:, 4:].min() - values[:, :4].max() > 100
    assert strongest(torch.zeros(1, 3, 4, 4)).abs().max() == 0


def test_fit_finds_a_linear_map() -> None:
    truth = Factors(((0.5, -0.25, 0.125), (-0.3, 0.2, 0.1), (0.0, 0.4, -0.2)), (0.1, -0.2, 0.3))
    latents = torch.randn(4, 3, 6, 5)
    pictures = truth(latents).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    found = fit(latents, pictures)
    assert np.allclose(found.channels, truth.channels, atol=1e-6) and np.allclose(found.bias, truth.bias, atol=1e-6)


@torch.no_grad()
def test_fitted_factors_show_photographs(shared: Path) -> None:
    """On the latent space of TAEF2: fitted on five subjects, they show the sixth better than its mean colour does."""
    tiny, folder = taef2(shared), shared / "data/dreambooth_mini"
    known = [photograph(path, 128)[0] for path in sorted(folder.glob("*/*.jpg")) if path.parent.name != "rc_car"]
    found = fit([tiny.encode(picture[None]).mean[0] for picture in known], known)
    shown, plain = [], []
    for path in sorted((folder / "rc_car").glob("*.jpg")):
        picture = photograph(path, 256)
        small = F.avg_pool2d(picture, 8)
        shown.append(psnr(found(tiny.encode(picture).mean).clamp(-1, 1), small))
        plain.append(psnr(small.mean(dim=(2, 3), keepdim=True).expand_as(small), small))
    assert np.mean(shown) > np.mean(plain) + 2  # dB; 18 against 15


@torch.no_grad()
def test_a_tiny_autoencoder_shows_whole_pictures() -> None:
    tiny = TinyAutoencoder(TinyAutoencoderConfig(width=8)).eval()
    latents = torch.randn(2, 4, 4, 6)
    first, _ = decoded(latents, tiny, CPU)
    expected = (tiny.decode(latents).clamp(-1, 1) + 1) * 127.5
    assert first.size == (48, 32)
    assert np.abs(np.asarray(first).transpose(2, 0, 1) - expected[0].numpy()).max() <= 0.51


def test_half_precision_is_read() -> None:
    assert preview(torch.randn(1, 4, 4, 4, dtype=torch.bfloat16), "sdxl")[0].size == (4, 4)


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="got latents of 16 channels, expected 4"):
        preview(torch.zeros(1, 16, 2, 2), "sd1")
    with pytest.raises(NonFiniteError, match="preview"):
        preview(torch.full((1, 4, 2, 2), torch.nan), "sd1")
    with pytest.raises(NonFiniteError, match="preview"):
        decoded(torch.full((1, 4, 2, 2), torch.nan), TinyAutoencoder(TinyAutoencoderConfig(width=8)), CPU)
    with pytest.raises(ArgumentError, match="got 2 latents and 1 pictures"):
        fit(torch.zeros(2, 4, 2, 2), torch.zeros(1, 3, 16, 16))
