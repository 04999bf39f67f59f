"""The published families, one row each: what a file of the family is run with. A file's own sizes replace the row's.

Sizes are those of `published.py`; prediction, schedule and defaults are the authors' (their configs and sampling scripts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unnoise.errors import UnknownName
from unnoise.families.papers import PUBLISHED
from unnoise.families.spec import TEXT_PLACES, Defaults, ModelSpec, ScheduleSpec
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.unet import UNetConfig


def _row(name: str, published: str, **rest: Any) -> ModelSpec:
    """A family whose networks have the sizes of a published model; `network` replaces that of the published one."""
    model = PUBLISHED[published]
    networks = {
        "network": rest.pop("network", model.network),
        "autoencoder": model.autoencoder,
        **dict(zip(TEXT_PLACES, model.texts, strict=False)),
    }
    given = {place: config for place, config in networks.items() if config}
    return ModelSpec(**{"name": name, "family": name, "summary": model.title, "size": model.side, "networks": given, **rest})


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

# Models of pixels
COSINE = ScheduleSpec(kind="vp", betas="cosine", steps=4000, told_steps=1000)  # improved DDPM
SHORT_COSINE = ScheduleSpec(kind="vp", betas="cosine")  # ADM 64
SLOW = ScheduleSpec(kind="vp", betas="linear", beta_start=2.5e-5, beta_end=0.005, steps=4000)  # its upsampler
FAR = ScheduleSpec(kind="edm", time_scale=250.0)  # consistency models and their teachers
VP_SDE = ScheduleSpec(kind="vp_sde")
VE_SDE = ScheduleSpec(kind="edm", sigma_min=0.02, sigma_max=100.0, time_scale=1.0, unit=0.5)  # 0.01 to 50 for pictures in 0..1

_ANCESTRAL = Defaults(sampler="ddpm", spacing="linspace", num_inference_steps=250, guidance_scale=1.0)
_HEUN = Defaults(sampler="heun", spacing="karras", num_inference_steps=18, guidance_scale=1.0)
_ONE = Defaults(sampler="consistency", spacing="karras", num_inference_steps=1, guidance_scale=1.0)
_CORRECTED = Defaults(sampler="pc", num_inference_steps=1000, guidance_scale=1.0)

_DDPM: dict[str, Any] = {"prediction": "eps", "schedule": DDPM, "conditioning": "none", "defaults": PIXELS}
_IDDPM: dict[str, Any] = {**_DDPM, "schedule": COSINE, "defaults": _ANCESTRAL}
_ADM: dict[str, Any] = {**_DDPM, "defaults": _ANCESTRAL}
_LABELS: dict[str, Any] = {"conditioning": "labels"}
_UPSAMPLER: dict[str, Any] = {**_LABELS, "extra_channels": ("low_res",)}
_EDM: dict[str, Any] = {"prediction": "edm", "schedule": ScheduleSpec(kind="edm"), "conditioning": "none", "defaults": _HEUN}
_TEN: dict[str, Any] = {**_LABELS, "null_label": 10}
_THOUSAND: dict[str, Any] = {**_LABELS, "null_label": 1000}
_VP: dict[str, Any] = {"prediction": "eps", "schedule": VP_SDE}
_VE: dict[str, Any] = {"prediction": "score", "schedule": VE_SDE}
_CONSISTENCY: dict[str, Any] = {"prediction": "consistency", "schedule": FAR, "conditioning": "none", "defaults": _ONE}
_GUIDED = Defaults(sampler="ddpm", spacing="linspace", num_inference_steps=250, guidance_scale=4.0)
_DIT: dict[str, Any] = {**_DDPM, **_THOUSAND, "guided_channels": 3, "defaults": _GUIDED}

_IDDPM_UNET: UNetConfig = PUBLISHED["iddpm-64"].network  # pyright: ignore[reportAssignmentType]
_LSUN = {"widths": (128, 128, 256, 256, 512, 512), "depths": (0, 0, 0, 0, 1, 0), "blocks": 2, "heads": 1, "scale_shift": False}
_UP = {"in_channels": 6, "widths": (192, 192, 384, 384, 768, 768), "depths": (0, 0, 0, 0, 1, 1), "blocks": 2, "num_classes": 1000}
_SCORE_DDPM = NCSNppConfig(
    widths=(128, 256, 256, 256), blocks=2, attend=(False, True, False, False), resample="conv", rescale=False, group_width=1
)

# Name: (published model, what its file does not say). The first of a kind is what stands for files of other sizes.
_PIXELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm-cifar": ("ddpm-cifar", _DDPM),
    "ddpm-celeba": ("ddpm-celeba", _DDPM),
    "ddpm-lsun": ("ddpm-lsun", _DDPM),
    "iddpm-64": ("iddpm-64", _IDDPM),
    "iddpm-cifar": ("iddpm-cifar", _IDDPM),
    "iddpm-64-class": (
        "iddpm-64",
        {**_IDDPM, **_LABELS, "network": replace(_IDDPM_UNET, widths=(192, 384, 576, 768), num_classes=1000)}
        | {"schedule": ScheduleSpec(kind="vp", betas="cosine", steps=4000)},
    ),
    "iddpm-lsun": ("iddpm-64", {**_IDDPM, "schedule": DDPM, "size": 256, "network": replace(_IDDPM_UNET, **_LSUN)}),
    "iddpm-upsampler": ("iddpm-64", {**_IDDPM, **_UPSAMPLER, "schedule": SLOW, "size": 256, "network": replace(_IDDPM_UNET, **_UP)}),
    "adm-256": ("adm-256", {**_ADM, **_LABELS}),
    "adm-256-uncond": ("adm-256-uncond", _ADM),
    "adm-64": ("adm-64", {**_ADM, **_LABELS, "schedule": SHORT_COSINE}),
    "adm-128": ("adm-128", {**_ADM, **_LABELS}),
    "adm-512": ("adm-512", {**_ADM, **_LABELS}),
    "adm-u-512": ("adm-u-512", {**_ADM, **_UPSAMPLER}),
    "adm-u-256": ("adm-u-256", {**_ADM, **_UPSAMPLER}),
    "consistency-imagenet64": ("consistency-imagenet64", {**_CONSISTENCY, **_LABELS}),
    "consistency-lsun": ("consistency-lsun", _CONSISTENCY),
    "edm-cifar": ("edm-cifar", _EDM),
    "edm-cifar-cond": ("edm-cifar-cond", {**_EDM, **_TEN}),
    "edm-cifar-ve": ("edm-cifar-ve", _EDM),
    "edm-cifar-ve-cond": ("edm-cifar-ve-cond", {**_EDM, **_TEN}),
    "edm-faces": ("edm-faces", _EDM),
    "edm-faces-ve": ("edm-faces-ve", _EDM),
    "edm-imagenet64": ("edm-imagenet64", {**_EDM, **_THOUSAND}),
    "edm-baseline-vp": ("edm-cifar", {**_EDM, **_VP}),  # the networks of score_sde, and of improved DDPM, in EDM's own files
    "edm-baseline-ve": ("edm-cifar-ve", {**_EDM, **_VE}),
    "edm-baseline-iddpm": (
        "edm-imagenet64",
        {**_EDM, **_THOUSAND, "prediction": "eps", "schedule": SHORT_COSINE},
    ),
    "score-sde-ddpmpp-cifar": ("score-sde-ddpmpp-cifar", {**_EDM, **_VP, "defaults": _CORRECTED}),
    "score-sde-ncsnpp-cifar": ("score-sde-ncsnpp-cifar", {**_EDM, **_VE, "defaults": _CORRECTED}),
    "score-sde-ddpm-cifar": ("score-sde-ddpmpp-cifar", {**_DDPM, "network": _SCORE_DDPM}),
    **{name: (name, _DIT) for name in PUBLISHED if name.startswith("dit-")},
}

FAMILIES: dict[str, ModelSpec] = {
    row.name: row
    for row in (
        _row("ldm-uncond", "ldm-4-faces", conditioning="none", **_LDM),
        _row(
            "ldm-class",
            "ldm-4-imagenet",
            conditioning="label_tokens",
            null_label=1000,
            **{**_LDM, "defaults": Defaults(sampler="ddim", num_inference_steps=50, guidance_scale=3.0)},
        ),
        _row("ldm-text", "ldm-text", conditioning="bert", **{**_SD, "schedule": LATENT}),
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
        *(_row(name, like, **{"family": PUBLISHED[like].family, **rest}) for name, (like, rest) in _PIXELS.items()),
    )
}


def family(name: str) -> ModelSpec:
    """By name; raises UnknownName."""
    if name not in FAMILIES:
        raise UnknownName("model family", name, FAMILIES)
    return FAMILIES[name]


def resized(spec: ModelSpec, networks: Mapping[str, Any]) -> ModelSpec:
    """The family with networks of other sizes, by place; an autoencoder of the family's kind keeps the family's scale and shift."""
    stage, published = networks.get("autoencoder"), spec.first_stage
    if isinstance(stage, AutoencoderConfig) and isinstance(published, AutoencoderConfig):
        networks = {**networks, "autoencoder": replace(stage, scale=published.scale, shift=published.shift)}
    return spec.with_networks(networks)
