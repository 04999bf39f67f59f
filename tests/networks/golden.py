"""What tests share: golden tensors beside the repository, and authors' key layouts turned into ours by name tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unnoise.networks.unet import UNet, UNetConfig

Tensors = dict[str, Tensor]


def read(folder: Path) -> tuple[Tensors, Tensors, dict]:
    """(inputs and outputs, weights in float32, config)"""
    if not folder.is_dir():
        pytest.skip(f"no golden tensors {folder.parent.name}/{folder.name}")
    weights = {key: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
    return load_file(folder / "io.safetensors"), weights, json.loads((folder / "config.json").read_text())


def assert_close(mine: Tensor, golden: Tensor, floor: float = 1e-6) -> None:
    """Within ten times what float32 itself costs (`floor`, of the rms), as the golden tensors' README asks."""
    rms = golden.pow(2).mean().sqrt()
    torch.testing.assert_close(mine, golden, rtol=0, atol=(max(1e-5, 10 * floor) * rms).item())


def assert_recorded(io: Tensors, record: dict, mine: Tensors) -> None:
    """Each of these outputs is what was recorded under its name, as far as its own float32 floor goes."""
    for name, tensor in mine.items():
        assert_close(tensor, io[name], record["float32_vs_float64"][name])


def translate(model: nn.Module, weights: Tensors, prefixes: dict[str, str], renames: dict[str, str]) -> None:
    """Load authors' weights: every parameter's module path has a prefix in the table; `renames` are regular expressions on the rest."""
    used, state = set(), {}
    for key, value in model.state_dict().items():
        prefix = max((p for p in prefixes if key.startswith(p + ".")), key=len)
        rest = key.removeprefix(prefix)
        for pattern, other in renames.items():
            rest = re.sub(pattern, other, rest)
        theirs, _, part = (prefixes[prefix] + rest).partition("#")
        used.add(theirs)
        source = weights[theirs].chunk(3)["qkv".index(part)] if part else weights[theirs]
        state[key] = source.reshape(value.shape)
    assert used == set(weights), f"not used: {sorted(set(weights) - used)}"
    model.load_state_dict(state)


def heads_first(qkv: Tensor, heads: int) -> Tensor:
    """Rows (head, qkv, d), as the first ADM releases order them, to (qkv, head, d)."""
    return qkv.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def unet_ldm(config: UNetConfig) -> dict[str, str]:
    """The numbered blocks of guided-diffusion, latent-diffusion and SDXL."""
    names = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "class_embedding": "label_emb"}
    names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_in": "input_blocks.0.0"}
    levels, n = len(config.widths), 1
    for i in range(levels):
        for j in range(config.blocks):
            names |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{n}.0", f"down_blocks.{i}.attentions.{j}": f"input_blocks.{n}.1"}
            n += 1
        names |= {f"down_blocks.{i}.downsample": f"input_blocks.{n}.0", f"down_blocks.{i}.downsample.conv": f"input_blocks.{n}.0.op"}
        n += 1
    for j, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        names[f"mid_block.{part}"] = f"middle_block.{j}"
    for i in range(levels):
        for j in range(config.blocks + 1):
            n = i * (config.blocks + 1) + j
            names |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{n}.0", f"up_blocks.{i}.attentions.{j}": f"output_blocks.{n}.1"}
        names[f"up_blocks.{i}.upsample"] = f"output_blocks.{n}.{2 if config.depths[levels - 1 - i] else 1}"
    return names | {"conv_norm_out": "out.0", "conv_out": "out.2"}


INSIDE_LDM = {
    r"^\.norm1\.(\w+)$": r".in_layers.0.\1",
    r"^\.conv1\.": ".in_layers.2.",
    r"^\.time_emb_proj\.": ".emb_layers.1.",
    r"^\.norm2\.(\w+)$": r".out_layers.0.\1",
    r"^\.conv2\.": ".out_layers.3.",
    r"^\.conv_shortcut\.": ".skip_connection.",
    r"^\.group_norm\.": ".norm.",
    r"^\.to_([qkv])\.(\w+)$": r".qkv.\2#\1",
    r"^\.to_out\.": ".proj_out.",
    r"\.to_out\.": ".to_out.0.",
    r"\.ff\.proj\.": ".ff.net.0.proj.",
    r"\.ff\.out\.": ".ff.net.2.",
}


def autoencoder_ldm(levels: int, blocks: int) -> dict[str, str]:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder.", "decoder."):
        names |= _levels(half, half, levels, blocks)
        names |= {f"{half}conv_norm_out": f"{half}norm_out", f"{half}conv_out": f"{half}conv_out"}
    return names


def _levels(ours: str, theirs: str, levels: int, blocks: int) -> dict[str, str]:
    names = {f"{ours}conv_in": f"{theirs}conv_in", f"{ours}mid_block.attentions.0": f"{theirs}mid.attn_1"}
    names |= {f"{ours}mid_block.resnets.{j}": f"{theirs}mid.block_{j + 1}" for j in range(2)}
    for i in range(levels):
        for side, k in (("down", i), ("up", levels - 1 - i)):
            for j in range(blocks + 1):
                names[f"{ours}{side}_blocks.{i}.resnets.{j}"] = f"{theirs}{side}.{k}.block.{j}"
                names[f"{ours}{side}_blocks.{i}.attentions.{j}"] = f"{theirs}{side}.{k}.attn.{j}"
            names[f"{ours}{side}_blocks.{i}.{side}sample"] = f"{theirs}{side}.{k}.{side}sample"
    return names


INSIDE_DDPM = {
    r"^\.time_emb_proj\.": ".temb_proj.",
    r"^\.conv_shortcut\.": ".nin_shortcut.",
    r"^\.group_norm\.": ".norm.",
    r"^\.to_([qkv])\.": r".\1.",
    r"^\.to_out\.": ".proj_out.",
}


def text_open_clip(weights: Tensors, layers: int) -> Tensors:
    """open_clip's text tower: q, k, v in one matrix, and the projection the other way round."""
    names = {"embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding"}
    names |= {f"final_layer_norm.{part}": f"ln_final.{part}" for part in ("weight", "bias")}
    state = {f"text_model.{mine}": weights[theirs] for mine, theirs in names.items()}
    state["text_projection.weight"] = weights["text_projection"].T
    inside = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    inside |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(layers):
        mine, theirs = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for part in ("weight", "bias"):
            state |= {f"{mine}{a}.{part}": weights[f"{theirs}{b}.{part}"] for a, b in inside.items()}
            qkv = weights[f"{theirs}attn.in_proj_{part}"].chunk(3)
            state |= {f"{mine}self_attn.{name}_proj.{part}": value for name, value in zip("qkv", qkv, strict=True)}
    return state


PIXELS: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "widths": (32, 32), "depths": (0, 1), "blocks": 1, "context_width": 0}
LATENTS: dict[str, Any] = {"blocks": 1, "context_width": 24, "heads": 4}
LINEAR: dict[str, Any] = {"blocks": 1, "context_width": 24, "head_width": 16, "linear_projection": True}

# The sizes at which the authors' code was recorded.
UNETS = {
    "ldm/uncond": UNetConfig(**PIXELS, head_width=16),
    "ldm/cin": UNetConfig(**{**PIXELS, "context_width": 20}, heads=1),
    "ldm/inpaint": UNetConfig(in_channels=9, widths=(32,), depths=(1,), **{**LATENTS, "context_width": 16}),
    "ldm/sd1": UNetConfig(widths=(32, 64), depths=(0, 1), **LATENTS),
    "ldm/sd2": UNetConfig(widths=(32, 32), depths=(1, 1), **LINEAR),
    "sdxl/base": UNetConfig(widths=(32, 64), depths=(0, 2), mid_depth=2, pooled_width=108, **LINEAR),
    "sdxl/refiner": UNetConfig(widths=(32, 32), depths=(0, 2), mid_depth=2, pooled_width=56, **{**LINEAR, "context_width": 20}),
}
HEADS_FIRST = ("ldm/uncond",)
PREFIX = "model.diffusion_model."


def unet(family: str, weights: Tensors) -> UNet:
    """The network of one of these checkpoints."""
    config = UNETS[family]
    mine = {key.removeprefix(PREFIX): value for key, value in weights.items() if key.startswith(PREFIX)}
    mine = new_order(mine, config) if family in HEADS_FIRST else mine
    model = UNet(config).eval()
    translate(model, mine, unet_ldm(config), INSIDE_LDM)
    return model


def new_order(weights: Tensors, config: UNetConfig) -> Tensors:
    """Weights of the first ADM releases with their q, k and v in our order."""

    def heads(qkv: Tensor) -> int:
        return len(qkv) // 3 // config.head_width if config.head_width else config.heads

    return weights | {key: heads_first(value, heads(value)) for key, value in weights.items() if ".qkv." in key}
