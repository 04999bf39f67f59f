"""Offline is offline: with sockets blocked a folder and a single file of each family load and draw. The package has what they need."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import unnoise
from networks import golden, golden_pixels
from peers.families import PROMPT, Pairs, half, once, picture
from unnoise.networks.text import CLIPTextEncoder
from unnoise.pipeline.model import Model

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HOW: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "output_type": "pt"}
# What the tiny networks' shapes do not show, and published ones have as their family has
HINTS: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {"network": {"heads": 4}, "text_encoder": {"heads": 2}},
    "sd2": {"network": {"head_width": 16}, "text_encoder": {"heads": 2}},
    "sdxl": {"network": {"head_width": 16}, "text_encoder": {"heads": 2}, "text_encoder_2": {"heads": 2}},
    "sd3": {"network": {"heads": 2}, "text_encoder": {"heads": 2}, "text_encoder_2": {"heads": 2, "activation": "gelu"}},
}
HINTS |= {"inpainting": HINTS["sd1"], "lcm": HINTS["sd1"], "refiner": HINTS["sd2"]}


@pytest.fixture(scope="module")
def pairs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return once(shared, tmp_path_factory)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No socket opens and no name is looked up; whoever tried is noted, also where the error was swallowed."""
    tried: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        tried.append(str(arguments))
        raise OSError("sockets are blocked in this test")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tried


def arguments(name: str) -> dict[str, Any]:
    inpaints = {"image": picture(), "mask_image": half()} if name == "inpainting" else {}
    return {**HOW, "height": 128, "width": 128, **inpaints}


@pytest.mark.parametrize("name", HINTS)
def test_a_folder(name: str, pairs: Pairs, blocked: list[str]):
    model = unnoise.load(pairs(name).folder, dtype="float32", device="cpu")
    assert torch.isfinite(model.generate(PROMPT, **arguments(name)).images).all()
    assert blocked == []


@pytest.mark.parametrize("name", HINTS)
def test_a_single_file(name: str, pairs: Pairs, blocked: list[str], tmp_path: Path):
    """Of the same networks: it draws what the folder draws, so nothing that the folder said was missed."""
    folder, file = _as_published(pairs(name).model), tmp_path / "model.safetensors"
    folder.save(file, layout="ldm")
    model = unnoise.load(file, dtype="float32", device="cpu", config=HINTS[name])
    assert set(model.tokenizers) == {place for place in folder.networks if place.startswith("text_encoder")}
    how = {**arguments(name), "output_type": "latent", "sampler": "euler", "spacing": "trailing", "guidance_scale": 4.0}
    mine, peer = model.generate(PROMPT, **how).latents, folder.generate(PROMPT, **how).latents
    assert torch.allclose(mine, peer, rtol=0, atol=1e-5 * float(peer.abs().max()))
    assert torch.isfinite(model.generate(PROMPT, **arguments(name)).images).all()
    assert blocked == []


def _as_published(model: Model) -> Model:
    """The first text encoder of Stable Diffusion 3's file has no projection; folders have one."""
    if model.spec.conditioning != "sd3":
        return model
    text = replace(model.spec.networks["text_encoder"], projection=0)
    encoder = CLIPTextEncoder(text).eval()
    encoder.load_state_dict(model.networks["text_encoder"].state_dict(), strict=False)
    networks = model.networks.replaced({"text_encoder": encoder}, {"text_encoder": text})
    return Model(model.spec.with_networks({"text_encoder": text}), model.tokenizers, networks)


# The authors' own files of models of pixels, of classes and without conditions, tiny

PIXELS = ["ddpm/unet", "adm/iddpm", "consistency/unet", "edm/ddpmpp", "edm/ncsnpp", "edm/dhariwal", "score_sde/ddpmpp", "score_sde/ncsnpp"]


@pytest.mark.parametrize("fixture", [*PIXELS, "dit/dit_patch2", "ldm/cin", "ldm/uncond"])
def test_a_file_of_the_authors(fixture: str, shared: Path, blocked: list[str]):
    folder = shared / "golden" / fixture
    config = {"network": golden_pixels.hints(golden_pixels.arguments(golden.read(folder)[2]))}
    model = unnoise.load(folder / "weights.safetensors", dtype="float32", device="cpu", config=config)
    side = 16 * model.spec.factor
    how: dict[str, Any] = {**HOW, "height": side, "width": side, "guidance_scale": 1.0}
    if "autoencoder" not in model.networks and model.spec.first_stage:
        how["output_type"] = "latent"
    if model.spec.conditioning.startswith("label"):
        how["class_labels"] = 1
    assert torch.isfinite(model.generate(**how).images).all()
    assert blocked == []
