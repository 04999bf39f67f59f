"""Files of one network alone, and the published sizes of latent models, told from their keys and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import unnoise
from peers import tiny
from unnoise.checkpoints import keys, recognise
from unnoise.checkpoints.found import Part
from unnoise.checkpoints.layouts import diffusers, first_stage, texts
from unnoise.errors import FileError
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.t5 import T5Config, T5Encoder
from unnoise.networks.taesd import TinyAutoencoder, TinyAutoencoderConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder


def saved(network: nn.Module, layout: Any, path: Path, prefix: str = "") -> Path:
    save_file({prefix + key: value.contiguous() for key, value in keys.write(layout, network.state_dict()).items()}, path)
    return path


def assert_loaded(part: Part, network: nn.Module) -> None:
    mine, expected = part.load().state_dict(), network.state_dict()
    assert mine.keys() == expected.keys() and all(torch.equal(mine[name], value) for name, value in expected.items())


STAGE = AutoencoderConfig(widths=(32, 64), blocks=1)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_autoencoders_of_both_names(tmp_path: Path, prefix: str) -> None:
    network = Autoencoder(STAGE)
    for layout in (first_stage.autoencoder(STAGE), diffusers.autoencoder({})):
        part = recognise.part(saved(network, layout, tmp_path / "vae.safetensors", prefix), "autoencoder")
        assert part.config == STAGE
        assert_loaded(part, network)


def tiny_files(network: TinyAutoencoder, folder: Path) -> tuple[Path, Path]:
    """The authors' two files: (decoder, encoder)"""
    paths = tuple(folder / f"taesd_{half}.safetensors" for half in ("decoder", "encoder"))
    for path, half in zip(paths, (network.decoder, network.encoder), strict=True):
        assert half is not None
        save_file(half.state_dict(), path)
    return paths  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("pooled", [False, True])
def test_tiny_autoencoders(tmp_path: Path, pooled: bool) -> None:
    network = TinyAutoencoder(TinyAutoencoderConfig(16, pooled, 8))
    decoder, encoder = tiny_files(network, tmp_path)
    assert_loaded(recognise.part(decoder, "autoencoder"), network)
    with pytest.raises(FileError, match="is the encoder of a tiny autoencoder: give its decoder"):
        recognise.part(encoder, "autoencoder")
    encoder.unlink()
    alone = recognise.part(decoder, "autoencoder")
    assert alone.config == TinyAutoencoderConfig(16, pooled, 8, encodes=False)
    decoded = alone.load()
    with pytest.raises(unnoise.errors.ArgumentError, match="has its decoder alone"):
        decoded.encode(torch.zeros(1, 3, 8, 8))  # pyright: ignore[reportCallIssue]


def test_diffusers_tiny_autoencoder(tmp_path: Path) -> None:
    peer = pytest.importorskip("diffusers").AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    peer.eval().save_pretrained(tmp_path / "taesd")
    for path in (tmp_path / "taesd", tmp_path / "taesd" / "diffusion_pytorch_model.safetensors"):
        network = recognise.part(path, "autoencoder").load()
        z = torch.randn(1, 4, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(network.decode(z), peer.decode(z).sample, rtol=1e-5, atol=1e-5)  # pyright: ignore[reportCallIssue]


def test_real_tiny_autoencoder(shared: Path, tmp_path: Path) -> None:
    for half in ("encoder", "decoder"):
        weights = torch.load(shared / f"weights/taesd/taef2_{half}.pth", weights_only=True)
        save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / f"taef2_{half}.safetensors")
    part = recognise.part(tmp_path / "taef2_decoder.safetensors", "autoencoder")
    assert part.config == TinyAutoencoderConfig(32, True)
    part.check()


CLIP = CLIPTextConfig(vocab=64, length=8, width=64, layers=2, heads=1, mlp=96, end_token=63)
BIG = CLIPTextConfig(vocab=64, length=8, width=832, layers=1, heads=13, mlp=96, activation="gelu", projection=12, end_token=63)
T5 = T5Config(vocab=64, width=32, layers=2, heads=2, head_width=16, mlp=48)


def test_text_encoders(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    for config, layout, place in (
        (CLIP, texts.clip(CLIP), "text_encoder"),
        (CLIP, texts.clip(CLIP, bare=True), "text_encoder"),
        (BIG, texts.clip(BIG), "text_encoder_2"),
        (BIG, texts.open_clip(BIG), "text_encoder_2"),
    ):
        network = CLIPTextEncoder(config)
        part = recognise.part(saved(network, layout, path), place)
        assert part.config == config
        assert_loaded(part, network)
    network = T5Encoder(T5)
    part = recognise.part(saved(network, texts.t5({"shared.weight": (64, 32)}), path), "text_encoder_3")
    assert part.config == T5
    assert_loaded(part, network)
    with pytest.raises(FileError, match="holds no text_encoder: "):
        recognise.part(path, "text_encoder")


def test_clip_of_openai_with_its_eye(tmp_path: Path) -> None:
    """The whole CLIP, as it is published: the half that sees pictures and the projection are left."""
    network = CLIPTextEncoder(CLIP)
    stored = {
        **network.state_dict(),
        "vision_model.x": torch.zeros(1),
        "visual_projection.weight": torch.zeros(1),
        "logit_scale": torch.zeros(()),
    }
    save_file({**stored, "text_projection.weight": torch.zeros(12, 64)}, tmp_path / "model.safetensors")
    assert_loaded(recognise.part(tmp_path / "model.safetensors", "text_encoder"), network)


@pytest.fixture(scope="module")
def sd1(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("sd1")
    tiny.saved("sd1", shared, folder)
    return folder


def test_an_old_merge_has_its_text_encoder(sd1: Path, tmp_path: Path) -> None:
    """Merges of 2022 lost "text_model." from the keys of the text encoder."""
    whole, merged = tmp_path / "whole.safetensors", tmp_path / "merged.safetensors"
    unnoise.load(sd1, dtype="float32").save(whole, layout="ldm")
    named, bare = "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."
    save_file({key.replace(named, bare): value for key, value in load_file(whole).items()}, merged)
    parts = [recognise.model(path, {"network": {"heads": 4}}).parts["text_encoder"] for path in (whole, merged)]
    assert_loaded(parts[1], parts[0].load())


ASKED: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 64, "width": 64, "safety": "off", "seed": 1}


def test_a_tiny_autoencoder_in_a_model(sd1: Path, tmp_path: Path) -> None:
    network = TinyAutoencoder(TinyAutoencoderConfig(width=8))
    decoder, _ = tiny_files(network, tmp_path)
    model = unnoise.load(sd1, dtype="float32", parts={"autoencoder": decoder})
    made = model.generate("x", output_type="pt", **ASKED)
    with torch.no_grad():
        expected = ((network.decode(made.latents) + 1) / 2).clamp(0, 1)
    assert torch.equal(made.images, expected)  # pyright: ignore[reportArgumentType]
    model.generate("x", image=made.images, strength=1.0, **ASKED)
    whole = unnoise.load(sd1, dtype="float32", parts={"preview": decoder})
    (state,) = whole.stream("x", **ASKED)
    assert state.preview()[0].size == (64, 64) and whole.spec.first_stage is not None
    assert unnoise.load(sd1, dtype="float32").preview(state.x0)[0].size == (8, 8)


def test_parts_that_do_not_fit_are_refused(sd1: Path, tmp_path: Path) -> None:
    decoder, _ = tiny_files(TinyAutoencoder(TinyAutoencoderConfig(16, width=8)), tmp_path)
    for place in ("autoencoder", "preview"):
        with pytest.raises(FileError, match="has 16 latent channels, and sd1 has 4 latent channels"):
            unnoise.load(sd1, parts={place: decoder})
    vae = saved(Autoencoder(STAGE), first_stage.autoencoder(STAGE), tmp_path / "vae.safetensors")
    with pytest.raises(FileError, match="is a whole autoencoder: a preview is decoded by a tiny one"):
        unnoise.load(sd1, parts={"preview": vae})
    clip = saved(CLIPTextEncoder(CLIP), texts.clip(CLIP), tmp_path / "clip.safetensors")
    with pytest.raises(FileError, match="is a text encoder of width 64, sd1 has one of 32"):
        unnoise.load(sd1, parts={"text_encoder": clip})
    assert load_file(clip)  # it is whole
