"""Single files of CompVis and Stability AI: latent diffusion, Stable Diffusion 1 and 2, SDXL and its refiner.

model.diffusion_model.*     the U-Net with numbered blocks
model_ema.*                 its average, the names without their dots
first_stage_model.*         the autoencoder
cond_stage_model.*          the condition's encoder; in SDXL conditioner.embedders.0.* and .1.*
betas ...                   the schedule, as tables
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unnoise.checkpoints.folder import schedulers
from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Networks, under, write
from unnoise.checkpoints.layouts import bert, first_stage, numbered, texts
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.families.spec import TEXT_PLACES, ModelSpec, Place, ScheduleSpec
from unnoise.families.table import FAMILIES, resized
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.bert import BertConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig

UNET = "model.diffusion_model."
CLIP, OPEN_CLIP, BERT, CLASSES = (f"cond_stage_model.{end}" for end in ("transformer.", "model.", "transformer.", "embedding."))
XL_CLIP, XL_OPEN_CLIP, REFINER_OPEN_CLIP = (f"conditioner.embedders.{end}." for end in ("0.transformer", "1.model", "0.model"))


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there is no U-Net with numbered blocks under the authors' prefix."""
    unet = weights.prefixed(UNET)
    if "input_blocks.0.0.weight" not in unet:
        return None
    texts_found = _texts(weights, hints)
    family, evidence = _family(weights, unet)
    family = hints.get("file", {}).get("family", family)
    config = numbered.unet_config(unet.shapes, {**_heads(family, unet), **hints.get("network", {})})
    stage = first_stage.part(weights.prefixed(first_stage.PREFIX), hints.get("autoencoder", {}))
    parts = {"network": _network(weights, unet, config, family, hints), **({"autoencoder": stage} if stage else {}), **texts_found}
    spec, more = _schedule(weights, resized(FAMILIES[family], {place: part.config for place, part in parts.items()}))
    if config.guidance_width:
        spec = spec.model_copy(update=schedulers.distilled("LCMScheduler", spec, spec.prediction))
        more = [*more, "a latent consistency model: the network is given the guidance scale"]
    if isinstance(table := spec.networks.get("text_encoder"), ClassTokensConfig):
        spec = spec.model_copy(update={"null_label": table.classes - 1})
    average = ["the averaged weights (model_ema) are used"] if _averaged(weights, unet, hints) else []
    return Found(spec, parts, (*evidence, *more, *average)).with_stage()


def _network(weights: Weights, unet: Weights, config: UNetConfig, family: str, hints: Hints) -> Part:
    if _averaged(weights, unet, hints):
        places = weights.prefixed("model_ema.diffusion_model").places
        unet = replace(unet, places={name: places[name.replace(".", "")] for name in unet})
    order = "head qkv d" if family.startswith("ldm") else "qkv head d"
    return Part(config, numbered.unet(config, order), unet)


def _averaged(weights: Weights, unet: Weights, hints: Hints) -> bool:
    """Whether the average stands beside the live weights; pictures are made with it, as in the authors' scripts."""
    whole = all(f"model_ema.diffusion_model{name.replace('.', '')}" in weights for name in unet)
    return whole and hints.get("file", {}).get("ema", True)


def _family(weights: Weights, unet: Weights) -> tuple[str, list[str]]:
    """The name of the family, and by which keys and shapes it is known."""
    channels = unet.shapes["input_blocks.0.0.weight"][1]
    ends = {9: "-inpainting", 5: "-depth"}
    if "label_emb.0.0.weight" in unet:
        return _xl(weights, unet, ends.get(channels, ""))
    if f"{CLASSES}weight" in weights:
        return "ldm-class", ["class labels by cond_stage_model.embedding"]
    if not any(".attn2." in name for name in unet):
        return "ldm-uncond", ["unconditional: no cross-attention"]
    if f"{BERT}token_emb.weight" in weights:
        return "ldm-text", ["BERT's token table"]
    width = next(shape[1] for name, shape in unet.shapes.items() if name.endswith("attn2.to_k.weight"))
    linear = any(len(shape) == 2 for name, shape in unet.shapes.items() if name.endswith(".1.proj_in.weight"))
    name = "sd2" if linear or any(key.startswith(OPEN_CLIP) for key in weights) else "sd1"
    evidence = [f"{'linear' if linear else '1x1 convolution'} projections, text of width {width}, {channels} channels in"]
    return (name + ends[channels] if channels in ends else name), evidence


def _xl(weights: Weights, unet: Weights, end: str) -> tuple[str, list[str]]:
    width = unet.shapes["label_emb.0.0.weight"][1]
    if any(key.startswith(REFINER_OPEN_CLIP) for key in weights) or width == 2560:
        return "sdxl-refiner", [f"a vector of width {width}, one text encoder"]
    return f"sdxl{end}", [f"a vector of width {width} joins the time embedding"]


def _heads(family: str, unet: Weights) -> dict[str, Any]:
    """How attention is divided in each family; shapes do not show it."""
    row = FAMILIES[family].network if family in FAMILIES else None
    if not isinstance(row, UNetConfig):  # of another kind of network, or with more channels than the family has
        channels = unet.shapes["input_blocks.0.0.weight"][1]
        raise FileError(f"{unet.path} has a U-Net of {channels} channels under the names of {family}: no such family runs here")
    return {"head_width": row.head_width, "heads": row.heads}


def _texts(weights: Weights, hints: Hints) -> dict[str, Part]:
    first, second = hints.get("text_encoder", {}), hints.get("text_encoder_2", {})
    if f"{CLASSES}weight" in weights:
        classes, width = weights.shapes[f"{CLASSES}weight"]
        own = weights.prefixed("cond_stage_model.")
        return {"text_encoder": Part(ClassTokensConfig(classes, width), texts.same(), own)}
    if f"{BERT}token_emb.weight" in weights:
        own = weights.prefixed(BERT)
        config = bert.bert_config(own.shapes, first)
        return {"text_encoder": Part(config, bert.bert(config), own)}
    found = {}
    for prefix, place, hint in ((CLIP, "text_encoder", first), (XL_CLIP, "text_encoder", first)):
        if any(f"{prefix}{front}embeddings.token_embedding.weight" in weights for front in ("text_model.", "")):  # "": old merges
            found[place] = texts.clip_part(weights.prefixed(prefix), hint)
    for prefix, place, hint in (
        (OPEN_CLIP, "text_encoder", first),
        (REFINER_OPEN_CLIP, "text_encoder", first),
        (XL_OPEN_CLIP, "text_encoder_2", second),
    ):
        if f"{prefix}token_embedding.weight" in weights:
            found[place] = texts.open_clip_part(weights.prefixed(prefix), hint)
    return found


def _schedule(weights: Weights, spec: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """Prediction, betas and scale, where the file says them by a table or a mark, else the family's."""
    evidence, update = [], {}
    if "betas" in weights and spec.schedule.kind == "vp":
        first, last = (float(weights.read("betas")[i]) for i in (0, -1))
        bar = spec.schedule.build().alpha_bar  # pyright: ignore[reportAttributeAccessIssue]
        row = float(1 - bar[0]), float(1 - bar[-1] / bar[-2])
        if max(abs(row[0] - first), abs(row[1] - last)) > 1e-6:  # LSUN churches end at 0.0155, the others at 0.0195
            update["schedule"] = ScheduleSpec(kind="vp", betas="scaled_linear", beta_start=first, beta_end=last)
        evidence.append(f"betas {first:.5g} to {last:.5g} by the file's table")
    if "v_pred" in weights or _says_v(weights.metadata):
        update["prediction"] = "v"
        evidence.append("v-prediction by a mark in the file")
    elif spec.name == "sd2" and weights.metadata.get("modelspec.prediction_type", "").lower() == "epsilon":
        base = FAMILIES["sd2-base"]
        update |= {name: getattr(base, name) for name in ("name", "family", "summary", "size", "prediction")}
        evidence.append("epsilon by a mark in the file")
    if "ztsnr" in weights:
        update["schedule"] = spec.schedule.model_copy(update={"zero_terminal_snr": True})
        evidence.append("zero terminal SNR by a mark in the file")
    if "scale_factor" in weights and isinstance(stage := spec.first_stage, AutoencoderConfig):
        scale = float(weights.read("scale_factor"))
        spec = spec.with_networks({"autoencoder": replace(stage, scale=scale)})
        evidence.append(f"latents scaled by {scale:.5g}")
    if spec.name == "sd2" and "prediction" not in update:
        evidence.append("v-prediction as most Stable Diffusion 2 files; nothing in a file tells: for the base model give prediction='eps'")
    return spec.model_copy(update=update), evidence


def _says_v(metadata: Mapping[str, str]) -> bool:
    words = (metadata.get("modelspec.prediction_type", ""), metadata.get("ss_v_parameterization", ""))
    return words[0].lower() in ("v", "v_prediction") or words[1].lower() == "true"


# Written


def tensors(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    """The tensors of a file of CompVis or Stability AI. Raises FileError for another family."""
    unet = spec.network
    if not isinstance(unet, UNetConfig) or spec.first_stage is None or spec.conditioning in ("draft", "labels"):
        raise FileError(f"layout 'ldm' has latent diffusion, Stable Diffusion and SDXL, got {spec.name}: use another layout")
    order = "head qkv d" if spec.name.startswith("ldm") else "qkv head d"
    found = under(UNET, write(numbered.unet(unet, order), networks["network"].state_dict()))
    found |= first_stage.tensors(spec.first_stage, networks)
    for place in TEXT_PLACES[:2]:
        if place in networks:
            found |= _condition(spec, place, networks[place].state_dict())
    return found


def _condition(spec: ModelSpec, place: Place, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    config = spec.networks[place]
    if isinstance(config, ClassTokensConfig):
        return under("cond_stage_model.", weights)
    if isinstance(config, BertConfig):
        return under(BERT, write(bert.bert(config), weights))
    assert isinstance(config, CLIPTextConfig)  # the conditionings that are left
    older = isinstance(spec.network, UNetConfig) and not spec.network.linear_projection
    if (spec.conditioning == "sdxl" and place == "text_encoder") or (spec.conditioning == "clip" and older):
        return under(XL_CLIP if spec.conditioning == "sdxl" else CLIP, write(texts.clip(config), weights))
    prefix = {"refiner": REFINER_OPEN_CLIP, "sdxl": XL_OPEN_CLIP}.get(spec.conditioning, OPEN_CLIP)
    stored = write(texts.open_clip(config), weights)
    return under(prefix, stored if spec.conditioning != "clip" else _lengthened(stored, config.layers))


def _lengthened(stored: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """With the last layer that Stable Diffusion 2's file has and nothing reads, which its folder lacks: zeros, so it changes nothing."""
    last = f"transformer.resblocks.{layers - 1}."
    more = {
        key.replace(last, f"transformer.resblocks.{layers}."): torch.zeros_like(value)
        for key, value in stored.items()
        if key.startswith(last)
    }
    return stored | more


def constants(stored: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """What the authors' files hold beside weights: the numbers of positions, and the schedule's tables where the family has them."""
    found = {}
    for prefix in (CLIP, XL_CLIP):
        table = stored.get(f"{prefix}text_model.embeddings.position_embedding.weight")
        if table is not None:
            found[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(len(table))[None]
    if spec.network.kind == "unet" and spec.schedule.kind == "vp" and spec.conditioning not in ("sdxl", "refiner"):
        found |= tables(spec)
    if spec.schedule.kind == "vp" and spec.schedule.zero_terminal_snr:
        found["ztsnr"] = torch.zeros(0)
    if spec.prediction == "v":
        found["v_pred"] = torch.zeros(0)
    return found


def tables(spec: ModelSpec) -> dict[str, Tensor]:
    """The buffers of CompVis' DDPM class, computed in float64 (ldm/models/diffusion/ddpm.py, `register_schedule`)."""
    bar: Tensor = spec.schedule.build().alpha_bar  # pyright: ignore[reportAttributeAccessIssue]
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    alpha = bar / before
    variance = (1 - alpha) * (1 - before) / (1 - bar)
    found = {
        "betas": 1 - alpha,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": (1 - alpha) * before.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - before) * alpha.sqrt() / (1 - bar),
    }
    return {name: table.float() for name, table in found.items()}
