"""The parts of diffusers folders of pixel models and of DiT: UNet2DModel (DDPM, consistency models), DiTTransformer2DModel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from unnoise.checkpoints.keys import Layout, Shape
from unnoise.checkpoints.layouts import diffusers, dit
from unnoise.checkpoints.parts import Part
from unnoise.checkpoints.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.dit import DiTConfig
from unnoise.networks.unet import UNetConfig

Config = Mapping[str, Any]


def unet2d(shapes: Mapping[str, Shape]) -> Layout:
    """With the attention's old names (query, key, value, proj_attn) where the file has them."""
    return diffusers.unet(shapes)


def unet2d_config(config: Config) -> UNetConfig:
    """From config.json. Here `attention_head_dim` is what its name says, unlike in the U-Nets with text; null is one head."""
    kinds, widths = config["down_block_types"], tuple(config["block_out_channels"])
    residual = config.get("downsample_type") == "resnet" or any("Resnet" in kind for kind in kinds)
    _refuse(config, kinds)
    width = config.get("attention_head_dim", 8)
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        widths=widths,
        blocks=config["layers_per_block"],
        depths=tuple(int("Attn" in kind) for kind in kinds),
        mid_depth=int(config.get("add_attention", True)),
        heads=1 if width is None else 8,
        head_width=width or 0,
        context_width=0,
        num_classes=config.get("num_class_embeds") or 0,
        scale_shift=config.get("resnet_time_scale_shift", "default") == "scale_shift",
        resample="residual" if residual else "conv",
        corner_pad=config.get("downsample_padding", 1) == 0,
        time_shift=float(config.get("freq_shift", 0)),
        time_cos_first=config.get("flip_sin_to_cos", True),
        groups=config.get("norm_num_groups", 32),
        eps=config.get("norm_eps", 1e-5),
    )


def _refuse(config: Config, kinds: list[str]) -> None:
    known = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
    odd = [kind for kind in kinds if kind not in known]
    if odd or config.get("time_embedding_type", "positional") != "positional" or config.get("class_embed_type"):
        what = odd[0] if odd else config.get("class_embed_type") or config["time_embedding_type"]
        raise FileError(f"this UNet2DModel has {what!r}: expected {', '.join(known)}, sinusoids of the time and a table of classes")


def unet2d_part(weights: Weights, config: Config) -> Part:
    return Part(unet2d_config(config), unet2d(weights.shapes), weights)


def dit_config(config: Config) -> DiTConfig:
    """From config.json."""
    heads = config["num_attention_heads"]
    channels = config["in_channels"]
    return DiTConfig(
        in_channels=channels,
        patch=config["patch_size"],
        width=heads * config["attention_head_dim"],
        depth=config["num_layers"],
        heads=heads,
        num_classes=config["num_embeds_ada_norm"],
        learn_sigma=config.get("out_channels") == 2 * channels,
    )


def dit_part(weights: Weights, config: Config) -> Part:
    """Raises FileError where the copies that every block has of the embedders differ: then no single network is all of them."""
    sizes = dit_config(config)
    for i in range(1, sizes.depth):
        for part in ("timestep_embedder.linear_1.bias", "timestep_embedder.linear_2.bias"):
            first, copy = (weights.read(f"transformer_blocks.{k}.norm1.emb.{part}") for k in (0, i))
            if not torch.equal(first, copy):
                raise FileError(
                    f"{weights.path}: block {i} has another {part} than block 0: DiT has one embedder, so this was trained apart"
                )
    return Part(sizes, dit.diffusers(sizes), weights)
