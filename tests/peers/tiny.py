"""Tiny pipelines of diffusers with random weights, saved as people have them: folders, for our side to load."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unnoise.networks.mmdit import MMDiTConfig

VOCABULARY = 49408


def _clip(width: int, layers: int, act: str, *, projection: int = 0, heads: int = 2) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        projection_dim=projection or width,
        eos_token_id=49407,
        bos_token_id=49406,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**sizes, **more})


def _vae(latents: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latents,
        layers_per_block=1,
        **more,
    )


def _randomised(*modules: Any) -> None:
    """No weight is left at zero or one, so that every one of them matters."""
    generator = torch.Generator().manual_seed(1)
    for module in modules:
        module.eval()  # transformers' models are born in training mode, with dropout
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def _tokenizer(shared: Path, pad: str = "<|endoftext|>") -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(shared / "weights/sd15_layout/tokenizer"), pad_token=pad)


def sd1(
    shared: Path, *, unet: dict[str, Any] | None = None, scheduler: dict[str, Any] | None = None, cls: str = "StableDiffusionPipeline"
) -> Any:
    """Stable Diffusion 1's shape."""
    import diffusers
    from diffusers import DDIMScheduler

    parts = {"unet": _unet(**(unet or {})), "vae": _vae(), "text_encoder": _clip(32, 3, "quick_gelu")}
    _randomised(*parts.values())
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False}
    schedule = DDIMScheduler(**{**betas, "steps_offset": 1, **(scheduler or {})})
    more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, cls)(**parts, tokenizer=_tokenizer(shared), scheduler=schedule, **more)


def sd2(shared: Path, *, scheduler: dict[str, Any] | None = None) -> Any:
    """Stable Diffusion 2's: linear projections, v-prediction, a gelu text encoder, padding 0."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    unet = _unet(use_linear_projection=True, attention_head_dim=(2, 4))
    parts = {"unet": unet, "vae": _vae(), "text_encoder": _clip(32, 3, "gelu")}
    _randomised(*parts.values())
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False}
    schedule = DDIMScheduler(**{**betas, "steps_offset": 1, "prediction_type": "v_prediction", **(scheduler or {})})
    more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, tokenizer=_tokenizer(shared, "!"), scheduler=schedule, **more)


def sdxl(shared: Path, *, refiner: bool = False, **more: Any) -> Any:
    import diffusers
    from diffusers import EulerDiscreteScheduler

    numbers, second = (5 if refiner else 6), 48
    width = 48 if refiner else 32 + 48
    unet = _unet(
        use_linear_projection=True,
        attention_head_dim=(2, 4),
        cross_attention_dim=width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=second + 8 * numbers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        **more,
    )
    parts = {"unet": unet, "vae": _vae(scaling_factor=0.13025), "text_encoder_2": _clip(48, 3, "gelu", projection=second)}
    parts |= {} if refiner else {"text_encoder": _clip(32, 3, "quick_gelu")}
    _randomised(*parts.values())
    schedule = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    tokenizers = {"tokenizer_2": _tokenizer(shared, "!"), **({} if refiner else {"tokenizer": _tokenizer(shared)})}
    rest: dict[str, Any] = {"text_encoder": None, "tokenizer": None, "requires_aesthetics_score": True} if refiner else {}
    cls = diffusers.StableDiffusionXLImg2ImgPipeline if refiner else diffusers.StableDiffusionXLPipeline
    return cls(**{**rest, **parts, **tokenizers}, scheduler=schedule, force_zeros_for_empty_prompt=not refiner, add_watermarker=False)


def joint(*, qk_norm: bool, dual: int) -> tuple[Any, MMDiTConfig]:
    """Stable Diffusion 3's transformer alone, in diffusers' form, and what ours of its size is told."""
    from diffusers import SD3Transformer2DModel

    peer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=10,
        pos_embed_max_size=12,
        dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm" if qk_norm else None,
    )
    sizes = {"width": 32, "depth": 3, "heads": 2, "context_width": 12, "pooled_width": 10, "positions": 12}
    return peer, MMDiTConfig(in_channels=4, qk_norm=qk_norm, dual_blocks=dual, **sizes)


def sd3(shared: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel

    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        caption_projection_dim=32,
        pooled_projection_dim=32 + 48,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    t5 = T5EncoderModel(T5Config(vocab_size=32128, d_model=96, d_kv=16, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"))
    clips = {"text_encoder": _clip(32, 3, "quick_gelu", projection=32), "text_encoder_2": _clip(48, 3, "gelu", projection=48)}
    parts = {"transformer": transformer, "vae": _vae(4, scaling_factor=1.5305, shift_factor=0.0609), **clips, "text_encoder_3": t5}
    _randomised(*parts.values())
    tokenizers = {"tokenizer": _tokenizer(shared), "tokenizer_2": _tokenizer(shared, "!"), "tokenizer_3": _t5_tokenizer()}
    return StableDiffusion3Pipeline(**parts, **tokenizers, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))


def lcm(shared: Path) -> Any:
    """A latent consistency model: Stable Diffusion 1's shape, and the network is given the guidance scale."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    pipe = sd1(shared, unet={"time_cond_proj_dim": 16})
    schedule = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=True)
    return LatentConsistencyModelPipeline(**{**pipe.components, "scheduler": schedule}, requires_safety_checker=False)


def controlnet(unet: Any, seed: int) -> Any:
    """A ControlNet of the U-Net whose outputs are not zero, as they would be at birth."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 32, 64))
    _randomised(net)
    return net


def _t5_tokenizer() -> Any:
    """transformers' from the package's vocabulary; the pieces themselves are compared elsewhere."""
    from transformers import T5TokenizerFast

    from unnoise.networks.tokenizers import published_t5

    return T5TokenizerFast(tokenizer_object=published_t5().pieces, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", extra_ids=0)


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "sd1": sd1,
    "sd2": sd2,
    "zero_snr": functools.partial(sd2, scheduler={"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 0}),
    "inpainting": functools.partial(sd1, unet={"in_channels": 9}, cls="StableDiffusionInpaintPipeline"),
    "lcm": lcm,
    "sdxl": sdxl,
    "refiner": functools.partial(sdxl, refiner=True),
    "sd3": sd3,
}


def saved(name: str, shared: Path, folder: Path) -> Any:
    """The pipeline, quiet and in eval mode, after it was written to the folder."""
    pipe = PIPELINES[name](shared)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(str(folder))
    return pipe
