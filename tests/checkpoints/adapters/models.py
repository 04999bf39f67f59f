"""Tiny models for the tests of adapters: those of the golden fixtures, and others of the published families' shapes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from unnoise.checkpoints import keys
from unnoise.checkpoints.adapters.names import Names
from unnoise.checkpoints.found import assign
from unnoise.checkpoints.layouts import diffusers, numbered
from unnoise.checkpoints.store.weights import Weights
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
    unet = _filled(UNet(SD15), diffusers.unet({}), Weights.open(folder / "sd15_unet.safetensors"))
    return {"network": unet, "text_encoder": text(folder / "sd15_text_encoder.safetensors", CLIP_L)}


def sdxl(folder: Path) -> Networks:
    weights = Weights.open(folder / "sdxl_unet.safetensors").prefixed("model.diffusion_model.")
    config = numbered.unet_config(weights.shapes, {"head_width": 8, "groups": 4})
    one, two = (text(folder / f"sdxl_text_encoder_{i}.safetensors", config) for i, config in ((1, CLIP_L), (2, CLIP_G)))
    return {"network": _filled(UNet(config), numbered.unet(config), weights), "text_encoder": one, "text_encoder_2": two}


def _filled(network: nn.Module, layout: keys.Layout, weights: Weights) -> nn.Module:
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    keys.check(layout, shapes, weights, "the fixture")
    for name, value in keys.read(layout, shapes, weights, torch.float32):
        assign(network, name, value)
    return network.eval()


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


def digest(networks: Networks) -> dict[str, bytes]:
    return {f"{place}.{name}": _bytes(value) for place, network in networks.items() for name, value in network.state_dict().items()}


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else bytes(str(value.item()), "ascii")


def find(networks: Networks, module: str) -> tuple[str, str]:
    """(place, our module's path) of a module as the fixtures name it."""
    named = module if module.startswith("text_encoder") else f"unet.{module}"
    target = Names(networks).find(re.sub(r"^text_encoder_?1\.", "text_encoder.", re.sub(r"^text_encoder2\.", "text_encoder_2.", named)))
    if target is None:
        raise KeyError(module)
    return target.place, target.module
