"""The VQ autoencoder against the authors' own outputs, and what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from networks import golden, golden_latents
from unnoise.errors import ArgumentError
from unnoise.networks import vq
from unnoise.networks.vq import Codebook, VQAutoencoder, VQConfig

TINY = VQConfig(codes=64, widths=(32, 32), blocks=1)  # of ldm/cin
OPTIONS = {True: "vq.image", False: "vq.image_noquant"}


def cin(folder: Path) -> tuple[golden.Tensors, VQAutoencoder, dict]:
    opened = golden_latents.read(folder / "golden/ldm/cin")
    assert opened.found.spec.first_stage == TINY
    return opened.io, golden_latents.part(opened, "autoencoder"), opened.record


def test_encode_does_not_quantise(shared: Path) -> None:
    io, model, record = cin(shared)
    found = model.encode(io["image"])
    golden.assert_recorded(io, record, {"vq.z": found.mean})
    assert torch.equal(found.sample(torch.randn_like(found.mean)), found.mean)


def test_codes(shared: Path) -> None:
    io, model, record = cin(shared)
    assert torch.equal(model.quantize.indices(io["z"]).flatten(), io["vq.indices"])
    golden.assert_recorded(io, record, {"vq.quantized": model.quantize(io["z"])})


@pytest.mark.parametrize("quantize", OPTIONS)
def test_decode(shared: Path, quantize: bool) -> None:
    io, model, record = cin(shared)
    golden.assert_recorded(io, record, {OPTIONS[quantize]: model.decode(io["z"], quantize=quantize)})


def lively() -> VQAutoencoder:
    model = VQAutoencoder(TINY).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    return model.requires_grad_(False)


def test_tiles_are_the_whole() -> None:
    model, x, z = lively(), torch.rand(1, 3, 48, 64) * 2 - 1, torch.randn(1, 3, 24, 32)
    torch.testing.assert_close(model.encode(x, tile=8).mean, model.encode(x).mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(z, tile=8), model.decode(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cells", [1, 5, 4096])
def test_codes_are_the_nearest_whatever_is_compared_at_once(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vq, "CELLS", cells)
    book, z = Codebook(16, 3).double(), torch.randn(2, 3, 4, 5)
    torch.nn.init.normal_(book.embedding.weight)
    distances = (z.movedim(1, -1)[..., None, :] - book.embedding.weight).norm(dim=-1)
    assert torch.equal(book.indices(z), distances.argmin(-1))


def test_a_code_stands_for_itself_in_half_precision() -> None:
    book = Codebook(64, 3).bfloat16()
    torch.nn.init.normal_(book.embedding.weight)
    z: Tensor = book.embedding.weight[None].movedim(2, 1)[..., None]  # (1, 3, 64, 1)
    assert torch.equal(book.indices(z).flatten(), torch.arange(64)) and torch.equal(book(z), z)


def test_surface() -> None:
    """That of `Autoencoder`: sizes, scales, refusals."""
    config = VQConfig(scale=2.0, shift=0.5, codes=8, widths=(32, 32, 32), blocks=1)
    model, z = VQAutoencoder(config), torch.randn(1, 3, 4, 4)
    assert (config.factor, config.latent_channels) == (4, 3)
    assert model.encode(torch.zeros(2, 3, 8, 12)).mean.shape == (2, 3, 2, 3) and model.decode(z).shape == (1, 3, 16, 16)
    torch.testing.assert_close(model.scaled(z), (z - 0.5) * 2)
    torch.testing.assert_close(model.unscaled(model.scaled(z)), z)
    with pytest.raises(ArgumentError, match="got a picture of 10x8, expected multiples of 4"):
        model.encode(torch.zeros(1, 3, 8, 10))
