"""The parts of diffusers folders: U-Nets, autoencoders, SD 3's transformer. Sizes come from the config.json beside: `folder/configs.py`.

Our module names are diffusers' without its lists of one, so the tables are short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from unnoise.checkpoints.keys import Layout, Shape
from unnoise.networks.mmdit import MMDiTConfig

LISTS_OF_ONE = {
    r"\.(down|up)sample(\.|$)": r".\1samplers.0\2",
    r"\.to_out\.": ".to_out.0.",
    r"\.ff\.proj\.": ".ff.net.0.proj.",
    r"\.ff\.out\.": ".ff.net.2.",
}
# The names of attention among pixels before diffusers 0.15; the files of that time are still the published ones.
OLD_ATTENTION = {
    r"(attentions\.\d+)\.to_q\.": r"\1.query.",
    r"(attentions\.\d+)\.to_k\.": r"\1.key.",
    r"(attentions\.\d+)\.to_v\.": r"\1.value.",
    r"(attentions\.\d+)\.to_out\.": r"\1.proj_attn.",
}


def _named(shapes: Mapping[str, Shape], inside: Mapping[str, str] = LISTS_OF_ONE) -> Layout:
    old = OLD_ATTENTION if any(re.search(r"attentions\.\d+\.query\.weight$", key) for key in shapes) else {}
    return Layout({"": ""}, {**old, **inside})


def unet(shapes: Mapping[str, Shape]) -> Layout:
    """Of a U-Net with text or without; attention has its old names (query, key, value, proj_attn) where the file has them."""
    return _named(shapes, {**LISTS_OF_ONE, r"^\.guidance_proj\.": ".time_embedding.cond_proj."})


def autoencoder(shapes: Mapping[str, Shape]) -> Layout:
    return _named(shapes)


def mmdit(config: MMDiTConfig) -> Layout:
    """q, k and v stand apart there; where a norm has scale first and shift second, ours has them the other way round."""
    last = config.depth - 1
    modules = {
        "x_embedder.proj": "pos_embed.proj",
        "pos_embed": "pos_embed.pos_embed",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
    }
    modules |= {f"final_layer.adaLN_modulation.1.{part}": f"norm_out.linear.{part}#swap" for part in ("weight", "bias")}
    for i in range(config.depth):
        modules |= joint_block(f"joint_blocks.{i}", f"transformer_blocks.{i}")
    ends = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
    modules |= {f"{ends}.{part}": f"transformer_blocks.{last}.norm1_context.linear.{part}#swap" for part in ("weight", "bias")}
    return Layout(modules)


def joint_block(ours: str, theirs: str) -> dict[str, str]:
    """Of an MMDiT, or of a ControlNet of it: our module's path, theirs."""
    found = {}
    for stream, attn, q, out, norms, modulation, ff in (
        ("x_block", "attn", "to_{}", "to_out.0", "norm_{}", "norm1", "ff"),
        ("x_block", "attn2", "to_{}", "to_out.0", "norm_{}", "norm1", "ff"),
        ("context_block", "attn", "add_{}_proj", "to_add_out", "norm_added_{}", "norm1_context", "ff_context"),
    ):
        here, there = f"{ours}.{stream}", f"{theirs}.{attn}"
        for part in ("weight", "bias"):
            found[f"{here}.{attn}.qkv.{part}"] = "+".join(f"{there}.{q.format(name)}.{part}" for name in "qkv")
        found |= {f"{here}.{attn}.ln_{name}": f"{there}.{norms.format(name)}" for name in "qk"}
        found |= {f"{here}.{attn}.proj": f"{there}.{out}", f"{here}.adaLN_modulation.1": f"{theirs}.{modulation}.linear"}
        found |= {f"{here}.mlp.fc{i + 1}": f"{theirs}.{ff}.net.{('0.proj', '2')[i]}" for i in range(2)}
    return found
