"""The parts of diffusers folders: U-Net, autoencoder, SD 3's transformer. Sizes come from the config.json beside the weights.

Our module names are diffusers' without its lists of one, so the tables are short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.keys import Layout, Shape
from unnoise.errors import FileError
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQConfig

Config = Mapping[str, Any]

# Fields of a U-Net with text that change what it computes, and the values that its networks here have.
PLAIN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "dual_cross_attention": (False, None),
    "only_cross_attention": (False, None),
    "center_input_sample": (False, None),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "attention_type": ("default",),
    "resnet_skip_time_act": (False, None),
    "cross_attention_norm": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "addition_embed_type": (None, "text_time"),
}

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
    return _named(shapes, {**LISTS_OF_ONE, r"^\.guidance_proj\.": ".time_embedding.cond_proj."})


def unet_config(config: Config, hints: Config | None = None) -> UNetConfig:
    """What `attention_head_dim` says is the number of heads, whatever its name (diffusers issue 2011). `hints` go before its words."""
    _refuse(config)
    widths = tuple(config["block_out_channels"])
    depths = _each(config.get("transformer_layers_per_block", 1), widths)
    crosses = ["CrossAttn" in kind for kind in config["down_block_types"]]
    heads = _each(config.get("num_attention_heads") or config["attention_head_dim"], widths)
    of_width = {width // n for width, n in zip(widths, heads, strict=True)}
    same_heads = len(set(heads)) == 1
    if not same_heads and len(of_width) > 1:
        raise FileError(f"this U-Net has {heads} heads for widths {list(widths)}: expected as many everywhere, or heads of one width")
    pooled = config.get("projection_class_embeddings_input_dim") if config.get("addition_embed_type") == "text_time" else 0
    read = {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "widths": widths,
        "blocks": config["layers_per_block"],
        "depths": tuple(depth if cross else 0 for depth, cross in zip(depths, crosses, strict=True)),
        "mid_depth": depths[-1] if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else 0,
        "heads": heads[0] if same_heads else 8,
        "head_width": 0 if same_heads else of_width.pop(),
        "context_width": config["cross_attention_dim"],
        "linear_projection": bool(config.get("use_linear_projection")),
        "pooled_width": pooled or 0,
        "guidance_width": config.get("time_cond_proj_dim") or 0,
        "time_shift": float(config.get("freq_shift", 0)),
        "time_cos_first": config.get("flip_sin_to_cos", True),
        "groups": config.get("norm_num_groups", 32),
        "eps": config.get("norm_eps", 1e-5),
    }
    return UNetConfig(**{**read, **(hints or {})})


def _refuse(config: Config) -> None:
    """Raises FileError where the network computes something else than ours."""
    for name, plain in PLAIN.items():
        value = config.get(name, plain[0])
        values = value if isinstance(value, list | tuple) and value else [value]
        if odd := [one for one in values if one not in plain]:
            raise FileError(f"this U-Net has {name} {odd[0]!r}, which no family here has: expected {plain[0]!r}")


def _each(value: Any, widths: tuple[int, ...]) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * len(widths)


def autoencoder(shapes: Mapping[str, Shape]) -> Layout:
    return _named(shapes)


def autoencoder_config(config: Config) -> AutoencoderConfig:
    latents = config["latent_channels"]
    scale = config.get("scaling_factor") or {4: 0.18215, 16: 1.5305}.get(latents, 1.0)
    return AutoencoderConfig(
        in_channels=config["in_channels"],
        latent_channels=latents,
        widths=tuple(config["block_out_channels"]),
        blocks=config["layers_per_block"],
        quant_convs=config.get("use_quant_conv", True),
        scale=scale,
        shift=config.get("shift_factor") or 0.0,
        groups=config.get("norm_num_groups", 32),
    )


def vq_config(config: Config) -> VQConfig:
    return VQConfig(
        in_channels=config["in_channels"],
        latent_channels=config["latent_channels"],
        codes=config["num_vq_embeddings"],
        widths=tuple(config["block_out_channels"]),
        blocks=config["layers_per_block"],
        scale=config.get("scaling_factor", 1.0) if config.get("scaling_factor") != 0.18215 else 1.0,  # the class's default, not the model's
        groups=config.get("norm_num_groups", 32),
    )


def mmdit_config(config: Config, shapes: Mapping[str, Shape]) -> MMDiTConfig:
    dual = config.get("dual_attention_layers") or ()
    heads, head_width = config["num_attention_heads"], config["attention_head_dim"]
    return MMDiTConfig(
        in_channels=config["in_channels"],
        patch=config["patch_size"],
        width=heads * head_width,
        depth=config["num_layers"],
        heads=heads,
        context_width=config["joint_attention_dim"],
        pooled_width=config["pooled_projection_dim"],
        positions=config["pos_embed_max_size"],
        qk_norm=config.get("qk_norm") == "rms_norm",
        dual_blocks=len(dual),
    )


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
