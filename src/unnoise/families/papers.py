"""The published models as one table: what their networks are, and what their papers say of them.

A row holds the configurations of a model's parts, so it can be built and counted without its weights. Parts that several models share
(autoencoders, text encoders) have rows of their own. What the papers print as "Gflops" are multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unnoise.errors import UnknownName
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.bert import BertConfig
from unnoise.networks.classifier import ClassifierConfig
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.kinds import Backbone, TextConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQConfig

Config = Backbone | ControlNetConfig | ClassifierConfig | AutoencoderConfig | VQConfig | TextConfig


class Family(NamedTuple):
    title: str
    year: int
    source: str
    contribution: str


FAMILIES = {
    "ddpm": Family("DDPM, DDIM", 2020, "Ho et al. 2020", "diffusion at the quality of GANs; DDIM: the same network in fewer steps"),
    "iddpm": Family("Improved DDPM", 2021, "Nichol & Dhariwal 2021", "learned variance, cosine schedule"),
    "score-sde": Family("Score SDE", 2021, "Song et al. 2021", "one SDE for score matching and diffusion; likelihood by its ODE"),
    "adm": Family("ADM", 2021, "Dhariwal & Nichol 2021", "a larger U-Net, guided by a classifier"),
    "ldm": Family("Latent diffusion", 2022, "Rombach et al. 2022", "diffusion of latents, text by cross-attention"),
    "sd": Family("Stable Diffusion", 2022, "Rombach et al. 2022", "latent diffusion trained on LAION"),
    "edm": Family("EDM", 2022, "Karras et al. 2022", "preconditioning and sampler by design"),
    "consistency": Family("Consistency models", 2023, "Song et al. 2023", "one to four steps"),
    "dit": Family("DiT", 2023, "Peebles & Xie 2023", "a transformer in place of the U-Net"),
    "sdxl": Family(
        "Stable Diffusion XL", 2023, "Podell et al. 2023", "a U-Net three times as large, two text encoders, sizes and crops as conditions"
    ),
    "sd3": Family("Stable Diffusion 3", 2024, "Esser et al. 2024", "MMDiT: text and image attend to each other; rectified flow"),
    "controlnet": Family("ControlNet", 2023, "Zhang et al. 2023", "a picture of edges, depth or pose as condition; starts from zero"),
    "text encoder": Family("Text encoders", 2021, "Radford et al. 2021", "text to vectors"),
    "t5": Family("T5", 2020, "Raffel et al. 2020", "text to text, of which the encoder is used"),
    "autoencoder": Family("Autoencoders", 2022, "Rombach et al. 2022", "pictures to latents and back"),
}


class Paper(NamedTuple):
    """What the authors print."""

    parameters: str = ""
    giga_macs: float | None = None  # of one forward
    fid: str = ""


_UNSAID = Paper()


@dataclass(frozen=True)
class Published:
    title: str
    family: str  # a key of FAMILIES
    network: Config
    side: int = 0  # of its pictures, in pixels
    conditions: str = ""  # what it is told beside the time
    paper: Paper = _UNSAID
    autoencoder: AutoencoderConfig | VQConfig | None = None
    texts: tuple[TextConfig, ...] = ()
    tokens: int = 0  # of text, that one forward is counted with

    @property
    def year(self) -> int:
        return FAMILIES[self.family].year

    @property
    def latent(self) -> tuple[int, int, int] | None:
        """(c, h, w) of what is denoised; None for a model of pixels, and for a part."""
        if self.autoencoder is None:
            return None
        side = self.side // self.autoencoder.factor
        return self.autoencoder.latent_channels, side, side


CLIP_L = CLIPTextConfig()
OPEN_CLIP_H = CLIPTextConfig(width=1024, layers=23, heads=16, mlp=4096, activation="gelu")  # its 24th layer is not used by SD 2
OPEN_CLIP_BIG_G = CLIPTextConfig(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection=1280)
T5_XXL = T5Config()
LDM_BERT = BertConfig()
KL_F8 = AutoencoderConfig()
KL_F8_XL = AutoencoderConfig(scale=0.13025)
KL_F8_SD3 = AutoencoderConfig(latent_channels=16, quant_convs=False, scale=1.5305, shift=0.0609)
VQ_F4 = VQConfig()

_PIXELS: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "context_width": 0}
_DDPM: dict[str, Any] = {**_PIXELS, "heads": 1, "corner_pad": True, "eps": 1e-6, "time_shift": 1.0, "time_cos_first": False}
_IDDPM: dict[str, Any] = {**_PIXELS, "blocks": 3, "heads": 4, "learn_sigma": True, "scale_shift": True}
_BIGGAN: dict[str, Any] = {**_PIXELS, "scale_shift": True, "resample": "residual", "head_width": 64}
_ADM: dict[str, Any] = {**_BIGGAN, "learn_sigma": True}
_ADM_64: dict[str, Any] = {"widths": (192, 384, 576, 768), "depths": (0, 1, 1, 1), "blocks": 3, "num_classes": 1000}
_ADM_256: dict[str, Any] = {"widths": (256, 256, 512, 512, 1024, 1024), "depths": (0, 0, 0, 1, 1, 1)}
_ADM_512: dict[str, Any] = {"widths": (128, 256, 256, 512, 512, 1024, 1024), "depths": (0, 0, 0, 0, 1, 1, 1), "waves": 256}
_ADM_U: dict[str, Any] = {"in_channels": 6, "widths": (192, 192, 384, 384, 768, 768), "num_classes": 1000}
_LDM4: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "depths": (0, 1, 1, 1)}
_CHURCHES: dict[str, Any] = {"widths": (192, 384, 384, 768, 768), "depths": (1, 1, 1, 1, 0), "scale_shift": True, "resample": "residual"}
_NCSN: dict[str, Any] = {"fourier": True, "blur": True, "pyramid": True}
_EDM_64: dict[str, Any] = {"widths": (128, 256, 256, 256), "attend": (False, False, True, False), "augment_width": 9}
_SONG_32: dict[str, Any] = {"widths": (128, 256, 256, 256), "attend": (False, True, False, False)}
_SD2: dict[str, Any] = {"head_width": 64, "context_width": 1024, "linear_projection": True}
_XL: dict[str, Any] = {"head_width": 64, "linear_projection": True}
_SDXL: dict[str, Any] = {
    **_XL,
    "widths": (320, 640, 1280),
    "depths": (0, 2, 10),
    "mid_depth": 10,
    "context_width": 2048,
    "pooled_width": 2816,
}
_REFINER: dict[str, Any] = {"widths": (384, 768, 1536, 1536), "depths": (0, 4, 4, 0), "mid_depth": 4, "pooled_width": 2560}


def _sd1(title: str, in_channels: int = 4, conditions: str = "text", printed: str = "") -> Published:
    unet = UNetConfig(in_channels=in_channels)
    return Published(title, "sd", unet, 512, conditions, Paper(printed), KL_F8, (CLIP_L,), 77)


def _sd2(title: str, side: int, in_channels: int = 4, conditions: str = "text", printed: str = "") -> Published:
    unet = UNetConfig(in_channels=in_channels, **_SD2)
    return Published(title, "sd", unet, side, conditions, Paper(printed), KL_F8, (OPEN_CLIP_H,), 77)


def _sdxl(title: str, side: int = 1024, in_channels: int = 4, conditions: str = "text, sizes, crop", printed: str = "") -> Published:
    unet = UNetConfig(in_channels=in_channels, **_SDXL)
    return Published(title, "sdxl", unet, side, conditions, Paper(printed), KL_F8_XL, (CLIP_L, OPEN_CLIP_BIG_G), 77)


def _sd3(title: str, network: MMDiTConfig, printed: str) -> Published:
    return Published(title, "sd3", network, 1024, "text", Paper(printed), KL_F8_SD3, (CLIP_L, OPEN_CLIP_BIG_G, T5_XXL), 154)


_DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # width, depth, heads


def _dit(size: str, patch: int, paper: Paper, side: int = 256) -> Published:
    width, depth, heads = _DIT_SIZES[size]
    network = DiTConfig(patch=patch, width=width, depth=depth, heads=heads, num_classes=1000)
    title = f"DiT-{size}/{patch}" if side == 256 else f"DiT-{size}/{patch} at {side}"
    return Published(title, "dit", network, side, "class", paper, KL_F8)


def _adm(title: str, side: int, conditions: str, paper: Paper, **sizes: Any) -> Published:
    return Published(title, "adm", UNetConfig(**{**_ADM, **sizes}), side, conditions, paper)


def _classifier(side: int, **sizes: Any) -> Published:
    return Published(f"ADM classifier {side}", "adm", ClassifierConfig(side=side, **sizes), side)


def _plain(title: str, family: str, network: Config, side: int, conditions: str = "", printed: str = "") -> Published:
    return Published(title, family, network, side, conditions, Paper(printed))


def _controlnet(title: str, conditions: str, unet: UNetConfig, side: int) -> Published:
    return Published(title, "controlnet", ControlNetConfig(unet), side, conditions, tokens=77)


def _faces(title: str, fid: str) -> Published:
    unet = UNetConfig(widths=(224, 448, 672, 896), head_width=32, context_width=0, **_LDM4)
    return Published(title, "ldm", unet, 256, paper=Paper("274M", fid=fid), autoencoder=VQ_F4)


PUBLISHED: dict[str, Published] = {
    "ddpm-cifar": _plain(
        "DDPM CIFAR-10", "ddpm", UNetConfig(widths=(128, 256, 256, 256), depths=(0, 1, 0, 0), **_DDPM), 32, printed="35.7M"
    ),
    "ddpm-celeba": _plain("DDPM CelebA", "ddpm", UNetConfig(widths=(128, 256, 256, 256, 512), depths=(0, 0, 1, 0, 0), **_DDPM), 64),
    "ddpm-lsun": _plain(
        "DDPM LSUN", "ddpm", UNetConfig(widths=(128, 128, 256, 256, 512, 512), depths=(0, 0, 0, 0, 1, 0), **_DDPM), 256, printed="114M"
    ),
    "iddpm-cifar": _plain("IDDPM CIFAR-10", "iddpm", UNetConfig(widths=(128, 256, 256, 256), depths=(0, 1, 1, 0), **_IDDPM), 32),
    "iddpm-64": _plain("IDDPM ImageNet-64", "iddpm", UNetConfig(widths=(128, 256, 384, 512), depths=(0, 0, 1, 1), **_IDDPM), 64),
    "score-sde-ddpmpp-cifar": _plain("DDPM++ cont. CIFAR-10", "score-sde", NCSNppConfig(**_SONG_32), 32),
    "score-sde-ncsnpp-cifar": _plain("NCSN++ cont. CIFAR-10", "score-sde", NCSNppConfig(**_SONG_32, **_NCSN), 32),
    "adm-64": _adm("ADM 64", 64, "class", Paper("296M", 110, "guided 2.07"), **_ADM_64),
    "adm-128": _adm(
        "ADM 128",
        128,
        "class",
        Paper("422M", 307, "guided 2.97"),
        widths=(256, 256, 512, 768, 1024),
        depths=(0, 0, 1, 1, 1),
        head_width=0,
        heads=4,
        num_classes=1000,
    ),
    "adm-256": _adm(
        "ADM 256", 256, "class", Paper("554M", 1120, "10.94; guided 4.59; guided and upsampled 3.94"), num_classes=1000, **_ADM_256
    ),
    "adm-256-uncond": _adm("ADM 256, unconditional", 256, "", Paper(), **_ADM_256),
    "adm-512": _adm("ADM 512", 512, "class", Paper("559M", 1983, "guided 7.72; guided and upsampled 3.85"), num_classes=1000, **_ADM_512),
    "adm-u-256": _adm(
        "ADM-U 64 to 256", 256, "class, small picture", Paper("312M", 632), **_ADM_U, depths=(0, 0, 0, 1, 1, 1), head_width=0, heads=4
    ),
    "adm-u-512": _adm("ADM-U 128 to 512", 512, "class, small picture", Paper(), **_ADM_U, depths=(0, 0, 0, 0, 1, 1)),
    "adm-classifier-64": _classifier(64, widths=(128, 256, 384, 512), depths=(0, 1, 1, 1), blocks=4),
    "adm-classifier-128": _classifier(128, widths=(128, 128, 256, 384, 512), depths=(0, 0, 1, 1, 1)),
    "adm-classifier-256": _classifier(256),
    "adm-classifier-512": _classifier(512, widths=(64, 128, 128, 256, 256, 512, 512), depths=(0, 0, 0, 0, 1, 1, 1), waves=128),
    "ldm-4-imagenet": Published(
        "LDM-4 ImageNet",
        "ldm",
        UNetConfig(widths=(192, 384, 576, 960), heads=1, context_width=512, **_LDM4),
        256,
        "class",
        Paper("400M", 104, "10.56; guided 3.60"),
        VQ_F4,
        (ClassTokensConfig(),),
        1,
    ),
    "ldm-4-celeba": _faces("LDM-4 CelebA-HQ", "5.11"),
    "ldm-4-faces": _faces("LDM-4 FFHQ", "4.98"),
    "ldm-4-bedrooms": _faces("LDM-4 LSUN bedrooms", "2.95"),
    "ldm-8-churches": Published(  # the latents' scale stands in its checkpoint
        "LDM-8 LSUN churches",
        "ldm",
        UNetConfig(context_width=0, **_CHURCHES),
        256,
        paper=Paper("294M"),
        autoencoder=replace(KL_F8, scale=1.0),
    ),
    "ldm-text": Published(
        "LDM text-to-image",
        "ldm",
        UNetConfig(context_width=1280),
        256,
        "text",
        Paper("1.45B with its text encoder"),
        KL_F8,
        (LDM_BERT,),
        77,
    ),
    "sd1": _sd1("Stable Diffusion 1", printed="860M"),
    "sd1-inpainting": _sd1("Stable Diffusion 1 inpainting", 9, "text, mask, picture"),
    "sd2-base": _sd2("Stable Diffusion 2 base", 512, printed="865M"),
    "sd2-v": _sd2("Stable Diffusion 2", 768, printed="865M"),
    "sd2-inpainting": _sd2("Stable Diffusion 2 inpainting", 512, 9, "text, mask, picture"),
    "sd2-depth": _sd2("Stable Diffusion 2 depth", 512, 5, "text, depth"),
    "edm-cifar": _plain("EDM DDPM++ CIFAR-10", "edm", NCSNppConfig(augment_width=9), 32),
    "edm-cifar-cond": _plain("EDM DDPM++ CIFAR-10, ten classes", "edm", NCSNppConfig(augment_width=9, num_classes=10), 32, "class"),
    "edm-cifar-ve": _plain("EDM NCSN++ CIFAR-10", "edm", NCSNppConfig(augment_width=9, **_NCSN), 32),
    "edm-cifar-ve-cond": _plain(
        "EDM NCSN++ CIFAR-10, ten classes", "edm", NCSNppConfig(augment_width=9, num_classes=10, **_NCSN), 32, "class"
    ),
    "edm-faces": _plain("EDM DDPM++ FFHQ and AFHQ", "edm", NCSNppConfig(**_EDM_64), 64),
    "edm-faces-ve": _plain("EDM NCSN++ FFHQ and AFHQ", "edm", NCSNppConfig(**_EDM_64, **_NCSN), 64),
    "edm-imagenet64": _plain("EDM ADM ImageNet-64", "edm", UNetConfig(**_BIGGAN, **_ADM_64), 64, "class"),
    "consistency-imagenet64": _plain("Consistency ImageNet-64", "consistency", UNetConfig(**_BIGGAN, **_ADM_64), 64, "class"),
    "consistency-lsun": _plain(
        "Consistency LSUN bedroom and cat", "consistency", UNetConfig(**{**_BIGGAN, "scale_shift": False}, **_ADM_256), 256
    ),
    "dit-s-8": _dit("S", 8, Paper("33M", 0.36, "153.60")),
    "dit-s-4": _dit("S", 4, Paper("33M", 1.41, "100.41")),
    "dit-s-2": _dit("S", 2, Paper("33M", 6.06, "68.40")),
    "dit-b-8": _dit("B", 8, Paper("131M", 1.42, "122.74")),
    "dit-b-4": _dit("B", 4, Paper("130M", 5.56, "68.38")),
    "dit-b-2": _dit("B", 2, Paper("130M", 23.01, "43.47")),
    "dit-l-8": _dit("L", 8, Paper("459M", 5.01, "118.87")),
    "dit-l-4": _dit("L", 4, Paper("458M", 19.70, "45.64")),
    "dit-l-2": _dit("L", 2, Paper("458M", 80.71, "23.33")),
    "dit-xl-8": _dit("XL", 8, Paper("676M", 7.39, "106.41")),
    "dit-xl-4": _dit("XL", 4, Paper("675M", 29.05, "43.01")),
    "dit-xl-2": _dit("XL", 2, Paper("675M", 118.64, "19.47 at 400K steps, 9.62 at 7M; guided 2.27")),
    "dit-xl-2-512": _dit("XL", 2, Paper("675M", 524.60, "11.93 at 3M steps; guided 3.04"), 512),
    "sdxl": _sdxl("Stable Diffusion XL base", printed="2.6B"),
    "sdxl-refiner": Published(
        "Stable Diffusion XL refiner",
        "sdxl",
        UNetConfig(context_width=1280, **_REFINER, **_XL),
        1024,
        "text, sizes, crop, aesthetic score",
        autoencoder=KL_F8_XL,
        texts=(OPEN_CLIP_BIG_G,),
        tokens=77,
    ),
    "sdxl-turbo": _sdxl("Stable Diffusion XL turbo", 512),
    "sdxl-inpainting": _sdxl("Stable Diffusion XL inpainting", 1024, 9, "text, sizes, crop, mask, picture"),
    "sd3-medium": _sd3("Stable Diffusion 3 medium", MMDiTConfig(), "2B"),
    "sd3.5-medium": _sd3("Stable Diffusion 3.5 medium", MMDiTConfig(qk_norm=True, dual_blocks=13, positions=384), "2.5B"),
    "sd3.5-large": _sd3("Stable Diffusion 3.5 large", MMDiTConfig(width=64 * 38, depth=38, heads=38, qk_norm=True), "8.1B"),
    "controlnet-sd1": _controlnet("ControlNet of Stable Diffusion 1", "text, hint", UNetConfig(), 512),
    "controlnet-sd2": _controlnet("ControlNet of Stable Diffusion 2.1", "text, hint", UNetConfig(**_SD2), 512),
    "controlnet-sdxl": _controlnet("ControlNet of Stable Diffusion XL", "text, sizes, crop, hint", UNetConfig(**_SDXL), 1024),
    "vae-sd": Published("KL-f8 of Stable Diffusion", "autoencoder", KL_F8, 512),
    "vae-sd3": Published("KL-f8 of Stable Diffusion 3", "autoencoder", KL_F8_SD3, 1024),
    "vq-f4": Published("VQ-f4 of LDM-4", "autoencoder", VQ_F4, 256),
    "clip-l": Published("CLIP ViT-L/14", "text encoder", CLIP_L, tokens=77),
    "open-clip-h": Published("OpenCLIP ViT-H/14, 23 layers", "text encoder", OPEN_CLIP_H, tokens=77),
    "open-clip-big-g": Published("OpenCLIP ViT-bigG/14", "text encoder", OPEN_CLIP_BIG_G, tokens=77),
    "t5-xxl": Published("T5 v1.1 XXL, encoder", "t5", T5_XXL, tokens=77, paper=Paper("4.7B")),
    "ldm-bert": Published("Text encoder of LDM text-to-image", "ldm", LDM_BERT, tokens=77),
}


def published(name: str) -> Published:
    """A row by name; raises UnknownName with the nearest."""
    if name not in PUBLISHED:
        raise UnknownName("published model", name, PUBLISHED)
    return PUBLISHED[name]
