"""The U-Net with numbered blocks: guided-diffusion, latent diffusion, Stable Diffusion 1 and 2, SDXL. One numbering serves them all.

input_blocks.0      the first convolution
input_blocks.n      a residual block (.0), attention behind it (.1); or the change of size that ends a level (.0)
middle_block.0-2
output_blocks.n     a residual block (.0), attention (.1), and in a level's last one the change of size behind them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.keys import Layout, Order, Shape, count
from unnoise.networks.unet import UNetConfig

INSIDE = {
    r"^\.norm1\.": ".in_layers.0.",
    r"^\.conv1\.": ".in_layers.2.",
    r"^\.time_emb_proj\.": ".emb_layers.1.",
    r"^\.norm2\.": ".out_layers.0.",
    r"^\.conv2\.": ".out_layers.3.",
    r"^\.conv_shortcut\.": ".skip_connection.",
    r"^\.group_norm\.": ".norm.",
    r"^\.to_([qkv])\.(\w+)$": r".qkv.\2#\g<1>1",
    r"^\.to_out\.(\w+)$": r".proj_out.\1#1",
    r"\.to_out\.": ".to_out.0.",
    r"\.ff\.proj\.": ".ff.net.0.proj.",
    r"\.ff\.out\.": ".ff.net.2.",
}
UP = r"^output_blocks\.(\d+)\.0\.in_layers\.0\.weight$"  # a residual block on the way up
# In a transformer block norm1 and norm2 are layer norms and stay as they are; its paths begin otherwise, so INSIDE leaves them alone.


def names(config: UNetConfig) -> dict[str, str]:
    """Our module's path: theirs."""
    return _ends() | _down(config) | _middle() | _up(config)


def _ends() -> dict[str, str]:
    time = {f"time_embedding.linear_{i + 1}": f"time_embed.{2 * i}" for i in range(2)}
    pooled = {f"add_embedding.linear_{i + 1}": f"label_emb.0.{2 * i}" for i in range(2)}
    ends = {
        "guidance_proj": "time_embed.cond_proj",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    return time | pooled | ends


def _down(config: UNetConfig) -> dict[str, str]:
    found, n = {}, 1
    for i in range(len(config.widths)):
        for j in range(config.blocks):
            found |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{n}.0", f"down_blocks.{i}.attentions.{j}": f"input_blocks.{n}.1"}
            n += 1
        found |= {f"down_blocks.{i}.downsample": f"input_blocks.{n}.0", f"down_blocks.{i}.downsample.conv": f"input_blocks.{n}.0.op"}
        n += 1
    return found


def _middle() -> dict[str, str]:
    return {f"mid_block.{part}": f"middle_block.{j}" for j, part in enumerate(("resnets.0", "attentions.0", "resnets.1"))}


def _up(config: UNetConfig) -> dict[str, str]:
    """Theirs are numbered on from the smallest picture; so are our `up_blocks`."""
    found, levels, blocks = {}, len(config.widths), config.blocks + 1
    for i, depth in enumerate(reversed(config.depths)):
        for j in range(blocks):
            n = i * blocks + j
            found |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{n}.0", f"up_blocks.{i}.attentions.{j}": f"output_blocks.{n}.1"}
        if i + 1 < levels:
            found[f"up_blocks.{i}.upsample"] = f"output_blocks.{i * blocks + blocks - 1}.{2 if depth else 1}"
    return found


def unet(config: UNetConfig, order: Order = "qkv head d") -> Layout:
    """order: "head qkv d" for the attention blocks of guided-diffusion and latent diffusion, which keep a head's rows together."""

    def heads(width: int) -> int:
        return width // config.head_width if config.head_width else config.heads

    return Layout(names(config), INSIDE, order, heads)


def unet_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> UNetConfig:
    """Sizes from shapes. Heads, group counts and whether twice the channels out are a variance cannot be read there: `hints` say them."""
    first, blocks = shapes["input_blocks.0.0.weight"], _blocks(shapes)
    levels = count(UP, shapes) // (blocks + 1)
    heads_of_levels = [f"input_blocks.{1 + i * (blocks + 1)}" for i in range(levels)]
    widths = tuple(shapes[f"{block}.0.out_layers.3.weight"][0] for block in heads_of_levels)
    read = {
        "in_channels": first[1],
        "out_channels": shapes["out.2.weight"][0] // (2 if hints.get("learn_sigma") else 1),
        "widths": widths,
        "blocks": blocks,
        "depths": tuple(_depth(shapes, f"{block}.1") for block in heads_of_levels),
        "mid_depth": _depth(shapes, "middle_block.1"),
        "context_width": next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), 0),
        "linear_projection": len(next((shape for key, shape in shapes.items() if key.endswith(".1.proj_in.weight")), ())) == 2,
        "pooled_width": shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
        "guidance_width": shapes["time_embed.cond_proj.weight"][1] if "time_embed.cond_proj.weight" in shapes else 0,
        "num_classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
        "scale_shift": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resample": "residual" if count(r"^output_blocks\.(\d+)\.[12]\.in_layers", shapes) else "conv",
    }
    return UNetConfig(**{**read, **hints})


def _blocks(shapes: Mapping[str, Shape]) -> int:
    """Residual blocks a level on the way down: on the way up, the first level's last block is the first that changes the size."""
    resizes = r"^output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.0)\.weight$"
    ends = [int(found[1]) for key in shapes if (found := re.match(resizes, key))]
    return min(ends) if ends else count(UP, shapes) - 1


def _depth(shapes: Mapping[str, Shape], attention: str) -> int:
    """Transformer blocks of an attention; 1 for attention among pixels."""
    if f"{attention}.qkv.weight" in shapes:
        return 1
    return count(rf"^{re.escape(attention)}\.transformer_blocks\.(\d+)\.", shapes)
