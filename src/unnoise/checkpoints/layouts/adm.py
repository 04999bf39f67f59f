"""Files of guided-diffusion (ADM) and improved-diffusion (IDDPM): the U-Net with numbered blocks, bare, and ADM's classifiers.

    input_blocks ...            as in `numbered.py`
    out.0, out.2                the last norm and convolution
    out.2.qkv_proj ...          a classifier that reads by attention; out.3 one that reads the mean

In nearly all of them a head's queries, keys and values stand together. ADM 64 has the newer order, and so has every attention pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout, Order, Shape, count
from unnoise.checkpoints.layouts import numbered, sizes
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.classifier import ClassifierConfig
from unnoise.networks.unet import UNetConfig

INPUTS = r"input_blocks\.(\d+)\."
NEW_ORDER = ("adm-64",)  # the one published model with use_new_attention_order
DOUBLED = {6: 3, 2: 1}  # channels in of an upsampler, which also sees the small picture: those of the picture


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there are no bare numbered blocks, or where they are those of consistency models (joint matrices of four axes)."""
    own = sizes.within(weights, "input_blocks.0.0.weight")
    if own is None or "out.2.weight" not in own or len(own.shapes.get("middle_block.1.qkv.weight", ())) != 3:
        return None
    asked = hints.get("network", {})
    config = unet_config(own.shapes, asked)
    row = family(config)
    config = sizes.divided(config, row, asked)
    order = hints.get("file", {}).get("order", "qkv head d" if row.name in NEW_ORDER else "head qkv d")
    conditioning = "labels" if config.num_classes else "none"
    spec = row.with_networks({"network": config}).model_copy(update={"conditioning": conditioning})
    return Found(spec, {"network": Part(config, numbered.unet(config, order), own)}, tuple(_evidence(row, config)))


def unet_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> UNetConfig:
    """Sizes from shapes, with the heads that most have: 64 channels each where residual blocks change the size, else four."""
    channels, out = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    waves, first = shapes["time_embed.0.weight"][1], shapes["input_blocks.0.0.weight"][0]
    learned = out == 2 * DOUBLED.get(channels, channels)
    read = numbered.unet_config(shapes, {"learn_sigma": learned, "waves": waves if waves != first else 0, "heads": 4, **hints})
    return UNetConfig(**{**vars(read), "head_width": 64 if read.resample == "residual" else 0, **hints})


def family(unet: UNetConfig) -> ModelSpec:
    """The published model of these sizes, else the nearest in kind."""
    if exact := sizes.same_sizes(unet, [*sizes.rows("adm"), *sizes.rows("iddpm")]):
        return exact
    upsampler = unet.in_channels in DOUBLED
    if unet.resample == "residual":
        return FAMILIES["adm-u-512" if upsampler else "adm-256" if unet.num_classes else "adm-256-uncond"]
    if upsampler or not unet.scale_shift:
        return FAMILIES["iddpm-upsampler" if upsampler else "iddpm-lsun"]
    return FAMILIES["iddpm-64-class" if unet.num_classes else "iddpm-64"]


def _evidence(row: ModelSpec, unet: UNetConfig) -> list[str]:
    blocks = "residual blocks" if unet.resample == "residual" else "convolutions"
    heads = f"{unet.head_width} channels a head" if unet.head_width else f"attention heads: {unet.heads}"
    betas = f"{row.schedule.betas} betas of {row.schedule.steps} steps"
    return [
        f"{blocks} change the size{', learned variance' if unet.learn_sigma else ''}",
        f"{heads}, {betas}, as {row.name} has them; the file does not say",
    ]


def classifier(config: ClassifierConfig, order: Order = "head qkv d") -> Layout:
    """order: of the blocks; the attention pool's matrix is one there and here."""
    last, axes = ("out.2.c_proj", 1) if config.pool == "attention" else ("out.3", 2)
    pool = {"pool": "out.2", "pool.qkv": "out.2.qkv_proj", "pool.qkv.weight": "out.2.qkv_proj.weight#1"}
    pool |= {"pool.projection": last, "pool.projection.weight": f"{last}.weight#{axes}"}  # convolutions there
    inside = {**numbered.INSIDE, r"^\.positions$": ".positional_embedding"}
    modules = {**numbered.names(config.unet), **pool}
    return Layout(modules, inside, order, lambda width: width // config.head_width if config.head_width else config.heads)


def classifier_part(weights: Weights, hints: Mapping[str, Any], order: Order = "head qkv d") -> Part | None:
    """ADM's classifier of noisy pictures; None where the keys are another's."""
    own = sizes.within(weights, "input_blocks.0.0.weight")
    if own is None or not {"out.2.positional_embedding", "out.3.weight"} & own.shapes.keys():
        return None
    config = classifier_config(own.shapes, hints)
    return Part(config, classifier(config, order), own)


def classifier_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> ClassifierConfig:
    """Sizes from shapes. `hints` say the side of the pictures where the mean is pooled: no tensor depends on it."""
    blocks = hints["blocks"] if "blocks" in hints else _blocks(shapes)
    starts = [f"input_blocks.{n}" for n in range(1, count(INPUTS, shapes), blocks + 1)]
    widths = tuple(shapes[f"{block}.0.out_layers.3.weight"][0] for block in starts)
    attends = "out.2.positional_embedding" in shapes
    waves = shapes["time_embed.0.weight"][1]
    read: dict[str, Any] = {
        "classes": shapes["out.2.c_proj.weight" if attends else "out.3.weight"][0],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "widths": widths,
        "depths": tuple(int(f"{block}.1.qkv.weight" in shapes) for block in starts),
        "blocks": blocks,
        "waves": waves if waves != widths[0] else 0,
        "scale_shift": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resample": "conv" if any(key.endswith(".0.op.weight") for key in shapes) else "residual",
        "pool": "attention" if attends else "adaptive",
    }
    if attends:
        read["side"] = math.isqrt(shapes["out.2.positional_embedding"][1] - 1) * 2 ** (len(widths) - 1)
    return ClassifierConfig(**{**read, **hints})


def _blocks(shapes: Mapping[str, Shape]) -> int:
    """Residual blocks a level. A residual block that halves looks like any other, but has no attention: the last run of those that do."""
    last = count(INPUTS, shapes) - 1
    run = 0
    while f"input_blocks.{last - run}.1.qkv.weight" in shapes:
        run += 1
    if not run:
        raise FileError("a classifier without attention in its smallest level does not show how many blocks a level has: give 'blocks'")
    return run
