"""Files of ermongroup's DDIM and of the DDPM models converted from Ho et al.'s TensorFlow: down.i, mid, up.i, counted from the largest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout, Shape, count
from unnoise.checkpoints.layouts import sizes
from unnoise.checkpoints.store.weights import Weights
from unnoise.families.table import FAMILIES
from unnoise.networks.unet import UNetConfig

INSIDE = {
    r"^\.time_emb_proj\.": ".temb_proj.",
    r"^\.conv_shortcut\.": ".nin_shortcut.",
    r"^\.group_norm\.": ".norm.",
    r"^\.to_([qkv])\.(\w+)$": r".\1.\2#2",
    r"^\.to_out\.(\w+)$": r".proj_out.\1#2",
}
TENSORFLOW: dict[str, Any] = {"heads": 1, "corner_pad": True, "eps": 1e-6, "time_shift": 1.0, "time_cos_first": False}


def unet(config: UNetConfig) -> Layout:
    names = {"time_embedding.linear_1": "temb.dense.0", "time_embedding.linear_2": "temb.dense.1", "conv_in": "conv_in"}
    names |= {"conv_norm_out": "norm_out", "conv_out": "conv_out", "mid_block.attentions.0": "mid.attn_1"}
    names |= {f"mid_block.resnets.{j}": f"mid.block_{j + 1}" for j in range(2)}
    levels = len(config.widths)
    for i in range(levels):
        for side, k in (("down", i), ("up", levels - 1 - i)):
            for j in range(config.blocks + 1):
                names[f"{side}_blocks.{i}.resnets.{j}"] = f"{side}.{k}.block.{j}"
                names[f"{side}_blocks.{i}.attentions.{j}"] = f"{side}.{k}.attn.{j}"
            names[f"{side}_blocks.{i}.{side}sample"] = f"{side}.{k}.{side}sample"
    return Layout(names, INSIDE)


def unet_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> UNetConfig:
    levels = count(r"down\.(\d+)\.", shapes)
    read = {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "widths": tuple(shapes[f"down.{i}.block.0.conv1.weight"][0] for i in range(levels)),
        "depths": tuple(int(f"down.{i}.attn.0.q.weight" in shapes) for i in range(levels)),
        "blocks": count(r"down\.0\.block\.(\d+)\.", shapes),
        "context_width": 0,
    }
    return UNetConfig(**{**read, **TENSORFLOW, **hints})


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there is no `temb.dense.0`, bare or behind DataParallel's `module.`"""
    own = sizes.within(weights, "temb.dense.0.weight")
    if own is None or "down.0.block.0.conv1.weight" not in own:
        return None
    config = unet_config(own.shapes, hints.get("network", {}))
    row = sizes.same_sizes(config, sizes.rows("ddpm")) or FAMILIES["ddpm-cifar"]
    evidence = ("the names of Ho et al.'s U-Net in PyTorch",)
    return Found(row.with_networks({"network": config}), {"network": Part(config, unet(config), own)}, evidence)
