"""A diffusers folder: model_index.json, and a folder a component with its config.json and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unnoise.checkpoints.folder import configs, schedulers
from unnoise.checkpoints.folder.pipelines import TRANSFORMERS, Transformer
from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.layouts import bert, diffusers, dit, texts
from unnoise.checkpoints.store.weights import Weights
from unnoise.checkpoints.store.write import STEMS
from unnoise.errors import FileError, UnknownName
from unnoise.families.spec import PLACES, TEXT_PLACES, ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.text import ACTIVATIONS
from unnoise.networks.unet import UNetConfig


def read_folder(folder: Path, hints: Hints, variant: str | None = None) -> Found:
    """What a folder with a model_index.json holds; `hints` go before what its configs say. Raises FileError, UnknownName, ArgumentError."""
    if not (folder / "model_index.json").is_file() and (folder / "config.json").is_file():
        raise FileError(_component(folder))
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name", "")
    family = next((read for word, read in PIPELINES.items() if word in kind), None)
    if family is None:
        raise UnknownName("pipeline in model_index.json", kind, PIPELINES)
    if variant and not any(folder.glob(f"*/*.{variant}.*")):
        raise FileError(f"{folder} has no file of variant {variant!r}: leave variant out, or name one of those that it has")
    return family(Folder(folder, index, variant, hints))


def _component(folder: Path) -> str:
    """One line on a folder that is no whole model."""
    kind = read_json(folder / "config.json").get("_class_name") or "a network"
    above = f"give the folder above it, {folder.absolute().parent}"
    if "ControlNet" in kind:
        above = "a ControlNet is for unnoise.load_control"
    elif "Autoencoder" in kind or kind == "VQModel":
        above += f", or beside a model parts={{'autoencoder': {str(folder)!r}}}"
    return f"{folder} is one component, {kind}, and no whole model: {above}"


class Folder:
    """The components of a folder, by diffusers' names."""

    def __init__(self, path: Path, index: Mapping[str, Any], variant: str | None = None, hints: Hints | None = None):
        self.path, self.index, self.variant, self.hints = path, index, variant, hints or {}

    def has(self, name: str) -> bool:
        """Whether the index names the component and it is here: [null, null] stands for one that was left out."""
        return bool(self.index.get(name, (None,))[0]) and (self.path / name).is_dir()

    def config(self, name: str) -> dict[str, Any]:
        if not (self.path / name).is_dir():
            raise FileError(f"{self.path} has no folder {name!r}, a part of its model: fetch the model's folder whole")
        return read_json(self.path / name / ("scheduler_config.json" if name == "scheduler" else "config.json"))

    def hinted(self, place: str, config: Any) -> Any:
        """A network's config with what the caller says of it."""
        return replace(config, **self.hints.get(place, {}))

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
        out = folder / f"{STEMS[0 if pickles[0].startswith(STEMS[0]) else 1]}.safetensors"
        raise FileError(f"{folder} has its weights as a pickle, {pickles[0]}: run `unnoise convert {folder / pickles[0]} {out}`")
    raise FileError(f"{folder} has no weights: expected {STEMS[0]}.safetensors or its index")


class Fields(dict[str, Any]):
    """What a JSON file says; a field that is asked for and not there raises FileError with the file's path."""

    path: Path

    def __missing__(self, name: str) -> Any:
        raise FileError(f"{self.path} has no {name!r}: expected a config as diffusers or transformers writes it")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds an object. Raises FileError; so does a field that is asked for later and missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        expected = "a diffusers folder" if path.name == "model_index.json" else "it beside the weights, as diffusers writes it"
        raise FileError(f"no file {path}: expected {expected}") from None
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise FileError(f"{path} holds a {type(found).__name__}: expected an object with named fields")
    made = Fields(found)
    made.path = path
    return made


def _finished(folder: Folder, row: ModelSpec, parts: dict[str, Part]) -> Found:
    """The family's row with the folder's own networks, and no others, and with what its scheduler says."""
    networks = {place: parts[place].config if place in parts else None for place in PLACES}
    spec, evidence = schedulers.read(folder.config("scheduler"), row.with_networks(networks))
    tokenizers = {}
    for place in parts:
        name = place.replace("text_encoder", "tokenizer")
        if place.startswith("text_encoder") and folder.has(name):
            tokenizers[place] = folder.path / name
    return Found(spec, parts, (f"{folder.index['_class_name']} folder", *evidence), tokenizers)


def _stable_diffusion(folder: Folder) -> Found:
    """Every U-Net with text: Stable Diffusion 1 and 2, SDXL, its refiner, their inpainting and depth forms, latent consistency models."""
    config = unet(folder)
    weights = folder.weights("unet")
    parts = {"network": Part(config, diffusers.unet(weights.shapes), weights), "autoencoder": vae(folder)}
    family = _family(config, folder)
    if family == "sdxl-refiner":
        parts["text_encoder"] = clip(folder, "text_encoder_2", "text_encoder")
    else:
        parts |= {place: clip(folder, place) for place in ("text_encoder", "text_encoder_2") if folder.has(place)}
    found = _finished(folder, FAMILIES[family], parts)
    spec = found.spec
    if family == "sd2" and spec.prediction == "eps":
        kept = {name: getattr(spec, name) for name in ("networks", "prediction", "schedule", "defaults")}
        spec = FAMILIES["sd2-base"].model_copy(update=kept)
    if family.startswith("sd2"):  # the folder's text encoder ends where the single file's is read
        spec = spec.model_copy(update={"conditioning": "clip"})
    return replace(found, spec=_sized(spec, folder.config("unet")))


def unet(folder: Folder) -> UNetConfig:
    """Of a U-Net with text."""
    config = folder.config("unet")
    try:
        return configs.UNET.read(config, folder.hints.get("network", {}))
    except FileError as error:
        where = folder.path / "unet" / "config.json"
        raise error if str(where) in str(error) else FileError(f"{where}: {error}") from None


def _sized(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """With the side of pictures that the network's config gives in latents."""
    side = config.get("sample_size")
    return spec.model_copy(update={"size": side * spec.factor}) if side else spec


def _family(config: UNetConfig, folder: Folder) -> str:
    end = {9: "-inpainting", 5: "-depth"}.get(config.in_channels, "")
    if config.pooled_width:
        family = f"sdxl{end}" if folder.has("text_encoder") else "sdxl-refiner"  # which has the second one alone
    else:
        family = ("sd2" if config.linear_projection else "sd1") + end
    if family not in FAMILIES:
        raise FileError(f"{folder.path} has a U-Net of {config.in_channels} channels: no family {family} runs here")
    return family


def vae(folder: Folder, name: str = "vae") -> Part:
    config, weights = folder.config(name), folder.weights(name)
    if config.get("_class_name") == "VQModel":
        sizes = folder.hinted("autoencoder", configs.VQ.read(config))
        return Part(sizes, diffusers.autoencoder(weights.shapes), weights)
    sizes = folder.hinted("autoencoder", configs.AUTOENCODER.read(config))
    return Part(sizes, diffusers.autoencoder(weights.shapes), weights)


def clip(folder: Folder, name: str, place: str = "") -> Part:
    """place: in the model, where it is not the folder's name."""
    config, weights = folder.config(name), folder.weights(name)
    stated = configs.CLIP.fields(config, "heads", "activation")
    part = texts.clip_part(weights, {**stated, **folder.hints.get(place or name, {})})
    if part.config.activation not in ACTIVATIONS:
        where, expected = folder.path / name / "config.json", " or ".join(ACTIVATIONS)
        raise FileError(f"{where} has hidden_act {part.config.activation!r}: expected {expected}")
    return part


def t5(folder: Folder, name: str) -> Part:
    stated = configs.T5.fields(folder.config(name), "max_distance")
    return texts.t5_part(folder.weights(name), {**stated, **folder.hints.get(name, {})})


def text(folder: Folder, name: str) -> Part:
    """A text encoder, whichever kind its config says."""
    return t5(folder, name) if folder.config(name).get("model_type") == "t5" else clip(folder, name)


def _transformer(row: Transformer, folder: Folder) -> Found:
    """A transformer with an autoencoder and those of its text encoders that are there."""
    weights = folder.weights("transformer")
    config = folder.hinted("network", row.table.read(folder.config("transformer")))
    parts = {"network": Part(config, row.layout(config), weights), "autoencoder": vae(folder)}
    parts |= {place: text(folder, place) for place in TEXT_PLACES if folder.has(place)}
    found = _finished(folder, FAMILIES[row.family(config)], parts)
    return replace(found, spec=_sized(found.spec, folder.config("transformer")))


def _latent_text(folder: Folder) -> Found:
    weights, own = folder.weights("unet"), folder.weights("bert")
    config = unet(folder)
    sizes = folder.hinted("text_encoder", bert.bert_config(own.shapes, {}))
    stage = vae(folder, "vqvae")
    parts = {
        "network": Part(config, diffusers.unet(weights.shapes), weights),
        "autoencoder": stage,
        "text_encoder": Part(sizes, bert.diffusers_bert(sizes), own),
    }
    return _finished(folder, FAMILIES["ldm-text"], parts)


def _pixel_unet(folder: Folder) -> Part:
    weights = folder.weights("unet")
    return Part(folder.hinted("network", configs.UNET_2D.read(folder.config("unet"))), diffusers.unet(weights.shapes), weights)


def _pixels(folder: Folder) -> Found:
    """DDPM and its like; their scheduler says the rest."""
    config = folder.config("unet")
    part = _pixel_unet(folder)
    labels = "labels" if part.config.num_classes else "none"
    row = FAMILIES["ddpm-cifar"].model_copy(update={"conditioning": labels, "size": config["sample_size"]})
    return _finished(folder, row, {"network": part})


def _consistency(folder: Folder) -> Found:
    """Process and prediction are the family's: the scheduler's config repeats them in its own terms."""
    config = folder.config("unet")
    part = _pixel_unet(folder)
    row = FAMILIES["consistency-imagenet64" if part.config.num_classes else "consistency-lsun"]
    spec = row.with_networks({"network": part.config}).model_copy(update={"size": config["sample_size"]})
    return Found(spec, {"network": part}, (f"{folder.index['_class_name']} folder",))


def _dit(folder: Folder) -> Found:
    config = folder.config("transformer")
    weights = folder.weights("transformer")
    sizes = folder.hinted("network", configs.DIT.read(config))
    dit.check_copies(weights, sizes.depth)
    part = Part(sizes, dit.diffusers(sizes), weights)
    stage = vae(folder)
    spec = dit.named(part.config, config["sample_size"] * stage.config.factor)
    row = FAMILIES[spec.name].model_copy(update={"size": spec.size, "null_label": spec.null_label})
    return _finished(folder, row, {"network": part, "autoencoder": stage})


# What stands in a pipeline's class name: who reads its folder. The first that fits.
PIPELINES: dict[str, Callable[[Folder], Found]] = {
    **{row.pipeline.removesuffix("Pipeline"): partial(_transformer, row) for row in TRANSFORMERS},
    "StableDiffusion": _stable_diffusion,
    "LatentConsistencyModel": _stable_diffusion,
    "LDMTextToImage": _latent_text,
    "DDPM": _pixels,
    "DDIM": _pixels,
    "PNDM": _pixels,
    "ConsistencyModel": _consistency,
    "DiT": _dit,
}
