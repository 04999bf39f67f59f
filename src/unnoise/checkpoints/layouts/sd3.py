"""Single files of Stable Diffusion 3 and 3.5. Our modules have the authors' names.

model.diffusion_model.*                 the MMDiT
first_stage_model.*                     the autoencoder
text_encoders.clip_l|clip_g|t5xxl.transformer.*     in some files, all or a part of them
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Networks, Shape, count, under
from unnoise.checkpoints.layouts import first_stage, texts
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES, resized
from unnoise.networks.mmdit import MMDiTConfig

MMDIT, TEXTS = "model.diffusion_model.", "text_encoders."


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there are no joint blocks; they may stand without the prefix, in files of the transformer alone."""
    mmdit = weights.prefixed(MMDIT) if f"{MMDIT}x_embedder.proj.weight" in weights else weights
    if "joint_blocks.0.x_block.attn.qkv.weight" not in mmdit:
        return None
    config = mmdit_config(mmdit.shapes, hints.get("network", {}))
    parts = {"network": Part(config, texts.same(), mmdit)}
    if stage := first_stage.part(weights.prefixed(first_stage.PREFIX), hints.get("autoencoder", {})):
        parts["autoencoder"] = stage
    parts |= text_parts(weights, hints)
    spec = resized(FAMILIES[family(config)], {place: part.config for place, part in parts.items()})
    return Found(spec, parts, (f"{config.depth} joint blocks, {'with' if config.qk_norm else 'no'} norm of queries and keys",)).with_stage()


def family(config: MMDiTConfig) -> str:
    return "sd3.5-medium" if config.dual_blocks else "sd3.5-large" if config.qk_norm else "sd3-medium"


def mmdit_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> MMDiTConfig:
    """Heads are 64 wide in every published size."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    read = {
        "in_channels": channels,
        "patch": patch,
        "width": width,
        "depth": count(r"joint_blocks\.(\d+)\.", shapes),
        "heads": max(width // 64, 1),
        "context_width": shapes["context_embedder.weight"][1],
        "pooled_width": shapes["y_embedder.mlp.0.weight"][1],
        "positions": math.isqrt(shapes["pos_embed"][1]),
        "qk_norm": "joint_blocks.0.x_block.attn.ln_q.weight" in shapes,
        "dual_blocks": count(r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight", shapes),
    }
    return MMDiTConfig(**{**read, **hints})


def text_parts(weights: Weights, hints: Hints) -> dict[str, Part]:
    """CLIP-L's pooled vector is taken without its projection (as the authors' code does), bigG's with it."""
    found = {}
    for name, place, more in (("clip_l", "text_encoder", {"projection": 0}), ("clip_g", "text_encoder_2", {})):
        own = weights.prefixed(f"{TEXTS}{name}.transformer.")
        if "text_model.embeddings.token_embedding.weight" in own:
            found[place] = texts.clip_part(own, {**more, **hints.get(place, {})})
    own = weights.prefixed(f"{TEXTS}t5xxl.transformer.")
    if len(own):
        found["text_encoder_3"] = texts.t5_part(own, hints.get("text_encoder_3", {}))
    return found


def tensors(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    """Stable Diffusion 3's. Its first text encoder has no projection there: an identity is left out."""
    found = under(MMDIT, networks["network"].state_dict()) | first_stage.tensors(spec.first_stage, networks)
    for place, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
        if place not in networks:
            continue
        weights = dict(networks[place].state_dict())
        if place == "text_encoder" and (projection := weights.pop("text_projection.weight", None)) is not None:
            if not torch.equal(projection, torch.eye(len(projection), dtype=projection.dtype, device=projection.device)):
                raise FileError(
                    "its first text encoder has a projection, which Stable Diffusion 3's single file has not: use layout 'diffusers'"
                )
        found |= under(f"{TEXTS}{name}.transformer.", weights)
    return found
