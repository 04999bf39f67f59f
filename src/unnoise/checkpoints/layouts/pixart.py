"""PixArt-Sigma: the config and the names of diffusers' PixArtTransformer2DModel. Our modules have the authors' names."""

from __future__ import annotations

from typing import Any

from unnoise.checkpoints.folder.configs import LEARNED, TRANSFORMER
from unnoise.checkpoints.folder.table import Group, Table, Theirs
from unnoise.checkpoints.keys import Layout
from unnoise.errors import FileError
from unnoise.networks.pixart import PixArtConfig


def _grid_read(theirs: Theirs) -> dict[str, Any]:
    """The training grid. Raises FileError for PixArt-Alpha at 1024, which is also given the size and the aspect ratio."""
    side = theirs["sample_size"]
    sized = theirs.get("use_additional_conditions")
    if sized or (sized is None and side == 128):
        raise FileError("this PixArt is given sizes, as PixArt-Alpha is: expected PixArt-Sigma, with use_additional_conditions false")
    return {"grid": side // theirs["patch_size"], "position_scale": float(theirs.get("interpolation_scale") or max(side // 64, 1))}


def _grid_written(ours: PixArtConfig) -> dict[str, Any]:
    scale = ours.position_scale
    return {
        "sample_size": ours.grid * ours.patch,
        "interpolation_scale": int(scale) if scale.is_integer() else scale,
        "cross_attention_dim": ours.width,
        "use_additional_conditions": False,
    }


TABLE = Table(
    "PixArtTransformer2DModel",
    PixArtConfig,
    (
        *TRANSFORMER,
        LEARNED,
        Group(
            ("context_width",),
            lambda theirs: {"context_width": theirs["caption_channels"]},
            lambda ours: {"caption_channels": ours.context_width},
        ),
        Group(("grid", "position_scale"), _grid_read, _grid_written),
    ),
    constants={
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "num_embeds_ada_norm": 1000,
    },
)


def diffusers(config: PixArtConfig) -> Layout:
    """diffusers' names: q, k and v stand apart there, and the six modulations of all blocks in `adaln_single`."""
    modules = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
        "t_block.1": "adaln_single.linear",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.scale_shift_table": "scale_shift_table",
    }
    for i in range(config.depth):
        modules |= _block(f"blocks.{i}", f"transformer_blocks.{i}")
    return Layout(modules, ignored=r"^pos_embed\.pos_embed$")


def _block(ours: str, theirs: str) -> dict[str, str]:
    names = {f"{ours}.scale_shift_table": f"{theirs}.scale_shift_table", f"{ours}.attn.proj": f"{theirs}.attn1.to_out.0"}
    names |= {f"{ours}.cross_attn.q_linear": f"{theirs}.attn2.to_q", f"{ours}.cross_attn.proj": f"{theirs}.attn2.to_out.0"}
    names |= {f"{ours}.mlp.fc1": f"{theirs}.ff.net.0.proj", f"{ours}.mlp.fc2": f"{theirs}.ff.net.2"}
    for part in ("weight", "bias"):
        names[f"{ours}.attn.qkv.{part}"] = "+".join(f"{theirs}.attn1.to_{one}.{part}" for one in "qkv")
        names[f"{ours}.cross_attn.kv_linear.{part}"] = "+".join(f"{theirs}.attn2.to_{one}.{part}" for one in "kv")
    return names
