"""Tiny models for the tests of adapters: those of the golden fixtures, and others of the published families' shapes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from unnoise.checkpoints import keys
from unnoise.checkpoints.layouts import numbered
from unnoise.checkpoints.layouts.lora_names import diffusers_unet
from unnoise.checkpoints.weights import Weights
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig

Networks = dict[str, nn.Module]
SD15 = UNetConfig(widths=(8, 16, 16, 24), groups=4, heads=4, context_width=24)
SDXL = UNetConfig(
    widths=(8, 16, 32), depths=(0, 1, 2), mid_depth=2, groups=4, head_width=8, context_width=40, linear_projection=True, pooled_width=48
)
CLIP_L = CLIPTextConfig(vocab=120, width=24, mlp=48, layers=2, heads=3)
CLIP_G = CLIPTextConfig(vocab=120, width=16, mlp=64, layers=2, heads=2, activation="gelu", projection=24)


def sd15(folder: Path) -> Networks:
    weights = Weights.open(folder / "sd15_unet.safetensors")
    unet = UNet(SD15)
    state = {name: weights.read(_theirs(name), torch.float32) for name in unet.state_dict()}
    unet.load_state_dict({name: value.reshape(unet.state_dict()[name].shape) for name, value in state.items()})
    return {"network": unet.eval(), "text_encoder": text(folder / "sd15_text_encoder.safetensors", CLIP_L)}


def sdxl(folder: Path) -> Networks:
    weights = Weights.open(folder / "sdxl_unet.safetensors").prefixed("model.diffusion_model.")
    config = numbered.unet_config(weights.shapes, {"head_width": 8, "groups": 4})
    unet, layout = UNet(config), numbered.unet(config)
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    keys.check(layout, shapes, weights, "the fixture")
    unet.load_state_dict(dict(keys.read(layout, shapes, weights, torch.float32)))
    one, two = (text(folder / f"sdxl_text_encoder_{i}.safetensors", config) for i, config in ((1, CLIP_L), (2, CLIP_G)))
    return {"network": unet.eval(), "text_encoder": one, "text_encoder_2": two}


def text(path: Path, config: CLIPTextConfig) -> CLIPTextEncoder:
    weights, encoder = Weights.open(path), CLIPTextEncoder(config)
    encoder.load_state_dict({name: weights.read(name, torch.float32) for name in encoder.state_dict()})
    return encoder.eval()


def empty(*configs: UNetConfig | CLIPTextConfig) -> Networks:
    """Networks without memory, by place."""
    places = ("network", "text_encoder", "text_encoder_2")
    with torch.device("meta"):
        networks = (UNet(config) if isinstance(config, UNetConfig) else CLIPTextEncoder(config) for config in configs)
        return dict(zip(places, networks, strict=False))


def theirs(name: str) -> str:
    """diffusers' key of one of the U-Net's parameters."""
    return _theirs(name)


def _theirs(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{diffusers_unet(module)}.{leaf}"


def digest(networks: Networks) -> dict[str, bytes]:
    return {f"{place}.{name}": _bytes(value) for place, network in networks.items() for name, value in network.state_dict().items()}


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else bytes(str(value.item()), "ascii")


def ours(module: str) -> str:
    """Our module's path of a diffusers one, for the few names that the fixtures record."""
    for pattern, other in {r"\.to_out\.0$": ".to_out", r"\.ff\.net\.0\.proj$": ".ff.proj", r"\.ff\.net\.2$": ".ff.out"}.items():
        module = re.sub(pattern, other, module)
    return re.sub(r"\.(down|up)samplers\.0\.", r".\1sample.", module)
