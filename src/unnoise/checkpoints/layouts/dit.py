"""Files of facebook's DiT, whose names are ours, and of diffusers' DiTTransformer2DModel, which has the same weights in other places.

diffusers runs them with the timestep's frequencies shifted by one and guides four channels; the authors do neither, and nor do we.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout, Networks, Shape, write
from unnoise.checkpoints.layouts import sizes
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.dit import DiTConfig
from unnoise.networks.layers import position_table

WIDE = {384: 6, 768: 12, 1024: 16, 1152: 16}  # the paper's heads by width


def dit(config: DiTConfig) -> Layout:
    return Layout({"": ""}, ignored=r"^pos_embed$")


def constants(config: DiTConfig, side: int) -> dict[str, Tensor]:
    """What the authors' loader asks for beside the weights, of a model of latents with this side: the positions, (1, n, width)."""
    return {"pos_embed": position_table(config.width, side // config.patch, side // config.patch)[None]}


def dit_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> DiTConfig:
    """Sizes from the authors' shapes. Heads by the paper's table, else 64 channels each, unless `hints` say them."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    blocks = [int(match[1]) for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))]
    read = {
        "in_channels": channels,
        "patch": patch,
        "width": width,
        "depth": 1 + max(blocks),
        "heads": WIDE.get(width, max(width // 64, 1)),
        "num_classes": shapes["y_embedder.embedding_table.weight"][0] - 1,  # the last row is that of no label
        "learn_sigma": shapes["final_layer.linear.weight"][0] == 2 * channels * patch**2,
    }
    return DiTConfig(**{**read, **hints})


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where the names are another's. A training checkpoint has its average behind `ema.`, and that is what is read."""
    own = sizes.within(weights, "y_embedder.embedding_table.weight", ("", "ema.", "model.", "module."))
    if own is None or "blocks.0.adaLN_modulation.1.weight" not in own or "x_embedder.proj.weight" not in own:
        return None
    config = dit_config(own.shapes, hints.get("network", {}))
    side = math.isqrt(own.shapes["pos_embed"][1]) * config.patch if "pos_embed" in own else 32
    spec = named(config, 8 * side)
    evidence = (
        f"{config.depth} blocks of width {config.width}, patches of {config.patch}",
        f"latents of {side}x{side} by the position table",
    )
    return Found(spec, {"network": Part(config, dit(config), own)}, evidence)


def named(config: DiTConfig, size: int) -> ModelSpec:
    """The published model with this network and size, or XL/2 with another network."""
    rows = sizes.rows("dit")
    row = next((row for row in rows if (row.network, row.size) == (config, size)), FAMILIES["dit-xl-2"])
    return row.with_networks({"network": config}).model_copy(update={"size": size, "null_label": config.num_classes})


def diffusers(config: DiTConfig) -> Layout:
    """The keys of a folder's transformer. Every block there has a copy of the two embedders: the first one's are read."""
    first = "transformer_blocks.0.norm1.emb"
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": f"{first}.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{first}.timestep_embedder.linear_2",
        "y_embedder": f"{first}.class_embedder",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    for i in range(config.depth):
        names[f"blocks.{i}"] = block = f"transformer_blocks.{i}"
        for part in ("weight", "bias"):
            names[f"blocks.{i}.attn.qkv.{part}"] = "+".join(f"{block}.attn1.to_{one}.{part}" for one in "qkv")
    inside = {
        r"^\.attn\.proj\.": ".attn1.to_out.0.",
        r"^\.mlp\.fc1\.": ".ff.net.0.proj.",
        r"^\.mlp\.fc2\.": ".ff.net.2.",
        r"^\.adaLN_modulation\.1\.": ".norm1.linear.",
    }
    return Layout(names, inside, ignored=r"^transformer_blocks\.[1-9]\d*\.norm1\.emb\.|^pos_embed\.pos_embed$")


def check_copies(weights: Weights, depth: int) -> None:
    """Raises FileError where the copies that every block has of the embedders differ: then no single network is all of them."""
    for i in range(1, depth):
        for part in ("timestep_embedder.linear_1.bias", "timestep_embedder.linear_2.bias"):
            first, copy = (weights.read(f"transformer_blocks.{k}.norm1.emb.{part}") for k in (0, i))
            if not torch.equal(first, copy):
                raise FileError(
                    f"{weights.path}: block {i} has another {part} than block 0: DiT has one embedder, so this was trained apart"
                )


def copies(stored: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors of the two embedders for the blocks behind the first, each of which has its own copy there."""
    first = "transformer_blocks.0.norm1.emb."
    embedders = {key.removeprefix(first): value for key, value in stored.items() if key.startswith(first)}
    return {f"transformer_blocks.{i}.norm1.emb.{key}": value.clone() for i in range(1, depth) for key, value in embedders.items()}


def tensors(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    """The tensors of facebook's file, with its table of positions. Raises FileError for another family."""
    if not isinstance(spec.network, DiTConfig) or spec.conditioning != "labels":
        raise FileError(f"layout 'dit' has class-conditional DiT, got {spec.name}: use another layout")
    return write(dit(spec.network), networks["network"].state_dict()) | constants(spec.network, spec.size // spec.factor)
