"""The configs of diffusers and transformers as tables, run in both directions: what reads a config.json also writes it.

The classes are those of diffusers 0.42 and transformers 5. What a network's config does not hold (the side of its pictures) is added by
`write.py`.
"""

from __future__ import annotations

from typing import Any

from unnoise.checkpoints.folder.table import Group, Pair, Table, Theirs
from unnoise.errors import FileError
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vision import CLIPVisionConfig
from unnoise.networks.vq import VQConfig


def _or_zero(value: Any) -> Any:
    return value or 0


# U-Nets with text


def _each(value: Any, widths: tuple[int, ...]) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * len(widths)


def _levels_read(theirs: Theirs) -> dict[str, Any]:
    """What `attention_head_dim` says is the number of heads, whatever its name (diffusers issue 2011)."""
    widths = tuple(theirs["block_out_channels"])
    depths = _each(theirs.get("transformer_layers_per_block", 1), widths)
    crosses = ["CrossAttn" in kind for kind in theirs["down_block_types"]]
    heads = _each(theirs.get("num_attention_heads") or theirs["attention_head_dim"], widths)
    of_width = {width // n for width, n in zip(widths, heads, strict=True)}
    same_heads = len(set(heads)) == 1
    if not same_heads and len(of_width) > 1:
        raise FileError(f"this U-Net has {heads} heads for widths {list(widths)}: expected as many everywhere, or heads of one width")
    return {
        "widths": widths,
        "depths": tuple(depth if cross else 0 for depth, cross in zip(depths, crosses, strict=True)),
        "mid_depth": depths[-1] if theirs.get("mid_block_type", "UNetMidBlock2DCrossAttn") else 0,
        "heads": heads[0] if same_heads else 8,
        "head_width": 0 if same_heads else of_width.pop(),
    }


def _levels_written(ours: UNetConfig) -> dict[str, Any]:
    attends = [bool(depth) for depth in ours.depths]
    depths = [depth or (ours.mid_depth if i + 1 == len(attends) else 1) for i, depth in enumerate(ours.depths)]
    return {
        "block_out_channels": list(ours.widths),
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "attention_head_dim": [width // ours.head_width for width in ours.widths] if ours.head_width else ours.heads,
    }


def _pooled_read(theirs: Theirs) -> dict[str, Any]:
    joins = theirs.get("addition_embed_type") == "text_time"
    return {"pooled_width": _or_zero(theirs.get("projection_class_embeddings_input_dim")) if joins else 0}


def _pooled_written(ours: UNetConfig) -> dict[str, Any]:
    if not ours.pooled_width:
        return {}
    return {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": ours.pooled_width}


_WAVES = (
    Pair("freq_shift", "time_shift", 0, float, int),
    Pair("flip_sin_to_cos", "time_cos_first", True),
    Pair("norm_num_groups", "groups", 32),
    Pair("norm_eps", "eps", 1e-5),
)
_CHANNELS = (Pair("in_channels", "in_channels"), Pair("out_channels", "out_channels"), Pair("layers_per_block", "blocks"))

UNET = Table(
    "UNet2DConditionModel",
    UNetConfig,
    (
        *_CHANNELS,
        Group(("widths", "depths", "mid_depth", "heads", "head_width"), _levels_read, _levels_written),
        Pair("cross_attention_dim", "context_width"),
        Pair("use_linear_projection", "linear_projection", False, bool),
        Group(("pooled_width",), _pooled_read, _pooled_written),
        Pair("time_cond_proj_dim", "guidance_width", None, _or_zero, optional=True),
        *_WAVES,
    ),
    constants={"mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "silu"},
    plain={
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
    },
    what="U-Net",
)


# U-Nets of pixels: DDPM, consistency models

BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")


def _pixels_read(theirs: Theirs) -> dict[str, Any]:
    """Here `attention_head_dim` is what its name says, unlike in the U-Nets with text; null is one head."""
    kinds = theirs["down_block_types"]
    odd = [kind for kind in kinds if kind not in BLOCKS]
    if odd or theirs.get("time_embedding_type", "positional") != "positional" or theirs.get("class_embed_type"):
        what = odd[0] if odd else theirs.get("class_embed_type") or theirs["time_embedding_type"]
        raise FileError(f"this UNet2DModel has {what!r}: expected {', '.join(BLOCKS)}, sinusoids of the time and a table of classes")
    width = theirs.get("attention_head_dim", 8)
    residual = theirs.get("downsample_type") == "resnet" or any("Resnet" in kind for kind in kinds)
    return {
        "widths": tuple(theirs["block_out_channels"]),
        "depths": tuple(int("Attn" in kind) for kind in kinds),
        "mid_depth": int(theirs.get("add_attention", True)),
        "heads": 1 if width is None else 8,
        "head_width": width or 0,
        "resample": "residual" if residual else "conv",
    }


def _pixels_written(ours: UNetConfig) -> dict[str, Any]:
    residual = ours.resample == "residual"
    names = [("AttnDownBlock2D", "AttnUpBlock2D"), ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")]
    plain = names[1] if residual else ("DownBlock2D", "UpBlock2D")
    kinds = [names[0] if depth else plain for depth in ours.depths]
    return {
        "block_out_channels": list(ours.widths),
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        "add_attention": bool(ours.mid_depth),
        "attention_head_dim": ours.head_width or None,
        "attn_norm_num_groups": ours.groups,  # None would leave out the norm of the attention in the middle, beside "scale_shift"
        **({"downsample_type": "resnet", "upsample_type": "resnet"} if residual else {}),
    }


def _time_written(scale_shift: bool) -> str:
    return "scale_shift" if scale_shift else "default"


UNET_2D = Table(
    "UNet2DModel",
    UNetConfig,
    (
        Group(("widths", "depths", "mid_depth", "heads", "head_width", "resample"), _pixels_read, _pixels_written),
        *_CHANNELS,
        Group(("context_width",), lambda theirs: {"context_width": 0}, lambda ours: {}),
        Pair("num_class_embeds", "num_classes", None, _or_zero, optional=True),
        Pair("resnet_time_scale_shift", "scale_shift", "default", lambda theirs: theirs == "scale_shift", _time_written),
        Pair("downsample_padding", "corner_pad", 1, lambda theirs: theirs == 0, lambda ours: 0 if ours else 1),
        *_WAVES,
    ),
)


# Transformers


def _width_read(theirs: Theirs) -> dict[str, Any]:
    heads = theirs["num_attention_heads"]
    return {"width": heads * theirs["attention_head_dim"], "heads": heads}


def _width_written(ours: Any) -> dict[str, Any]:
    return {"num_attention_heads": ours.heads, "attention_head_dim": ours.width // ours.heads}


TRANSFORMER = (
    Pair("in_channels", "in_channels"),
    Pair("patch_size", "patch"),
    Pair("num_layers", "depth"),
    Group(("width", "heads"), _width_read, _width_written),
)

MMDIT = Table(
    "SD3Transformer2DModel",
    MMDiTConfig,
    (
        *TRANSFORMER,
        Group((), lambda theirs: {}, lambda ours: {"out_channels": ours.in_channels, "caption_projection_dim": ours.width}),
        Pair("joint_attention_dim", "context_width"),
        Pair("pooled_projection_dim", "pooled_width"),
        Pair("pos_embed_max_size", "positions"),
        Pair("dual_attention_layers", "dual_blocks", (), lambda theirs: len(theirs or ()), lambda ours: list(range(ours))),
        Pair("qk_norm", "qk_norm", None, lambda theirs: theirs == "rms_norm", lambda ours: "rms_norm" if ours else None),
    ),
)

LEARNED = Group(
    ("learn_sigma",),
    lambda theirs: {"learn_sigma": theirs.get("out_channels") == 2 * theirs["in_channels"]},
    lambda ours: {"out_channels": ours.in_channels * (2 if ours.learn_sigma else 1)},
)

DIT = Table(
    "DiTTransformer2DModel",
    DiTConfig,
    (*TRANSFORMER, LEARNED, Pair("num_embeds_ada_norm", "num_classes")),
    constants={
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-5,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    },
)


# Autoencoders


def _stage_written(ours: AutoencoderConfig | VQConfig) -> dict[str, Any]:
    return {
        "out_channels": ours.in_channels,
        "block_out_channels": list(ours.widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(ours.widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(ours.widths),
    }


_STAGE = (
    Pair("in_channels", "in_channels"),
    Pair("latent_channels", "latent_channels"),
    Group(("widths",), lambda theirs: {"widths": tuple(theirs["block_out_channels"])}, _stage_written),
    Pair("layers_per_block", "blocks"),
    Pair("norm_num_groups", "groups", 32),
)
SCALES = {4: 0.18215, 16: 1.5305}  # by the number of latent channels, for configs that were written before the field existed


def _scale_read(theirs: Theirs) -> dict[str, Any]:
    return {"scale": theirs.get("scaling_factor") or SCALES.get(theirs["latent_channels"], 1.0)}


def _scale_written(ours: AutoencoderConfig) -> dict[str, Any]:
    return {"scaling_factor": ours.scale}


def _quant_read(theirs: Theirs) -> dict[str, Any]:
    return {"quant_convs": theirs.get("use_quant_conv", True)}


def _quant_written(ours: AutoencoderConfig) -> dict[str, Any]:
    return {"use_quant_conv": ours.quant_convs, "use_post_quant_conv": ours.quant_convs}


AUTOENCODER = Table(
    "AutoencoderKL",
    AutoencoderConfig,
    (
        *_STAGE,
        Group(("scale",), _scale_read, _scale_written),
        Pair("shift_factor", "shift", None, lambda theirs: theirs or 0.0, optional=True),
        Group(("quant_convs",), _quant_read, _quant_written),
    ),
    constants={"act_fn": "silu"},
)

VQ = Table(
    "VQModel",
    VQConfig,
    (
        *_STAGE,
        Pair("num_vq_embeddings", "codes"),
        Pair("scaling_factor", "scale", 1.0, lambda theirs: 1.0 if theirs == 0.18215 else theirs),  # the class's default, no model's
    ),
    constants={"act_fn": "silu"},
)


# Text encoders, and CLIP's other half. Their sizes are read from shapes; `fields` reads what shapes do not show.


def _tokens_written(ours: CLIPTextConfig) -> dict[str, Any]:
    return {"projection_dim": ours.projection or ours.width, "bos_token_id": ours.end_token - 1}


_CLIP = (
    Pair("hidden_size", "width"),
    Pair("intermediate_size", "mlp"),
    Pair("num_hidden_layers", "layers"),
    Pair("num_attention_heads", "heads"),
)

CLIP = Table(
    "CLIPTextModel",
    CLIPTextConfig,
    (
        *_CLIP,
        Pair("vocab_size", "vocab"),
        Pair("max_position_embeddings", "length"),
        Pair("hidden_act", "activation"),
        Pair("eos_token_id", "end_token"),
        Group((), lambda theirs: {}, _tokens_written),
    ),
    constants={"model_type": "clip_text_model", "pad_token_id": 1},
    library="transformers",
)

VISION = Table(
    "CLIPVisionModel",
    CLIPVisionConfig,
    tuple(
        Pair(theirs, ours, getattr(CLIPVisionConfig, ours))
        for theirs, ours in (("image_size", "image"), ("patch_size", "patch"), *((pair.theirs, pair.ours) for pair in _CLIP))
    ),
    library="transformers",
)

T5 = Table(
    "T5EncoderModel",
    T5Config,
    (
        Pair("vocab_size", "vocab"),
        Pair("d_model", "width"),
        Pair("num_layers", "layers"),
        Pair("num_heads", "heads"),
        Pair("d_kv", "head_width"),
        Pair("d_ff", "mlp"),
        Pair("relative_attention_num_buckets", "buckets"),
        Pair("relative_attention_max_distance", "max_distance", 128),
    ),
    constants={
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": False,
    },
    library="transformers",
)
