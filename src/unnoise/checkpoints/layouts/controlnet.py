"""ControlNets as they are published: for U-Nets under lllyasviel's names and diffusers', for Stable Diffusion 3 diffusers' and Stability's.

control_model.input_blocks ...    lllyasviel: numbered blocks as in `numbered.py`, also bare, or behind "control_"
  input_hint_block.n              the hint's convolutions
  zero_convs.k.0, middle_block_out.0
controlnet_down_blocks.k ...      diffusers: our names
controlnet_blocks.k, transformer_blocks.k.attn.to_q     diffusers for Stable Diffusion 3
controlnet_blocks.k, transformer_blocks.k.attn.qkv      Stability's 3.5: `control_type` is a number, 8b's `pos_embed.proj` unused
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from unnoise.checkpoints.folder.configs import UNET
from unnoise.checkpoints.found import Part
from unnoise.checkpoints.keys import Layout, Shape, count
from unnoise.checkpoints.layouts import diffusers, numbered
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.networks.controlnet_mmdit import Form, MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig, kept_widths

Config = Mapping[str, Any]
PREFIXES = ("control_model.", "", "control_", "controlnet.", "module.")
KINDS = ("blur", "canny", "depth")  # what Stability's control_type counts
OTHERS = {  # what people also call a control, by how a key of it begins
    "lora_controlnet": "a Control-LoRA",
    "lllite_": "a ControlNet-LLLite",
    "task_embedding": "a ControlNet of several kinds of hint (union)",
    "difference": "the difference of a ControlNet and its base",
    "adapter.body.0.": "a T2I-Adapter",
    "body.0.": "a T2I-Adapter",
}


def part(weights: Weights, config: Mapping[str, Any], hints: Mapping[str, Any]) -> Part | None:
    """The ControlNet of a file; None where there is none.

    config: the config.json beside it, or {}. hints: what neither shows, fields of the U-Net's or the MMDiT's config. Raises FileError for
    other kinds of control.
    """
    if kind := next((kind for start, kind in OTHERS.items() if any(key.startswith(start) for key in weights)), None):
        raise FileError(f"{weights.path} is {kind}: expected a ControlNet with weights of its own, of lllyasviel's form or diffusers'")
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}zero_convs.0.0.weight" in weights), None)
    if prefix is not None:
        return _part(_numbered_sizes, numbered_control, weights.prefixed(prefix), {}, hints)
    if "controlnet_cond_embedding.conv_in.weight" in weights:
        return _part(_named_sizes, lambda _: diffusers.unet(weights.shapes), weights, config, hints)
    if "controlnet_blocks.0.weight" not in weights or "pos_embed_input.proj.weight" not in weights:
        return None
    apart = "transformer_blocks.0.attn.to_q.weight" in weights
    made = mmdit_config(weights.shapes, config, hints)
    return Part(made, diffusers_mmdit(made) if apart else stability(made), weights)


def family(config: ControlNetConfig | MMDiTControlNetConfig) -> str:
    """What a ControlNet is for, in a word."""
    if isinstance(config, MMDiTControlNetConfig):
        return "sd3"
    unet = config.unet
    return "sdxl" if unet.pooled_width else "sd2" if unet.linear_projection else "sd1"


def kind(weights: Weights) -> str:
    """What the hints of Stability's nets are, by the number in the file; empty for others, whose files do not say."""
    if weights.shapes.get("control_type") is None:
        return ""
    number = int(weights.read("control_type"))
    return KINDS[number] if 0 <= number < len(KINDS) else ""


# For U-Nets


def _part(
    sizes: Callable[[Mapping[str, Shape]], dict[str, Any]],
    layout: Callable[[ControlNetConfig], Layout],
    weights: Weights,
    config: Config,
    hints: Mapping[str, Any],
) -> Part:
    read = sizes(weights.shapes)
    read["out_channels"] = read["in_channels"]  # no tensor shows it, and nothing depends on it
    divided = {"head_width": 64, "heads": 8} if read["linear_projection"] or read["pooled_width"] else {"heads": 8}
    unet = UNetConfig(**{**read, **divided, **_stated(config, read), **hints})
    hint = "input_hint_block" if "input_hint_block.0.weight" in weights else "controlnet_cond_embedding"
    order, pooled = config.get("controlnet_conditioning_channel_order", "rgb"), bool(config.get("global_pool_conditions"))
    made = ControlNetConfig(unet, *_hint(weights.shapes, hint), order, pooled)
    return Part(made, layout(made), weights)


def _stated(config: Config, read: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says beside the shapes."""
    if not config:
        return {}
    whole = UNET.read({"out_channels": read["in_channels"], **config})
    names = ["heads", "head_width", "time_shift", "time_cos_first", "groups", "eps", *([] if read["context_width"] else ["context_width"])]
    return {name: getattr(whole, name) for name in names}


def _hint(shapes: Mapping[str, Shape], block: str) -> tuple[int, tuple[int, ...]]:
    """(channels, widths) of the hint's convolutions: every second of them has a new width."""
    if block == "input_hint_block":
        convs = [shapes[f"{block}.{2 * i}.weight"] for i in range(count(rf"{block}\.(\d+)\.weight", shapes) // 2)]
    else:
        blocks = count(rf"{block}\.blocks\.(\d+)\.weight", shapes)
        convs = [shapes[f"{block}.{name}.weight"] for name in ("conv_in", *(f"blocks.{i}" for i in range(blocks)))]
    return convs[0][1], tuple(shape[0] for shape in convs[::2])


def _numbered_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """A level ends where the size changes."""
    inputs = count(r"input_blocks\.(\d+)\.", shapes)
    ends = [n for n in range(inputs) if f"input_blocks.{n}.0.op.weight" in shapes]
    starts = [1, *(n + 1 for n in ends)]
    blocks = (ends[0] if ends else inputs) - 1
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "widths": tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in starts),
        "blocks": blocks,
        "depths": tuple(_depth(shapes, f"input_blocks.{n}.1") for n in starts),
        "mid_depth": _depth(shapes, "middle_block.1"),
        "pooled_width": shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
        **_text(shapes),
    }


def _named_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    levels = range(count(r"down_blocks\.(\d+)\.", shapes))
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "widths": tuple(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels),
        "blocks": count(r"down_blocks\.0\.resnets\.(\d+)\.", shapes),
        "depths": tuple(_depth(shapes, f"down_blocks.{i}.attentions.0") for i in levels),
        "mid_depth": _depth(shapes, "mid_block.attentions.0"),
        "pooled_width": shapes["add_embedding.linear_1.weight"][1] if "add_embedding.linear_1.weight" in shapes else 0,
        **_text(shapes),
    }


def _text(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {
        "context_width": next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), 0),
        "linear_projection": len(next((shape for key, shape in shapes.items() if key.endswith(".proj_in.weight")), ())) == 2,
    }


def _depth(shapes: Mapping[str, Shape], attention: str) -> int:
    return count(rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\.", shapes)


def numbered_control(config: ControlNetConfig) -> Layout:
    """The numbered blocks' names, and those of what a ControlNet has beside them."""
    convs = ["conv_in", *(f"blocks.{i}" for i in range(2 * len(config.hint_widths) - 2)), "conv_out"]
    modules = {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * i}" for i, name in enumerate(convs)}
    modules |= {f"controlnet_down_blocks.{k}": f"zero_convs.{k}.0" for k in range(len(kept_widths(config.unet)))}
    modules |= {"controlnet_mid_block": "middle_block_out.0"}
    return Layout(numbered.names(config.unet) | modules, numbered.INSIDE)


# For MMDiTs


def mmdit_config(shapes: Mapping[str, Shape], config: Config, hints: Mapping[str, Any]) -> MMDiTControlNetConfig:
    """With text of its own it is a joint net; else its pooled text tells 2b, which reads a vector of its own width, from 8b."""
    width, hint_channels, patch, _ = shapes["pos_embed_input.proj.weight"]
    pooled = shapes["time_text_embed.text_embedder.linear_1.weight"][1]
    joint = "context_embedder.weight" in shapes
    form: Form = "joint" if joint else "2b" if pooled == width and "pos_embed.proj.weight" in shapes else "8b"
    channels = shapes["pos_embed.proj.weight"][1] if "pos_embed.proj.weight" in shapes else hint_channels
    read = {
        "in_channels": channels,
        "patch": patch,
        "width": width,
        "depth": count(r"transformer_blocks\.(\d+)\.", shapes),
        "heads": config.get("num_attention_heads", max(width // 64, 1)),
        "qk_norm": "transformer_blocks.0.attn.norm_q.weight" in shapes,
        "dual_blocks": count(r"transformer_blocks\.(\d+)\.attn2\.to_q\.weight", shapes),
    }
    if form != "2b":
        read["pooled_width"] = pooled
    if joint:
        read |= {"context_width": shapes["context_embedder.weight"][1], "positions": math.isqrt(shapes["pos_embed.pos_embed"][1])}
    zero = joint and bool(config.get("force_zeros_for_pooled_projection", bool(config)))  # True is the class's default
    own = {"form", "zero_pooled"}
    rest = {"form": form, "zero_pooled": zero, **{name: value for name, value in hints.items() if name in own}}
    sizes = MMDiTConfig(**{**read, **{name: value for name, value in hints.items() if name not in own}})
    return MMDiTControlNetConfig(sizes, rest["form"], hint_channels, rest["zero_pooled"])


_EMBEDDINGS = {
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "x_embedder.proj": "pos_embed.proj",
}


def stability(config: MMDiTControlNetConfig) -> Layout:
    """Blocks have our names. The form 8b's own patches are there and read by nothing."""
    return Layout({"": "", **_EMBEDDINGS}, ignored=r"^control_type$" + (r"|^pos_embed\.proj\." if config.form == "8b" else ""))


def diffusers_mmdit(config: MMDiTControlNetConfig) -> Layout:
    """Joint blocks as the MMDiT's; single ones are the image's half of them."""
    modules = {"": "", **_EMBEDDINGS, "pos_embed": "pos_embed.pos_embed"}
    for i in range(config.mmdit.depth):
        block = f"transformer_blocks.{i}"
        if config.form == "joint":
            modules |= diffusers.joint_block(block, block)
            continue
        for part in ("weight", "bias"):
            modules[f"{block}.attn.qkv.{part}"] = "+".join(f"{block}.attn.to_{name}.{part}" for name in "qkv")
        modules |= {f"{block}.attn.proj": f"{block}.attn.to_out.0", f"{block}.adaLN_modulation.1": f"{block}.norm1.linear"}
        modules |= {f"{block}.mlp.fc{k + 1}": f"{block}.ff.net.{('0.proj', '2')[k]}" for k in range(2)}
    return Layout(modules)
