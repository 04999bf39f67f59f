"""A model of every family, with random weights and sizes that a test can afford, on the CPU or on the pretended device."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pretend.device import WHERE
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES, resized
from unnoise.images.safety import SafetyChecker
from unnoise.networks import tokenizers, wordpiece
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.bert import BertConfig
from unnoise.networks.classifier import Classifier, ClassifierConfig
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNetConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.taesd import TinyAutoencoderConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.tokenizers import Tokenizer
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vision import CLIPVisionConfig, SafetyConfig, SafetyNetwork
from unnoise.networks.vq import VQConfig
from unnoise.pipeline.classifiers import ClassifierModel
from unnoise.pipeline.controls import ControlModel
from unnoise.pipeline.model import Model
from unnoise.runtime.placement import CPU, Networks, Placement

UNET = UNetConfig(widths=(32, 64), depths=(1, 0), blocks=1, heads=4, context_width=32)
PIXELS = UNetConfig(3, 3, widths=(32, 64), depths=(0, 1), blocks=1, heads=2, context_width=0)
XL = replace(UNET, depths=(0, 2), heads=2, context_width=32 + 48, linear_projection=True, pooled_width=48 + 6 * 8)
MMDIT = MMDiTConfig(4, width=32, depth=2, heads=2, context_width=96, pooled_width=32 + 48, positions=16, qk_norm=True, dual_blocks=1)
STAGE = AutoencoderConfig(widths=(32, 32, 32, 32), blocks=1)
FOURTH = {"widths": (32, 32, 32), "blocks": 1}
CLIP_L = CLIPTextConfig(width=32, layers=3, heads=2, mlp=64)
CLIP_G = CLIPTextConfig(width=48, layers=3, heads=2, mlp=96, activation="gelu", projection=48)
T5 = T5Config(width=96, layers=2, heads=4, head_width=16, mlp=64)
SCORE = NCSNppConfig(stem=32, widths=(32, 32), blocks=1, attend=(False, True))

# Networks by place, by the family's name; what stands behind a / is another kind of the family
SIZES: dict[str, dict[str, Any]] = {
    "sd1": {"network": UNET, "autoencoder": STAGE, "text_encoder": CLIP_L},
    "sd1-inpainting": {"network": replace(UNET, in_channels=9), "autoencoder": STAGE, "text_encoder": CLIP_L},
    "sd2": {"network": replace(UNET, linear_projection=True), "autoencoder": STAGE, "text_encoder": replace(CLIP_L, activation="gelu")},
    "sd1/lcm": {"network": replace(UNET, guidance_width=16), "autoencoder": STAGE, "text_encoder": CLIP_L},
    "sdxl": {"network": XL, "autoencoder": replace(STAGE, scale=0.13025), "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    "sdxl-refiner": {
        "network": replace(XL, context_width=48, pooled_width=48 + 5 * 8),
        "autoencoder": replace(STAGE, scale=0.13025),
        "text_encoder": CLIP_G,
    },
    "sd3.5-medium": {
        "network": MMDIT,
        "autoencoder": replace(STAGE, scale=1.5305, shift=0.0609, quant_convs=False),
        "text_encoder": replace(CLIP_L, projection=32),
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5,
    },
    "ldm-uncond": {"network": replace(PIXELS, widths=(32, 64)), "autoencoder": VQConfig(codes=64, **FOURTH)},
    "ldm-class": {
        "network": replace(UNET, in_channels=3, out_channels=3),
        "autoencoder": VQConfig(codes=64, **FOURTH),
        "text_encoder": ClassTokensConfig(width=32),
    },
    "ldm-text": {"network": UNET, "autoencoder": STAGE, "text_encoder": BertConfig(width=32, layers=2, heads=2, head_width=16, mlp=64)},
    "dit-xl-2": {"network": DiTConfig(4, width=32, depth=2, heads=2, num_classes=1000), "autoencoder": STAGE},
    "ddpm-cifar": {"network": replace(PIXELS, corner_pad=True, time_shift=1.0, time_cos_first=False)},
    "iddpm-64-class": {"network": replace(PIXELS, num_classes=1000, learn_sigma=True, scale_shift=True)},
    "adm-64": {"network": replace(PIXELS, num_classes=1000, learn_sigma=True, scale_shift=True, resample="residual")},
    "adm-u-256": {"network": replace(PIXELS, in_channels=6, num_classes=1000, learn_sigma=True)},
    "consistency-imagenet64": {"network": replace(PIXELS, num_classes=1000)},
    "edm-cifar-cond": {"network": replace(SCORE, num_classes=10, augment_width=9)},
    "score-sde-ncsnpp-cifar": {"network": replace(SCORE, fourier=True, blur=True, pyramid=True)},
}


SAFETY = SafetyConfig(CLIPVisionConfig(image=28, patch=14, width=32, layers=1, heads=2, mlp=32, projection=4))
PREVIEW = TinyAutoencoderConfig(width=16)
WHERE_IT_RUNS = Placement(WHERE, torch.float32)


def spec(name: str) -> ModelSpec:
    row, networks = FAMILIES[name.partition("/")[0]], SIZES[name]
    side = 64 if "autoencoder" in networks else 16
    told = {"prediction": "lcm"} if name == "sd1/lcm" else {}
    return resized(row, networks).model_copy(update={"size": side, "multiple": side // 2, **told})


def randomised(network: nn.Module, seed: int = 1) -> nn.Module:
    """No weight stays at zero or one, so that every one of them is heard in the picture."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


@functools.cache
def model(name: str) -> Model:
    """On the CPU; made once a process. Photographs are checked, and previews decoded by a tiny autoencoder."""
    if name == "emoji":
        import unnoise

        return unnoise.load("emoji", device="cpu")
    row = spec(name)
    torch.manual_seed(2)
    configs: dict[str, Any] = {**row.networks, **({"preview": PREVIEW} if isinstance(row.first_stage, AutoencoderConfig) else {})}
    networks = {place: randomised(config.build()) for place, config in configs.items()}
    return Model(row, _tokenizers(row), Networks(networks, configs, CPU), safety=SafetyChecker(_safety(), SAFETY))


def _tokenizers(row: ModelSpec) -> dict[str, Tokenizer]:
    kinds = {CLIPTextConfig: lambda: tokenizers.published_clip(77), T5Config: tokenizers.published_t5, BertConfig: wordpiece.bert}
    return {place: kinds[type(config)]() for place, config in row.networks.items() if type(config) in kinds}  # pyright: ignore


def _safety() -> nn.Module:
    return randomised(SafetyNetwork(SAFETY.vision, concepts=2, special=3))


def changed(of: Model, change: Callable[[str, nn.Module], nn.Module], placement: Placement = CPU) -> Model:
    """The same model with other modules in the places of its networks and of its safety checker."""
    modules = {place: change(place, network) for place, network in of.networks.items()}
    networks = Networks(modules, {place: of.networks.config(place) for place in modules}, placement)
    safety = of.safety and SafetyChecker(change("safety_checker", of.safety.network), SAFETY, placement)
    return Model(of.spec, of.tokenizers, networks, safety=safety, words=of.encode.words, file=of.file)


@functools.cache
def moved(name: str) -> Model:
    """A copy on the pretended device, which must be open; made once a process."""
    return changed(model(name), lambda _, network: there(network), WHERE_IT_RUNS)


def there(network: nn.Module) -> Any:
    return copy.deepcopy(network).to(WHERE)


# What stands beside a model

# By name: the model, the family, and the config of the net
CONTROLS: dict[str, tuple[str, str, ControlNetConfig | MMDiTControlNetConfig]] = {
    "sd1": ("sd1", "sd1", ControlNetConfig(UNET, hint_widths=(16, 16, 16, 16))),
    "sd1 pooled": ("sd1", "sd1", ControlNetConfig(UNET, hint_widths=(16, 16, 16, 16), global_pool=True)),
    "sdxl": ("sdxl", "sdxl", ControlNetConfig(XL, hint_widths=(16, 16, 16, 16))),
    "sd3 joint": ("sd3.5-medium", "sd3", MMDiTControlNetConfig(replace(MMDIT, depth=1), "joint", 4)),
    "sd3 2b": ("sd3.5-medium", "sd3", MMDiTControlNetConfig(replace(MMDIT, depth=1), "2b", 4)),
    "sd3 8b": ("sd3.5-medium", "sd3", MMDiTControlNetConfig(replace(MMDIT, depth=1), "8b", 4)),
}


def control(name: str) -> ControlModel:
    """A ControlNet on the CPU."""
    _, family, config = CONTROLS[name]
    torch.manual_seed(3)
    return ControlModel(randomised(config.build(), 4), family, config=config, placement=CPU)


def classifier() -> ClassifierModel:
    """For adm-64, on the CPU."""
    torch.manual_seed(7)
    config = ClassifierConfig(16, widths=(32, 64), depths=(0, 1), blocks=1, heads=2, head_width=32)
    return ClassifierModel(randomised(Classifier(config), 5), config, CPU)


def lora(name: str) -> Mapping[str, torch.Tensor]:
    """A LoRA of rank 2 on the attention of the model's network, in PEFT's names."""
    generator, found = torch.Generator().manual_seed(6), {}
    root = "transformer" if isinstance(spec(name).network, MMDiTConfig) else "unet"
    for path, module in model(name).networks["network"].named_modules():
        if isinstance(module, nn.Linear) and path.endswith(("to_q", "to_v", "qkv")):
            found[f"{root}.{path}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator) / 4
            found[f"{root}.{path}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator) / 4
    return found
