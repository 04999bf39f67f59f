"""The components of a diffusers folder as they are written: of each network its class, its config.json and its tensors.

The configs are what `layouts/diffusers.py` reads, turned round; the classes are those of diffusers 0.42 and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.checkpoints import keys, schedulers
from unnoise.checkpoints.layouts import diffusers, dit, texts
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec, ScheduleSpec
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQConfig

Networks = Mapping[str, nn.Module]
TINY = "a model with a tiny autoencoder in its autoencoder's place is not saved: load it with the autoencoder of its own"


@dataclass(frozen=True)
class Component:
    """One folder of a model's folder."""

    library: str
    kind: str  # its class
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def components(spec: ModelSpec, networks: Networks) -> dict[str, Component]:
    """By the folders' names. Raises FileError for a family that has no pipeline there."""
    pipeline(spec)
    made = {"unet" if spec.network.kind == "unet" else "transformer": _backbone(spec, networks["network"])}
    if "autoencoder" in networks:
        made["vae"] = _first_stage(spec, networks["autoencoder"])
    for place in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if place in networks:
            made["text_encoder_2" if spec.conditioning == "refiner" else place] = _text(spec, place, networks[place])
    return made


def pipeline(spec: ModelSpec) -> str:
    """The class of diffusers that runs the model. Raises FileError."""
    inpainting, network = "mask" in spec.extra_channels, spec.network
    if network.kind == "mmdit" and spec.conditioning == "sd3":
        return "StableDiffusion3Pipeline"
    if network.kind == "dit" and spec.conditioning == "labels":
        return "DiTPipeline"
    if network.kind == "unet" and spec.conditioning in ("sdxl", "refiner"):
        return f"StableDiffusionXL{'Inpaint' if inpainting else 'Img2Img' if spec.conditioning == 'refiner' else ''}Pipeline"
    if network.kind == "unet" and spec.conditioning in ("clip", "clip_penultimate") and "depth" not in spec.extra_channels:
        return (
            f"StableDiffusion{'Inpaint' if inpainting else ''}Pipeline" if not spec.guidance_distilled else "LatentConsistencyModelPipeline"
        )
    raise FileError(f"layout 'diffusers' has Stable Diffusion 1 to 3.5 and DiT, got {spec.name}: use layout 'ldm', 'dit' or 'unnoise'")


def _backbone(spec: ModelSpec, network: nn.Module) -> Component:
    weights, config, side = network.state_dict(), spec.network, spec.size // spec.factor
    if isinstance(config, UNetConfig):
        return Component("diffusers", "UNet2DConditionModel", unet(config, spec, side), keys.write(diffusers.unet({}), weights))
    if isinstance(config, MMDiTConfig):
        return Component("diffusers", "SD3Transformer2DModel", mmdit(config, side), keys.write(diffusers.mmdit(config), weights))
    assert isinstance(config, DiTConfig)  # `pipeline` lets nothing else pass
    stored = keys.write(dit.diffusers(config), weights)
    first = "transformer_blocks.0.norm1.emb."
    for i in range(1, config.depth):  # each block there has the two embedders
        stored |= {
            key.replace(first, f"transformer_blocks.{i}.norm1.emb."): value.clone()
            for key, value in stored.items()
            if key.startswith(first)
        }
    return Component("diffusers", "DiTTransformer2DModel", transformer(config, side), stored)


def _first_stage(spec: ModelSpec, network: nn.Module) -> Component:
    stored = keys.write(diffusers.autoencoder({}), network.state_dict())
    config = spec.first_stage
    if isinstance(config, AutoencoderConfig):
        return Component("diffusers", "AutoencoderKL", autoencoder(config, spec.size), stored)
    if isinstance(config, VQConfig):
        return Component("diffusers", "VQModel", vq(config, spec.size), stored)
    raise FileError(TINY)


def _text(spec: ModelSpec, place: str, network: nn.Module) -> Component:
    config: Any = network.config
    weights = network.state_dict()
    if isinstance(config, T5Config):
        stored = keys.write(texts.t5({"shared.weight": ()}), weights)
        return Component("transformers", "T5EncoderModel", t5(config), stored)
    projected = spec.conditioning == "sd3" or (spec.conditioning in ("sdxl", "refiner") and config.activation == "gelu")
    if spec.conditioning == "clip_penultimate":  # there the encoder ends where it is read here
        config, weights = shortened(config, weights)
    if projected and not config.projection:  # Stable Diffusion 3's first is read without one
        like = next(iter(weights.values()))
        weights = {**weights, "text_projection.weight": torch.eye(config.width, dtype=like.dtype)}
    if not projected:
        weights = {name: value for name, value in weights.items() if name != "text_projection.weight"}
    return Component("transformers", "CLIPTextModelWithProjection" if projected else "CLIPTextModel", clip(config), weights)


def shortened(config: CLIPTextConfig, weights: Mapping[str, Tensor]) -> tuple[CLIPTextConfig, dict[str, Tensor]]:
    """The encoder without its last layer."""
    last = f"text_model.encoder.layers.{config.layers - 1}."
    return CLIPTextConfig(**{**vars(config), "layers": config.layers - 1}), {k: v for k, v in weights.items() if not k.startswith(last)}


# The configs


def unet(config: UNetConfig, spec: ModelSpec, side: int) -> dict[str, Any]:
    """`attention_head_dim` is the number of heads, whatever its name."""
    levels = [bool(depth) for depth in config.depths]
    depths = [depth or (config.mid_depth if i + 1 == len(levels) else 1) for i, depth in enumerate(config.depths)]
    heads = [width // config.head_width for width in config.widths] if config.head_width else config.heads
    written = {
        "sample_size": side,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "attention_head_dim": heads,
        "cross_attention_dim": config.context_width,
        "use_linear_projection": config.linear_projection,
        "flip_sin_to_cos": config.time_cos_first,
        "freq_shift": int(config.time_shift),
        "norm_num_groups": config.groups,
        "norm_eps": config.eps,
        "act_fn": "silu",
    }
    if config.guidance_width:
        written["time_cond_proj_dim"] = config.guidance_width
    return written | _told(config, spec)


def _told(config: UNetConfig, spec: ModelSpec) -> dict[str, Any]:
    """The vector of SDXL: pooled text, and sinusoids of six numbers, of the refiner's five."""
    if not config.pooled_width:
        return {}
    numbers, place = (5, "text_encoder") if spec.conditioning == "refiner" else (6, "text_encoder_2")
    text = spec.networks.get(place)
    width = (config.pooled_width - (text.projection if isinstance(text, CLIPTextConfig) else 1280)) // numbers
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": width,
        "projection_class_embeddings_input_dim": config.pooled_width,
    }


def mmdit(config: MMDiTConfig, side: int) -> dict[str, Any]:
    return {
        "sample_size": side,
        "patch_size": config.patch,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "num_layers": config.depth,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "joint_attention_dim": config.context_width,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled_width,
        "pos_embed_max_size": config.positions,
        "dual_attention_layers": list(range(config.dual_blocks)),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }


def transformer(config: DiTConfig, side: int) -> dict[str, Any]:
    return {
        "sample_size": side,
        "patch_size": config.patch,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels * (2 if config.learn_sigma else 1),
        "num_layers": config.depth,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_embeds_ada_norm": config.num_classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-5,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    }


def _stage(config: AutoencoderConfig | VQConfig, size: int) -> dict[str, Any]:
    levels = len(config.widths)
    return {
        "sample_size": size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.blocks,
        "norm_num_groups": config.groups,
        "act_fn": "silu",
        "scaling_factor": config.scale,
    }


def autoencoder(config: AutoencoderConfig, size: int) -> dict[str, Any]:
    shift = {"shift_factor": config.shift} if config.shift else {}
    return {**_stage(config, size), **shift, "use_quant_conv": config.quant_convs, "use_post_quant_conv": config.quant_convs}


def vq(config: VQConfig, size: int) -> dict[str, Any]:
    return {**_stage(config, size), "num_vq_embeddings": config.codes}


def clip(config: CLIPTextConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.length,
        "hidden_act": config.activation,
        "projection_dim": config.projection or config.width,
        "bos_token_id": config.end_token - 1,
        "eos_token_id": config.end_token,
        "pad_token_id": 1,
    }


def t5(config: T5Config) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "vocab_size": config.vocab,
        "d_model": config.width,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "d_kv": config.head_width,
        "d_ff": config.mlp,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": False,
    }


def scheduler(spec: ModelSpec) -> dict[str, Any]:
    """What the scheduler's config says of training; how it samples is near the defaults of our spec."""
    schedule = spec.schedule
    if schedule.kind == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": schedule.shift}
    betas = {ours: theirs for theirs, ours in schedulers.BETAS.items()}[schedule.betas]
    few = next((name for name, row in schedulers.FEW_STEPS.items() if row == (spec.defaults.sampler, spec.defaults.spacing)), None)
    name = few or ("EulerDiscreteScheduler" if spec.conditioning in ("sdxl", "refiner") else "DDIMScheduler")
    predicts = {ours: theirs for theirs, ours in schedulers.PREDICTIONS.items()}
    written = {
        "_class_name": name,
        "num_train_timesteps": schedule.steps,
        "beta_schedule": betas,
        **_ends(schedule),
        "prediction_type": predicts.get(spec.prediction, "epsilon"),
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr or spec.defaults.spacing == "trailing" else "leading",
        "steps_offset": 0 if spec.network.kind == "dit" else 1,
    }
    if name != "EulerDiscreteScheduler":
        written |= {"clip_sample": False, "set_alpha_to_one": spec.network.kind == "dit"}
    if schedule.zero_terminal_snr:
        written["rescale_betas_zero_snr"] = True
    return written


def _ends(schedule: ScheduleSpec) -> dict[str, float]:
    if schedule.betas == "cosine":
        return {}
    start, end = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[schedule.betas]
    return {"beta_start": schedule.beta_start or start, "beta_end": schedule.beta_end or end}
