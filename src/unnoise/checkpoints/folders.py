"""A diffusers folder: model_index.json, and a folder a component with its config.json and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unnoise.checkpoints import schedulers
from unnoise.checkpoints.families import FAMILIES, resized
from unnoise.checkpoints.layouts import bert, diffusers, diffusers_pixels, dit, sd3, texts
from unnoise.checkpoints.parts import Found, Hints, Part
from unnoise.checkpoints.specs import ModelSpec
from unnoise.checkpoints.weights import Weights
from unnoise.errors import FileError, UnknownName
from unnoise.networks.autoencoder import Autoencoder
from unnoise.networks.bert import BertEncoder
from unnoise.networks.mmdit import MMDiT
from unnoise.networks.t5 import T5Encoder
from unnoise.networks.text import CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.networks.vq import VQAutoencoder

STEMS = ("diffusion_pytorch_model", "model")


def recognise(folder: Path, hints: Hints, variant: str | None = None) -> Found:
    """What a folder with a model_index.json holds. Raises FileError."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name", "")
    family = next((read for word, read in PIPELINES.items() if word in kind), None)
    if family is None:
        raise UnknownName("pipeline in model_index.json", kind, PIPELINES)
    return family(Folder(folder, index, variant), hints)


class Folder:
    """The components of a folder, by diffusers' names."""

    def __init__(self, path: Path, index: Mapping[str, Any], variant: str | None = None):
        self.path, self.index, self.variant = path, index, variant

    def has(self, name: str) -> bool:
        """Whether the index names the component and it is here: [null, null] stands for one that was left out."""
        return bool(self.index.get(name, (None,))[0]) and (self.path / name).is_dir()

    def config(self, name: str) -> dict[str, Any]:
        return read_json(self.path / name / ("scheduler_config.json" if name == "scheduler" else "config.json"))

    def weights(self, name: str) -> Weights:
        return Weights.open(weights_file(self.path / name, self.variant))


def weights_file(folder: Path, variant: str | None = None) -> Path:
    """The file of a component's weights, or the index of its shards. A component may lack the variant. Raises FileError."""
    marks = [f".{variant}", ""] if variant else ["", ".fp16"]
    for mark in marks:
        for stem in STEMS:
            for name in (f"{stem}{mark}.safetensors", f"{stem}.safetensors.index{mark}.json"):
                if (folder / name).is_file():
                    return folder / name
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise FileError(f"{folder} has its weights as a pickle, {pickles[0]}: run `unnoise convert {folder / pickles[0]}`")
    raise FileError(f"{folder} has no weights: expected {STEMS[0]}.safetensors or its index")


def read_json(path: Path) -> dict[str, Any]:
    """Raises FileError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"no file {path}: expected a diffusers folder") from None
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}") from None


def _finished(folder: Folder, family: str, parts: dict[str, Part], fields: dict[str, Any]) -> Found:
    spec, told = schedulers.read(folder.config("scheduler"), resized(FAMILIES[family], fields))
    tokenizers = {}
    for place in parts:
        name = place.replace("text_encoder", "tokenizer")
        if place.startswith("text_encoder") and folder.has(name):
            tokenizers[place] = folder.path / name
    return Found(spec, parts, (f"{folder.index['_class_name']} folder", *told), tokenizers)


def _stable_diffusion(folder: Folder, hints: Hints) -> Found:
    """Every U-Net with text: Stable Diffusion 1 and 2, SDXL, its refiner, their inpainting and depth forms, latent consistency models."""
    config = diffusers.unet_config(folder.config("unet"))
    weights = folder.weights("unet")
    parts = {"network": Part(UNet, config, diffusers.unet(weights.shapes), weights), "autoencoder": vae(folder)}
    family = _family(config, folder)
    if family == "sdxl-refiner":
        parts["text_encoder"] = clip(folder, "text_encoder_2")
    else:
        parts |= {place: clip(folder, place) for place in ("text_encoder", "text_encoder_2") if folder.has(place)}
    fields = {"unet": config, "autoencoder": parts["autoencoder"].config, **_texts(parts)}
    found = _finished(folder, family, parts, fields)
    spec = found.spec
    if family == "sd2" and spec.prediction == "eps":
        kept = {name: getattr(spec, name) for name in ("unet", "autoencoder", "text", "prediction", "schedule", "defaults")}
        spec = FAMILIES["sd2-base"].model_copy(update=kept)
    if family.startswith("sd2"):  # the folder's text encoder ends where the single file's is read
        spec = spec.model_copy(update={"conditioning": "clip"})
    return replace(found, spec=_sized(spec, folder.config("unet")))


def _sized(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """With the side of pictures that the network's config gives in latents."""
    side = config.get("sample_size")
    return spec.model_copy(update={"size": side * spec.factor}) if side else spec


def _family(config: UNetConfig, folder: Folder) -> str:
    end = {9: "-inpainting", 5: "-depth"}.get(config.in_channels, "")
    if config.pooled_width:
        return f"sdxl{end}" if folder.has("text_encoder") else "sdxl-refiner"  # which has the second one alone
    return ("sd2" if config.linear_projection else "sd1") + end


def _texts(parts: Mapping[str, Part]) -> dict[str, Any]:
    names = {"text_encoder": "text", "text_encoder_2": "text_2", "text_encoder_3": "text_3"}
    return {field: parts[place].config if place in parts else None for place, field in names.items()}


def vae(folder: Folder, name: str = "vae") -> Part:
    config, weights = folder.config(name), folder.weights(name)
    if config.get("_class_name") == "VQModel":
        return Part(VQAutoencoder, diffusers.vq_config(config), diffusers.autoencoder(weights.shapes), weights)
    return Part(Autoencoder, diffusers.autoencoder_config(config), diffusers.autoencoder(weights.shapes), weights)


def clip(folder: Folder, name: str) -> Part:
    config, weights = folder.config(name), folder.weights(name)
    hints = {"heads": config["num_attention_heads"], "activation": config["hidden_act"]}
    sizes = texts.clip_config(weights.shapes, hints)
    bare = "embeddings.token_embedding.weight" in weights
    return Part(CLIPTextEncoder, sizes, texts.clip(sizes, bare=bare), weights)


def t5(folder: Folder, name: str) -> Part:
    weights = folder.weights(name)
    sizes = texts.t5_config(weights.shapes, {"max_distance": folder.config(name).get("relative_attention_max_distance", 128)})
    return Part(T5Encoder, sizes, texts.t5(weights.shapes), weights)


def text(folder: Folder, name: str) -> Part:
    """A text encoder, whichever kind its config says."""
    return t5(folder, name) if folder.config(name).get("model_type") == "t5" else clip(folder, name)


def _stable_diffusion_3(folder: Folder, hints: Hints) -> Found:
    weights = folder.weights("transformer")
    config = diffusers.mmdit_config(folder.config("transformer"), weights.shapes)
    parts = {"network": Part(MMDiT, config, diffusers.mmdit(config), weights), "autoencoder": vae(folder)}
    parts |= {place: clip(folder, place) for place in ("text_encoder", "text_encoder_2") if folder.has(place)}
    if folder.has("text_encoder_3"):
        parts["text_encoder_3"] = t5(folder, "text_encoder_3")
    fields = {"mmdit": config, "autoencoder": parts["autoencoder"].config, **_texts(parts)}
    found = _finished(folder, sd3.family(config), parts, fields)
    return replace(found, spec=_sized(found.spec, folder.config("transformer")))


def _latent_text(folder: Folder, hints: Hints) -> Found:
    weights, own = folder.weights("unet"), folder.weights("bert")
    config = diffusers.unet_config(folder.config("unet"))
    sizes = bert.bert_config(own.shapes, {})
    stage = vae(folder, "vqvae")
    parts = {
        "network": Part(UNet, config, diffusers.unet(weights.shapes), weights),
        "autoencoder": stage,
        "text_encoder": Part(BertEncoder, sizes, bert.diffusers_bert(sizes), own),
    }
    return _finished(folder, "ldm-text", parts, {"unet": config, "bert": sizes, "autoencoder": stage.config})


def _pixels(folder: Folder, hints: Hints) -> Found:
    """DDPM and its like; their scheduler says the rest."""
    config = folder.config("unet")
    part = diffusers_pixels.unet2d_part(folder.weights("unet"), config)
    labels = "labels" if part.config.num_classes else "none"
    return _finished(folder, "ddpm-cifar", {"network": part}, {"unet": part.config, "conditioning": labels, "size": config["sample_size"]})


def _consistency(folder: Folder, hints: Hints) -> Found:
    """Process and prediction are the family's: the scheduler's config repeats them in its own terms."""
    config = folder.config("unet")
    part = diffusers_pixels.unet2d_part(folder.weights("unet"), config)
    row = FAMILIES["consistency-imagenet64" if part.config.num_classes else "consistency-lsun"]
    spec = row.model_copy(update={"unet": part.config, "size": config["sample_size"]})
    return Found(spec, {"network": part}, (f"{folder.index['_class_name']} folder",))


def _dit(folder: Folder, hints: Hints) -> Found:
    config = folder.config("transformer")
    part, stage = diffusers_pixels.dit_part(folder.weights("transformer"), config), vae(folder)
    spec = dit.named(part.config, config["sample_size"] * stage.config.factor)
    fields = {"dit": part.config, "autoencoder": stage.config, "size": spec.size, "null_label": spec.null_label}
    return _finished(folder, spec.name, {"network": part, "autoencoder": stage}, fields)


# What stands in a pipeline's class name: who reads its folder. The first that fits.
PIPELINES: dict[str, Callable[[Folder, Hints], Found]] = {
    "StableDiffusion3": _stable_diffusion_3,
    "StableDiffusion": _stable_diffusion,
    "LatentConsistencyModel": _stable_diffusion,
    "LDMTextToImage": _latent_text,
    "DDPM": _pixels,
    "DDIM": _pixels,
    "PNDM": _pixels,
    "ConsistencyModel": _consistency,
    "DiT": _dit,
}
