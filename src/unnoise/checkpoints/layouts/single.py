"""Files of one network alone: an autoencoder, a text encoder, as people keep them beside their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unnoise.checkpoints.found import Part
from unnoise.checkpoints.keys import Layout, Shape
from unnoise.checkpoints.layouts import diffusers, texts
from unnoise.checkpoints.layouts import first_stage as stages
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.taesd import TinyAutoencoderConfig

CLIP_L = 768  # its width
SEEING = ("visual.", "vision_model.", "visual_projection.")  # CLIP's other half


def first_stage(weights: Weights, place: str) -> Part | None:
    """An autoencoder under the authors' names, with or without what stands before them in a whole model, or under diffusers'."""
    if place != "autoencoder":
        return None
    own = weights.prefixed("first_stage_model.") if any(key.startswith("first_stage_model.") for key in weights) else weights
    named = "decoder.mid_block.resnets.0.conv1.weight" in own
    if not named and "decoder.mid.attn_1.q.weight" not in own:
        return None
    found = stages.part(own, {})
    return replace(found, layout=diffusers.autoencoder(own.shapes)) if found and named else found


def text(weights: Weights, place: str) -> Part | None:
    """T5 for the third place; for the others CLIP under transformers' names or open_clip's, with or without its half that sees pictures.

    CLIP-L has a projection, which no diffusion model reads: Stable Diffusion 3's authors take its vector without.
    """
    if place == "text_encoder_3":
        if "encoder.block.0.layer.0.SelfAttention.q.weight" not in weights:
            return None
        return texts.t5_part(weights, {})
    if not place.startswith("text_encoder"):
        return None
    own = replace(weights, places={name: at for name, at in weights.places.items() if not name.startswith(SEEING)})
    if "transformer.resblocks.0.attn.in_proj_weight" in own:
        return texts.open_clip_part(own, {})
    front = next((front for front in ("text_model.", "") if f"{front}embeddings.token_embedding.weight" in own), None)
    if front is None:
        return None
    width = own.shapes[f"{front}embeddings.token_embedding.weight"][1]
    return texts.clip_part(own, {"projection": 0} if width <= CLIP_L else {})


# The tiny autoencoders (TAESD)


def tiny(weights: Weights, place: str) -> Part | None:
    """Of the authors' files, bare numbers and one file a half, or of diffusers' one file, whose decoder counts without the clamp.

    Beside an authors' decoder lies its encoder, called "encoder" where that one is called "decoder"; without it nothing can be encoded.
    """
    if place != "autoencoder":
        return None
    if "1.conv.0.weight" in weights and "0.weight" in weights:
        raise FileError(f"{weights.path} is the encoder of a tiny autoencoder: give its decoder, beside which the encoder is found")
    if "3.conv.0.weight" in weights and "1.weight" in weights:
        weights = _halves(weights)
    if not {"decoder.3.conv.0.weight", "decoder.layers.2.conv.0.weight"} & weights.shapes.keys():
        return None
    return Part(tiny_config(weights.shapes), tiny_layout(weights.shapes), weights)


def tiny_config(shapes: Mapping[str, Shape]) -> TinyAutoencoderConfig:
    width, channels = shapes["decoder.layers.0.weight" if "decoder.layers.0.weight" in shapes else "decoder.1.weight"][:2]
    encodes = any(key.startswith("encoder.") for key in shapes)
    return TinyAutoencoderConfig(channels, any(".pool." in key for key in shapes), width, encodes=encodes)


def tiny_layout(shapes: Mapping[str, Shape]) -> Layout:
    if "decoder.layers.0.weight" not in shapes:
        return Layout({"": ""})
    return Layout({"encoder": "encoder.layers", **{f"decoder.{i + 1}": f"decoder.layers.{i}" for i in range(19)}})


def _halves(decoder: Weights) -> Weights:
    """The authors' two files under our names."""
    path = Path(decoder.path)
    beside = path.with_name(path.name.replace("decoder", "encoder"))
    places = {f"decoder.{name}": place for name, place in decoder.places.items()}
    if beside != path and beside.is_file():
        places |= {f"encoder.{name}": place for name, place in Weights.open(beside).places.items()}
    return replace(decoder, places=places)
