"""The tiny autoencoders against the authors' outputs, a photograph, and tiles against the picture in one piece."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from networks import golden
from unnoise.errors import ArgumentError
from unnoise.networks.taesd import TinyAutoencoder, TinyAutoencoderConfig, named


def read(folder: Path) -> tuple[dict[str, Tensor], golden.Tensors, dict]:
    """Weights under our names, inputs and outputs, the record; the larger kinds replace some tensors of the 4-channel files."""
    weights = {}
    for half in ("encoder", "decoder"):
        changed = folder.parent / f"{folder.name}_{half}_changed.safetensors"
        weights |= named(load_file(folder.parent / f"taesd_{half}.safetensors"), half)
        weights |= named(load_file(changed), half) if changed.is_file() else {}
    record = json.loads((folder / "config.json").read_text())
    return {key: value.float() for key, value in weights.items()}, load_file(folder / "io.safetensors"), record


@pytest.mark.parametrize(("kind", "channels", "pooled"), [("taesd", 4, False), ("taesd3", 16, False), ("taef2", 32, True)])
@torch.no_grad()
def test_the_authors_outputs(shared: Path, kind: str, channels: int, pooled: bool) -> None:
    weights, io, record = read(shared / "golden/taesd" / kind)
    config = TinyAutoencoderConfig.of(weights)
    assert config == TinyAutoencoderConfig(channels, pooled)
    tiny = TinyAutoencoder(config).eval()
    tiny.load_state_dict(weights)
    latents = tiny.encode(io["in.image01"] * 2 - 1).mean
    mine = {
        "out.latent": latents,
        "out.decoded": (tiny.decode(io["in.latent_in"]) + 1) / 2,
        "out.roundtrip": (tiny.decode(latents) + 1) / 2,
    }
    for name, tensor in mine.items():
        about = record["tensors"][name]
        golden.assert_close(tensor, io[name], about["max_abs_float32_minus_float64"] / about["rms"])


def photograph(path: Path, side: int = 512) -> Tensor:
    """(1, 3, side, side) in [-1, 1], cropped to a square."""
    with Image.open(path) as image:
        square = min(image.size)
        left, top = (image.width - square) // 2, (image.height - square) // 2
        picture = image.convert("RGB").crop((left, top, left + square, top + square)).resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture) / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return (10 * torch.log10(4 / (a - b).square().mean())).item()


def taef2(shared: Path) -> TinyAutoencoder:
    folder = shared / "weights/taesd"
    halves = [named(torch.load(folder / f"taef2_{half}.pth", weights_only=True), half) for half in ("encoder", "decoder")]
    weights = {key: value.float() for half in halves for key, value in half.items()}
    tiny = TinyAutoencoder(TinyAutoencoderConfig.of(weights)).eval()
    tiny.load_state_dict(weights)
    return tiny


@torch.no_grad()
def test_a_photograph_comes_back(shared: Path) -> None:
    tiny, picture = taef2(shared), photograph(shared / "data/dreambooth_mini/dog/00.jpg")
    assert psnr(tiny.decode(tiny.encode(picture).mean).clamp(-1, 1), picture) > 31


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_tiles_have_no_seams(pooled: bool) -> None:
    tiny = TinyAutoencoder(TinyAutoencoderConfig(pooled=pooled, width=16)).eval()
    picture, latents = torch.randn(1, 3, 328, 176), 2 * torch.randn(2, 4, 41, 22)
    for mine, whole in (
        (tiny.encode(picture, tile=8).mean, tiny.encode(picture).mean),
        (tiny.decode(latents, tile=8), tiny.decode(latents)),
    ):
        assert (mine - whole).abs().max() < 1e-5 * (whole.max() - whole.min())


def test_the_layers_are_small() -> None:
    """The authors' statement: 1.22 million parameters a half."""
    tiny = TinyAutoencoder(TinyAutoencoderConfig())
    assert [sum(p.numel() for p in half.parameters()) for half in (tiny.encoder, tiny.decoder)] == [1_222_532, 1_222_531]


def test_far_latents_are_clamped() -> None:
    tiny = TinyAutoencoder(TinyAutoencoderConfig(width=8)).eval()
    with torch.no_grad():
        torch.testing.assert_close(tiny.decode(torch.full((1, 4, 2, 2), 1e3)), tiny.decode(torch.full((1, 4, 2, 2), 1e6)))


def test_latents_are_already_scaled() -> None:
    tiny, z = TinyAutoencoder(TinyAutoencoderConfig(width=8)), torch.randn(1, 4, 2, 2)
    assert torch.equal(tiny.scaled(z), z) and torch.equal(tiny.unscaled(z), z)


def test_the_names_of_diffusers_are_read() -> None:
    tiny = TinyAutoencoder(TinyAutoencoderConfig(width=8))
    theirs = {}
    for key, value in tiny.state_dict().items():
        half, number, rest = key.split(".", 2)
        theirs[f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}"] = value
    TinyAutoencoder(TinyAutoencoderConfig(width=8)).load_state_dict(named(theirs))


def test_one_half_tells_the_sizes() -> None:
    tiny = TinyAutoencoder(TinyAutoencoderConfig(16, True, 8))
    for half in ("encoder", "decoder"):
        weights = {key: value for key, value in tiny.state_dict().items() if key.startswith(half)}
        assert TinyAutoencoderConfig.of(weights) == tiny.config


def test_strangers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="expected those of a tiny autoencoder"):
        TinyAutoencoderConfig.of(nn.Linear(2, 2).state_dict())
    with pytest.raises(ArgumentError, match="60x64, expected multiples of 8"):
        TinyAutoencoder(TinyAutoencoderConfig(width=8)).encode(torch.zeros(1, 3, 64, 60))
