"""Files of one network alone: an autoencoder, a text encoder, as people keep them beside their checkpoints."""

from __future__ import annotations

from unnoise.checkpoints.layouts import first_stage as stages
from unnoise.checkpoints.layouts import texts
from unnoise.checkpoints.parts import Part
from unnoise.checkpoints.weights import Weights
from unnoise.networks.autoencoder import Autoencoder
from unnoise.networks.t5 import T5Encoder
from unnoise.networks.text import CLIPTextEncoder
from unnoise.networks.vq import VQAutoencoder


def first_stage(weights: Weights, place: str) -> Part | None:
    """An autoencoder under the authors' names, with or without what stands before them in a whole model."""
    own = weights.prefixed("first_stage_model.") if any(key.startswith("first_stage_model.") for key in weights) else weights
    if place != "autoencoder" or "decoder.mid.attn_1.q.weight" not in own:
        return None
    if "quantize.embedding.weight" in own:
        config = stages.vq_config(own.shapes, {})
        return Part(VQAutoencoder, config, stages.vq(config), own)
    config = stages.autoencoder_config(own.shapes, {})
    return Part(Autoencoder, config, stages.autoencoder(config), own)


def text(weights: Weights, place: str) -> Part | None:
    """CLIP under transformers' names or open_clip's, or T5."""
    if "encoder.block.0.layer.0.SelfAttention.q.weight" in weights:
        config = texts.t5_config(weights.shapes, {})
        return Part(T5Encoder, config, texts.t5(weights.shapes), weights)
    if "text_model.embeddings.token_embedding.weight" in weights:
        config = texts.clip_config(weights.shapes, {})
        return Part(CLIPTextEncoder, config, texts.clip(config), weights)
    if "transformer.resblocks.0.attn.in_proj_weight" in weights:
        config = texts.open_clip_config(weights.shapes, {})
        return Part(CLIPTextEncoder, config, texts.open_clip(config), weights)
    return None
