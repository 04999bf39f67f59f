"""Text towers: CLIP under transformers' names (SD 1, SDXL's first, SD 3), under open_clip's (SD 2, SDXL's second), and T5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.found import Part
from unnoise.checkpoints.keys import Layout, Shape, count
from unnoise.checkpoints.store.weights import Weights
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig

IGNORED = r"position_ids$|^logit_scale$|^attn_mask$"


def clip(config: CLIPTextConfig, *, bare: bool = False) -> Layout:
    """transformers' names, which ours are. bare: without "text_model." in front, as transformers 5 saves its text model."""
    ignored = IGNORED if config.projection else rf"{IGNORED}|^text_projection\.weight$"
    return Layout({"text_model": "" if bare else "text_model", "text_projection": "text_projection"}, ignored=ignored)


def clip_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> CLIPTextConfig:
    """The activation cannot be read from shapes: quick_gelu for widths of CLIP ViT-L, gelu above, as published. Heads are 64 wide."""
    front = "text_model." if any(key.startswith("text_model.") for key in shapes) else ""
    vocab, width = shapes[f"{front}embeddings.token_embedding.weight"]
    read = {
        "vocab": vocab,
        "length": shapes[f"{front}embeddings.position_embedding.weight"][0],
        "width": width,
        "layers": count(rf"{re.escape(front)}encoder\.layers\.(\d+)\.", shapes),
        "heads": max(width // 64, 1),
        "mlp": shapes[f"{front}encoder.layers.0.mlp.fc1.weight"][0],
        "activation": "gelu" if width > 768 else "quick_gelu",
        "projection": shapes["text_projection.weight"][0] if "text_projection.weight" in shapes else 0,
        "end_token": vocab - 1,
    }
    return CLIPTextConfig(**{**read, **hints})


def clip_part(own: Weights, hints: Mapping[str, Any]) -> Part:
    """With "text_model." in front of the keys or without, as transformers 5 and old merges have it."""
    config, bare = clip_config(own.shapes, hints), "embeddings.token_embedding.weight" in own
    return Part(config, clip(config, bare=bare), own)


def open_clip(config: CLIPTextConfig) -> Layout:
    """One matrix for q, k and v, and the projection the other way round."""
    modules = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        "text_projection": "text_projection",
    }
    modules |= {f"text_model.encoder.layers.{i}": f"transformer.resblocks.{i}" for i in range(config.layers)}
    inside = {
        r"^\.self_attn\.([qkv])_proj\.(\w+)$": r".attn.in_proj_\2#\1",
        r"^\.self_attn\.out_proj\.": ".attn.out_proj.",
        r"^\.layer_norm([12])\.": r".ln_\1.",
        r"^\.mlp\.fc1\.": ".mlp.c_fc.",
        r"^\.mlp\.fc2\.": ".mlp.c_proj.",
    }
    whole = {"text_model.embeddings.position_embedding.weight": "positional_embedding", "text_projection.weight": "text_projection#T"}
    return Layout(modules | whole, inside, ignored=IGNORED if config.projection else rf"{IGNORED}|^text_projection$")


def open_clip_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> CLIPTextConfig:
    vocab, width = shapes["token_embedding.weight"]
    read = {
        "vocab": vocab,
        "length": shapes["positional_embedding"][0],
        "width": width,
        "layers": count(r"transformer\.resblocks\.(\d+)\.", shapes),
        "heads": max(width // 64, 1),
        "mlp": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "activation": "gelu",
        "projection": shapes["text_projection"][1] if "text_projection" in shapes else 0,
        "end_token": vocab - 1,
    }
    return CLIPTextConfig(**{**read, **hints})


def open_clip_part(own: Weights, hints: Mapping[str, Any]) -> Part:
    config = open_clip_config(own.shapes, hints)
    return Part(config, open_clip(config), own)


def t5(shapes: Mapping[str, Shape]) -> Layout:
    """transformers' names, which ours are; the token table stands there under one name or both."""
    table = "shared" if "shared.weight" in shapes else "encoder.embed_tokens"
    return Layout({"": "", "shared": table}, ignored=r"^encoder\.embed_tokens\.weight$|^logit_scale$")


def t5_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> T5Config:
    first = "encoder.block.0.layer"
    table = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    read = {
        "vocab": table[0],
        "width": table[1],
        "layers": count(r"encoder\.block\.(\d+)\.", shapes),
        "heads": heads,
        "head_width": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "mlp": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        "buckets": buckets,
    }
    return T5Config(**{**read, **hints})


def t5_part(own: Weights, hints: Mapping[str, Any]) -> Part:
    return Part(t5_config(own.shapes, hints), t5(own.shapes), own)


def same() -> Layout:
    """Our own names."""
    return Layout({"": ""})
