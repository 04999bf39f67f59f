"""ControlNets in their authors' files: name tables, and the networks that were recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from networks import golden, golden_sd3
from networks.golden import Tensors
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.controlnet_mmdit import Form, MMDiTControlNet, MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.networks.unet import UNet, UNetConfig, kept_widths

LDM = UNetConfig(widths=(32, 32), depths=(0, 1), **golden.LATENTS)  # of controlnet/control_ldm


def control_ldm(config: ControlNetConfig) -> dict[str, str]:
    """The names of lllyasviel's ControlNets, beside those of the numbered U-Net: our module's path, theirs."""
    names = golden.unet_ldm(config.unet)
    convs = [f"controlnet_cond_embedding.{part}" for part in ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out")]
    names |= {ours: f"input_hint_block.{2 * i}" for i, ours in enumerate(convs)}
    names |= {f"controlnet_down_blocks.{k}": f"zero_convs.{k}.0" for k in range(len(kept_widths(config.unet)))}
    return names | {"controlnet_mid_block": "middle_block_out.0"}


def ldm(folder: Path) -> tuple[Tensors, dict, UNet, ControlNet]:
    """(inputs and outputs, config, the U-Net, its ControlNet)"""
    io, weights, record = golden.read(folder)

    def under(prefix: str) -> Tensors:
        return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    unet, net = UNet(LDM).eval(), ControlNet(ControlNetConfig(LDM)).eval()
    golden.translate(unet, under("model.diffusion_model."), golden.unet_ldm(LDM), golden.INSIDE_LDM)
    golden.translate(net, under("control_model."), control_ldm(net.control), golden.INSIDE_LDM)
    return io, record, unet, net


# Stability's ControlNets of SD3: authors' key, ours. Their blocks have our names already.
STABILITY = {
    r"^time_text_embed\.timestep_embedder\.linear_1\.": "t_embedder.mlp.0.",
    r"^time_text_embed\.timestep_embedder\.linear_2\.": "t_embedder.mlp.2.",
    r"^time_text_embed\.text_embedder\.linear_1\.": "y_embedder.mlp.0.",
    r"^time_text_embed\.text_embedder\.linear_2\.": "y_embedder.mlp.2.",
    r"^pos_embed\.": "x_embedder.",
}


def stability(weights: Tensors, form: Form) -> dict[str, Tensor]:
    """Their tensors by our names. What the 8b form has and does not use: its own patches; and the kind of hint is a number, no weight."""
    state = {}
    for key, value in weights.items():
        for pattern, ours in STABILITY.items():
            key = re.sub(pattern, ours, key)
        unused = key == "control_type" or (form == "8b" and key.startswith("x_embedder."))
        state |= {} if unused else {key: value.float()}
    return state


def sd3(folder: Path) -> tuple[golden_sd3.Golden, MMDiT, MMDiTControlNet]:
    if not folder.is_dir():
        pytest.skip(f"no golden tensors sd3/{folder.name}")
    record = json.loads((folder / "config.json").read_text())
    _, mmdit = golden_sd3.read(folder.parent / record["base"])
    sizes = record["hyperparameters"]
    form: Form = "8b" if sizes["using_8b_controlnet"] else "2b"
    weights = load_file(folder.parent / "controlnet_2b.safetensors")
    if form == "8b":
        weights |= load_file(folder.parent / "controlnet_8b_changed.safetensors")
    width = sizes["heads"] * sizes["head_dim"]
    own = MMDiTConfig(width=width, depth=sizes["num_layers"], heads=sizes["heads"], pooled_width=sizes["pooled_projection_size"])
    net = MMDiTControlNet(MMDiTControlNetConfig(own, form)).eval()
    net.load_state_dict(stability(weights, form))
    return golden_sd3.Golden(load_file(folder / "io.safetensors"), record), mmdit, net
