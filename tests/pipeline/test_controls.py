"""ControlNets from files: every published form is told by its keys, runs as diffusers runs it, and is refused for another family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import unnoise
from peers import tiny
from unnoise.checkpoints import keys
from unnoise.checkpoints.layouts import controlnet, diffusers
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import ArgumentError, FileError
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNet, MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig

SD1, SD2 = UNetConfig(), UNetConfig(heads=8, head_width=64, context_width=1024, linear_projection=True)
_XL: dict[str, Any] = {"head_width": 64, "linear_projection": True, "context_width": 2048, "pooled_width": 2816}
SDXL = UNetConfig(widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, **_XL)
MEDIUM, LARGE = MMDiTConfig(depth=12), MMDiTConfig(width=2432, depth=19, heads=38)
JOINT = MMDiTControlNetConfig(MMDiTConfig(depth=6))


def meta(network: Callable[[Any], nn.Module], config: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return network(config).state_dict()


@pytest.mark.parametrize("unet", [SD1, SD2, SDXL], ids=["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("prefix", ["control_model.", "", "control_"])
def test_lllyasviels_files_of_published_sizes(unet: UNetConfig, prefix: str) -> None:
    config = ControlNetConfig(unet)
    stored = keys.write(controlnet.numbered_control(config), meta(ControlNet, config))
    assert {"input_hint_block.14.weight", "zero_convs.0.0.bias", "middle_block_out.0.weight", "input_blocks.4.0.in_layers.2.weight"} <= set(
        stored
    )
    part = controlnet.part(Weights.open({prefix + key: value for key, value in stored.items()}), {}, {})
    assert part is not None and part.config == config
    part.check()


@pytest.mark.parametrize(("unet", "family"), [(SD1, "sd1"), (SD2, "sd2"), (SDXL, "sdxl")])
def test_diffusers_files_of_published_sizes(unet: UNetConfig, family: str) -> None:
    """Without a config.json, as people keep a single file."""
    config = ControlNetConfig(unet)
    stored = keys.write(diffusers.unet({}), meta(ControlNet, config))
    part = controlnet.part(Weights.open(stored), {}, {})
    assert part is not None and part.config == config and controlnet.family(part.config) == family
    part.check()


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (MMDiTControlNetConfig(MEDIUM, "2b"), controlnet.stability),
        (MMDiTControlNetConfig(LARGE, "8b"), controlnet.stability),
        (MMDiTControlNetConfig(LARGE, "8b"), controlnet.diffusers_mmdit),
        (JOINT, controlnet.diffusers_mmdit),
    ],
    ids=["2b", "8b", "diffusers-8b", "joint"],
)
def test_files_of_stable_diffusion_3(config: MMDiTControlNetConfig, layout: Any) -> None:
    stored = keys.write(layout(config), meta(MMDiTControlNet, config))
    if layout is controlnet.stability:
        stored["control_type"] = torch.tensor(1, dtype=torch.int32)
        if config.form == "8b":  # its own patches, which nothing reads
            stored["pos_embed.proj.weight"] = torch.empty(2432, 16, 2, 2, device="meta")
            stored["pos_embed.proj.bias"] = torch.empty(2432, device="meta")
    weights = Weights.open(stored)
    part = controlnet.part(weights, {}, {})
    assert part is not None and part.config == config and controlnet.family(part.config) == "sd3"
    part.check()
    assert controlnet.kind(weights) == ("canny" if layout is controlnet.stability else "")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_controlnet", "Control-LoRA"),
        ("lllite_unet_x", "LLLite"),
        ("task_embedding", "union"),
        ("body.0.block1.weight", "T2I-Adapter"),
    ],
)
def test_other_kinds_of_control_are_named(tmp_path: Path, key: str, kind: str) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match=kind):
        unnoise.load_control(tmp_path / "x.safetensors")


def test_what_is_no_control_is_said(tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match=r"is no ControlNet: 1 tensors such as some\.weight"):
        unnoise.load_control(tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def peers() -> Any:
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def sd1(shared: Path, peers: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """(diffusers' pipeline, its ControlNet, the folder of both)"""
    folder = tmp_path_factory.mktemp("sd1")
    pipe = tiny.saved("sd1", shared, folder / "model")
    net = peers.ControlNetModel.from_unet(pipe.unet).eval()
    tiny._randomised(net)
    net.save_pretrained(folder / "control")
    return pipe, net, folder


def hint() -> Image.Image:
    return Image.effect_mandelbrot((128, 128), (-2, -1, 1, 1), 60).convert("RGB")


ASKED: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 128, "width": 128}
OURS: dict[str, Any] = {
    **ASKED,
    "sampler": "ddim",
    "spacing": "leading",
    "spacing_options": {"offset": 1, "ending": "first"},
    "safety": "off",
}


@torch.no_grad()
def test_generate_is_what_diffusers_pipeline_gives(peers: Any, sd1: tuple[Any, Any, Path]) -> None:
    pipe, net, folder = sd1
    model = unnoise.load(folder / "model", dtype="float32")
    control = unnoise.load_control(folder / "control", model=model)
    assert control.family == "sd1" and not control.latents
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    with_net = peers.StableDiffusionControlNetPipeline(**parts, controlnet=net, requires_safety_checker=False)
    with_net.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    asked = {"prompt": "a red apple", "negative_prompt": "blue", "latents": noise, **ASKED}
    theirs = with_net(**asked, image=hint(), controlnet_conditioning_scale=0.8, output_type="latent").images
    shown = unnoise.Control(control, hint(), scale=0.8)
    mine = model.generate("a red apple", negative_prompt="blue", latents=noise, control=shown, output_type="latent", **OURS).latents
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())
    plain = model.generate("a red apple", negative_prompt="blue", latents=noise, output_type="latent", **OURS).latents
    assert (plain - mine).abs().max() > 0.01 * mine.abs().max()
    off = unnoise.Control(control, hint(), scale=0.0)
    assert torch.equal(
        model.generate("a red apple", negative_prompt="blue", latents=noise, control=off, output_type="latent", **OURS).latents, plain
    )


def test_nets_of_another_family_are_refused_before_anything_runs(
    sd1: tuple[Any, Any, Path], peers: Any, shared: Path, tmp_path: Path
) -> None:
    _, _, folder = sd1
    tiny.saved("sdxl", shared, tmp_path)
    sdxl = unnoise.load(tmp_path, dtype="float32")
    with pytest.raises(ArgumentError, match="got a ControlNet of sd1 for sdxl: "):
        unnoise.load_control(folder / "control", model=sdxl)
    control = unnoise.load_control(folder / "control")
    with pytest.raises(ArgumentError, match="got a ControlNet of sd1 for sdxl: "):
        sdxl.generate("x", control=unnoise.Control(control, hint()))
    with pytest.raises(ArgumentError, match="as the net of a control: expected what unnoise"):
        sdxl.generate("x", control=unnoise.Control(3, hint()))
    with pytest.raises(FileError, match=r"no file none/control\.safetensors: expected a safetensors file"):
        sdxl.generate("x", control=unnoise.Control("none/control.safetensors", hint()))


def test_a_net_that_is_shown_latents(shared: Path, peers: Any, tmp_path: Path) -> None:
    """Stable Diffusion 3's: off at scale 0, heard at 1. A net without pooled text saw latents that were not shifted."""
    tiny.saved("sd3", shared, tmp_path / "model")
    sizes: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
    sizes |= {"joint_attention_dim": 96, "caption_projection_dim": 32, "pooled_projection_dim": 80, "pos_embed_max_size": 16}
    model = unnoise.load(tmp_path / "model", dtype="float32")
    asked: dict[str, Any] = {
        "num_inference_steps": 2,
        "height": 64,
        "width": 64,
        "seed": 1,
        "output_type": "latent",
        "max_sequence_length": 16,
    }
    plain = model.generate("a red apple", **asked).latents
    for zeros in (False, True):
        peer = peers.SD3ControlNetModel(**sizes, qk_norm="rms_norm", force_zeros_for_pooled_projection=zeros)
        tiny._randomised(peer)
        peer.save_pretrained(tmp_path / f"net{zeros}")
        control = unnoise.load_control(tmp_path / f"net{zeros}", model=model)
        assert control.latents and isinstance(control.network, MMDiTControlNet) and control.network.config.zero_pooled is zeros
        off, on = (
            model.generate("a red apple", control=unnoise.Control(control, hint(), scale=scale), **asked).latents for scale in (0.0, 1.0)
        )
        assert torch.equal(off, plain) and (on - plain).abs().max() > 1e-3 * plain.abs().max()
        stage, picture = model.networks["autoencoder"], torch.rand(1, 3, 64, 64)
        moved = stage.encode(2 * picture - 1).mean * 1.5305 - (0 if zeros else 0.0609 * 1.5305)
        torch.testing.assert_close(control.shown(model.networks, picture), moved, rtol=1e-5, atol=1e-5)
