"""The published families, one row each: what a file of the family is run with. A file's own sizes replace the row's.

Sizes are those of `published.py`; prediction, schedule and defaults are the authors' (their configs and sampling scripts).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unnoise.checkpoints.published import PUBLISHED
from unnoise.checkpoints.specs import Defaults, ModelSpec, ScheduleSpec
from unnoise.errors import UnknownName
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.bert import BertConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQConfig

FIELDS = {
    UNetConfig: "unet",
    DiTConfig: "dit",
    MMDiTConfig: "mmdit",
    NCSNppConfig: "ncsnpp",
    AutoencoderConfig: "autoencoder",
    VQConfig: "vq",
    T5Config: "text_3",
    BertConfig: "bert",
    ClassTokensConfig: "class_tokens",
}


def _row(name: str, published: str, **rest: Any) -> ModelSpec:
    """A family whose networks have the sizes of a published model."""
    model = PUBLISHED[published]
    networks = {FIELDS[type(config)]: config for config in (model.network, model.autoencoder) if config}
    clips = [config for config in model.texts if type(config) not in FIELDS]
    networks |= dict(zip(("text", "text_2"), clips, strict=False))
    networks |= {FIELDS[type(config)]: config for config in model.texts if type(config) in FIELDS}
    return ModelSpec(**{"name": name, "family": name, "summary": model.title, "size": model.side, **networks, **rest})


LATENT = ScheduleSpec(kind="vp", betas="scaled_linear")  # Stable Diffusion 1 and 2, SDXL: 0.00085 to 0.012
OLDER = ScheduleSpec(kind="vp", betas="scaled_linear", beta_start=0.0015, beta_end=0.0195)  # latent diffusion before it
DDPM = ScheduleSpec(kind="vp", betas="linear")
TEXT = Defaults(sampler="dpmpp_2m", num_inference_steps=25, guidance_scale=7.5)
SDXL = Defaults(sampler="dpmpp_2m", num_inference_steps=30, guidance_scale=5.0)
PIXELS = Defaults(sampler="ddim", num_inference_steps=100, guidance_scale=1.0)

_SD = {"prediction": "eps", "schedule": LATENT, "defaults": TEXT}
_SD1 = {**_SD, "conditioning": "clip"}
_SD2 = {**_SD, "conditioning": "clip_penultimate"}
_SDXL = {"prediction": "eps", "schedule": LATENT, "conditioning": "sdxl", "defaults": SDXL}
_LDM = {"prediction": "eps", "schedule": OLDER, "defaults": Defaults(sampler="ddim", num_inference_steps=50, guidance_scale=1.0)}
_INPAINT = {"extra_channels": ("mask", "masked_image")}
_CLASSES = PUBLISHED["ldm-4-imagenet"]

FAMILIES: dict[str, ModelSpec] = {
    row.name: row
    for row in (
        _row("ldm-uncond", "ldm-4-faces", conditioning="none", **_LDM),
        _row(
            "ldm-class",
            "ldm-4-imagenet",
            conditioning="label_tokens",
            class_tokens=ClassTokensConfig(),
            null_label=1000,
            **{**_LDM, "defaults": Defaults(sampler="ddim", num_inference_steps=50, guidance_scale=3.0)},
        ),
        _row("ldm-text", "ldm-text", conditioning="bert", bert=BertConfig(), **{**_SD, "schedule": LATENT}),
        _row("sd1", "sd1", **_SD1),
        _row("sd1-inpainting", "sd1-inpainting", **_SD1, **_INPAINT),
        _row("sd2", "sd2-v", **{**_SD2, "prediction": "v"}),
        _row("sd2-base", "sd2-base", **_SD2),
        _row("sd2-inpainting", "sd2-inpainting", **_SD2, **_INPAINT),
        _row("sd2-depth", "sd2-depth", extra_channels=("depth",), **_SD2),
        _row("sdxl", "sdxl", **_SDXL),
        _row("sdxl-inpainting", "sdxl-inpainting", **_SDXL, **_INPAINT),
        _row(
            "sdxl-turbo",
            "sdxl-turbo",
            **{**_SDXL, "defaults": Defaults(sampler="euler_ancestral", spacing="trailing", num_inference_steps=1, guidance_scale=1.0)},
        ),
        _row("sdxl-refiner", "sdxl-refiner", **{**_SDXL, "conditioning": "refiner"}),
        *(
            _row(
                name,
                name,
                prediction="flow",
                schedule=ScheduleSpec(kind="flow", shift=3.0),
                conditioning="sd3",
                multiple=16,
                defaults=Defaults(sampler="euler", spacing="sd3", num_inference_steps=steps, guidance_scale=scale),
            )
            for name, steps, scale in (("sd3-medium", 28, 5.0), ("sd3.5-medium", 40, 4.5), ("sd3.5-large", 40, 4.5))
        ),
    )
}


def family(name: str) -> ModelSpec:
    """By name; raises UnknownName."""
    if name not in FAMILIES:
        raise UnknownName("model family", name, FAMILIES)
    return FAMILIES[name]


def resized(spec: ModelSpec, networks: dict[str, Any]) -> ModelSpec:
    """The family with networks of other sizes, by the names of the spec's fields; a first stage keeps the family's scale and shift."""
    stage = networks.get("autoencoder")
    if stage is not None and spec.autoencoder is not None:
        networks = {**networks, "autoencoder": replace(stage, scale=spec.autoencoder.scale, shift=spec.autoencoder.shift)}
    return spec.model_copy(update=networks)
