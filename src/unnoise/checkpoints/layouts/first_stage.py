"""The autoencoders of latent diffusion, as every file of CompVis and Stability AI has them under `first_stage_model.`.

The way up is numbered from the largest picture, ours from the smallest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unnoise.checkpoints.found import Part
from unnoise.checkpoints.keys import Layout, Networks, Shape, count, under, write
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.kinds import FirstStage
from unnoise.networks.taesd import TinyAutoencoderConfig
from unnoise.networks.vq import VQConfig

PREFIX = "first_stage_model."
TINY = "a model with a tiny autoencoder in its autoencoder's place is not saved: load it with the autoencoder of its own"
INSIDE = {
    r"^\.conv_shortcut\.": ".nin_shortcut.",
    r"^\.group_norm\.": ".norm.",
    r"^\.to_([qkv])\.(\w+)$": r".\1.\2#2",
    r"^\.to_out\.(\w+)$": r".proj_out.\1#2",
}
IGNORED = r"^(loss\.|model_ema|ema|colorize$)"  # discriminators and averages that training leaves in the file


def _levels(half: str, levels: int, blocks: int) -> dict[str, str]:
    names = {f"{half}.conv_in": f"{half}.conv_in", f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1"}
    names |= {f"{half}.conv_norm_out": f"{half}.norm_out", f"{half}.conv_out": f"{half}.conv_out"}
    names |= {f"{half}.mid_block.resnets.{j}": f"{half}.mid.block_{j + 1}" for j in range(2)}
    side = "down" if half == "encoder" else "up"
    for i in range(levels):
        k = i if half == "encoder" else levels - 1 - i
        names |= {f"{half}.{side}_blocks.{i}.resnets.{j}": f"{half}.{side}.{k}.block.{j}" for j in range(blocks + 1)}
        names[f"{half}.{side}_blocks.{i}.{side}sample"] = f"{half}.{side}.{k}.{side}sample"
    return names


def _layout(config: AutoencoderConfig | VQConfig, more: Mapping[str, str]) -> Layout:
    ends = {name: name for name in ("quant_conv", "post_quant_conv")}
    halves = [_levels(half, len(config.widths), config.blocks) for half in ("encoder", "decoder")]
    return Layout({**ends, **halves[0], **halves[1], **more}, INSIDE, ignored=IGNORED)


def autoencoder(config: AutoencoderConfig) -> Layout:
    return _layout(config, {})


def vq(config: VQConfig) -> Layout:
    return _layout(config, {"quantize": "quantize"})


def _sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Of the authors' names, or diffusers'."""
    down, block = ("down_blocks", "resnets") if "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes else ("down", "block")
    levels = count(rf"encoder\.{down}\.(\d+)\.", shapes)
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "widths": tuple(shapes[f"encoder.{down}.{i}.{block}.0.conv1.weight"][0] for i in range(levels)),
        "blocks": count(rf"encoder\.{down}\.0\.{block}\.(\d+)\.", shapes),
    }


def autoencoder_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> AutoencoderConfig:
    """Scale and shift of the latents are the family's, not the file's: `hints`."""
    return AutoencoderConfig(**{**_sizes(shapes), "quant_convs": "quant_conv.weight" in shapes, **hints})


def vq_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> VQConfig:
    return VQConfig(**{**_sizes(shapes), "codes": shapes["quantize.embedding.weight"][0], **hints})


def part(own: Weights, hints: Mapping[str, Any]) -> Part | None:
    """The autoencoder of these keys; None where there is none."""
    if "decoder.conv_in.weight" not in own:
        return None
    if "quantize.embedding.weight" in own:
        sizes = vq_config(own.shapes, hints)
        return Part(sizes, vq(sizes), own)
    config = autoencoder_config(own.shapes, hints)
    return Part(config, autoencoder(config), own)


def tensors(config: FirstStage | None, networks: Networks) -> dict[str, Tensor]:
    """The autoencoder's tensors as a single file has them; none where the model has no autoencoder. Raises FileError for a tiny one."""
    if config is None or "autoencoder" not in networks:
        return {}
    if isinstance(config, TinyAutoencoderConfig):
        raise FileError(TINY)
    layout = vq(config) if isinstance(config, VQConfig) else autoencoder(config)
    return under(PREFIX, write(layout, networks["autoencoder"].state_dict()))
