"""Single files of Stable Diffusion 3 and 3.5. Our modules have the authors' names.

model.diffusion_model.*                 the MMDiT
first_stage_model.*                     the autoencoder
text_encoders.clip_l|clip_g|t5xxl.transformer.*     in some files, all or a part of them
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.families import FAMILIES, resized
from unnoise.checkpoints.keys import Layout, Shape
from unnoise.checkpoints.layouts import first_stage, texts
from unnoise.checkpoints.parts import Found, Hints, Part
from unnoise.checkpoints.weights import Weights
from unnoise.networks.autoencoder import Autoencoder
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.networks.t5 import T5Encoder
from unnoise.networks.text import CLIPTextEncoder

MMDIT, STAGE, TEXTS = "model.diffusion_model.", "first_stage_model.", "text_encoders."


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there are no joint blocks; they may stand without the prefix, in files of the transformer alone."""
    mmdit = weights.prefixed(MMDIT) if f"{MMDIT}x_embedder.proj.weight" in weights else weights
    if "joint_blocks.0.x_block.attn.qkv.weight" not in mmdit:
        return None
    config = mmdit_config(mmdit.shapes, hints.get("network", {}))
    parts = {"network": Part(MMDiT, config, texts.same(), mmdit)}
    stage = weights.prefixed(STAGE)
    if "decoder.conv_in.weight" in stage:
        sizes = first_stage.autoencoder_config(stage.shapes, hints.get("autoencoder", {}))
        parts["autoencoder"] = Part(Autoencoder, sizes, first_stage.autoencoder(sizes), stage)
    parts |= text_parts(weights, hints)
    name = family(config)
    fields = {"network": "mmdit", "text_encoder": "text", "text_encoder_2": "text_2", "text_encoder_3": "text_3"}
    spec = resized(FAMILIES[name], {fields.get(place, place): part.config for place, part in parts.items()})
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
        "depth": _count(r"joint_blocks\.(\d+)\.", shapes),
        "heads": max(width // 64, 1),
        "context_width": shapes["context_embedder.weight"][1],
        "pooled_width": shapes["y_embedder.mlp.0.weight"][1],
        "positions": math.isqrt(shapes["pos_embed"][1]),
        "qk_norm": "joint_blocks.0.x_block.attn.ln_q.weight" in shapes,
        "dual_blocks": _count(r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight", shapes),
    }
    return MMDiTConfig(**{**read, **hints})


def _count(pattern: str, shapes: Mapping[str, Shape]) -> int:
    return len({match[1] for key in shapes if (match := re.match(pattern, key))})


def text_parts(weights: Weights, hints: Hints) -> dict[str, Part]:
    """CLIP-L's pooled vector is taken without its projection (as the authors' code does), bigG's with it."""
    found = {}
    for name, place, more in (("clip_l", "text_encoder", {"projection": 0}), ("clip_g", "text_encoder_2", {})):
        own = weights.prefixed(f"{TEXTS}{name}.transformer.")
        if "text_model.embeddings.token_embedding.weight" in own:
            config = texts.clip_config(own.shapes, {**more, **hints.get(place, {})})
            found[place] = Part(CLIPTextEncoder, config, texts.clip(config), own)
    own = weights.prefixed(f"{TEXTS}t5xxl.transformer.")
    if len(own):
        config = texts.t5_config(own.shapes, hints.get("text_encoder_3", {}))
        found["text_encoder_3"] = Part(T5Encoder, config, texts.t5(own.shapes), own)
    return found


def mmdit(config: MMDiTConfig) -> Layout:
    return texts.same()
