"""A model written as a folder that diffusers reads: of each network its class, its config.json and its tensors.

The configs are those of `configs.py`, turned round. The whole folder is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.checkpoints import keys
from unnoise.checkpoints.folder import configs, schedulers
from unnoise.checkpoints.folder.configs import Table
from unnoise.checkpoints.folder.pipelines import TRANSFORMERS
from unnoise.checkpoints.keys import Layout, Networks
from unnoise.checkpoints.layouts import diffusers, dit, texts
from unnoise.checkpoints.layouts.first_stage import TINY
from unnoise.checkpoints.store.write import sync
from unnoise.checkpoints.store.write import tensors as write_tensors
from unnoise.errors import FileError
from unnoise.families.spec import TEXT_PLACES, ModelSpec, Place
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.tokenizers import START, Tokenizer
from unnoise.networks.unet import UNetConfig
from unnoise.version import __version__

SHARD = 10_000_000_000  # bytes of a file of a folder: as diffusers and transformers cut
DIFFUSERS = "0.30.0"  # the version that a folder names as its writer: every later one reads it


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
    for place in TEXT_PLACES:
        if place in networks:
            made["text_encoder_2" if spec.conditioning == "refiner" else place] = _text(spec, place, networks[place])
    return made


def pipeline(spec: ModelSpec) -> str:
    """The class of diffusers that runs the model. Raises FileError."""
    inpainting, network = "mask" in spec.extra_channels, spec.network
    if row := next((row for row in TRANSFORMERS if row.kind == network.kind), None):
        return row.pipeline
    if network.kind == "dit" and spec.conditioning == "labels":
        return "DiTPipeline"
    if network.kind == "unet" and spec.conditioning in ("sdxl", "refiner"):
        return f"StableDiffusionXL{'Inpaint' if inpainting else 'Img2Img' if spec.conditioning == 'refiner' else ''}Pipeline"
    if network.kind == "unet" and spec.conditioning in ("clip", "clip_penultimate") and "depth" not in spec.extra_channels:
        return (
            f"StableDiffusion{'Inpaint' if inpainting else ''}Pipeline" if not spec.guidance_distilled else "LatentConsistencyModelPipeline"
        )
    raise FileError(f"layout 'diffusers' has Stable Diffusion 1 to 3.5 and DiT, got {spec.name}: use layout 'ldm', 'dit' or 'unnoise'")


# By the kind of the network that denoises: how its config and its tensors are written
BACKBONES: dict[str, tuple[Table[Any], Callable[[Any], Layout]]] = {
    "unet": (configs.UNET, lambda config: diffusers.unet({})),
    "dit": (configs.DIT, dit.diffusers),
    **{row.kind: (row.table, row.layout) for row in TRANSFORMERS},
}


def _backbone(spec: ModelSpec, network: nn.Module) -> Component:
    config = spec.network
    table, layout = BACKBONES[config.kind]
    stored = keys.write(layout(config), network.state_dict())
    if config.kind == "dit":
        stored |= dit.copies(stored, config.depth)  # pyright: ignore[reportAttributeAccessIssue]
    return _component(table, config, stored, {"sample_size": spec.size // spec.factor, **_sizes_width(spec)})


def _component(table: Table[Any], config: Any, stored: dict[str, Tensor], more: Mapping[str, Any]) -> Component:
    return Component(table.library, table.name, {**table.write(config), **more}, stored)


def _sizes_width(spec: ModelSpec) -> dict[str, Any]:
    """The width of one number's sinusoids in the vector of SDXL: six of them stand behind the pooled text, five in the refiner's."""
    config = spec.network
    if not isinstance(config, UNetConfig) or not config.pooled_width:
        return {}
    numbers, place = (5, "text_encoder") if spec.conditioning == "refiner" else (6, "text_encoder_2")
    text = spec.networks.get(place)
    pooled = text.projection if isinstance(text, CLIPTextConfig) else 1280
    return {"addition_time_embed_dim": (config.pooled_width - pooled) // numbers}


def _first_stage(spec: ModelSpec, network: nn.Module) -> Component:
    config = spec.first_stage
    table: Table[Any] | None = {"autoencoder": configs.AUTOENCODER, "vq": configs.VQ}.get(config.kind if config else "")
    if table is None:
        raise FileError(TINY)
    return _component(table, config, keys.write(diffusers.autoencoder({}), network.state_dict()), {"sample_size": spec.size})


def _text(spec: ModelSpec, place: Place, network: nn.Module) -> Component:
    config: Any = spec.networks[place]
    weights = network.state_dict()
    if isinstance(config, T5Config):
        return _component(configs.T5, config, keys.write(texts.t5({"shared.weight": ()}), weights), {})
    projected = spec.conditioning == "sd3" or (spec.conditioning in ("sdxl", "refiner") and config.activation == "gelu")
    if spec.conditioning == "clip_penultimate":  # there the encoder ends where it is read here
        config, weights = shortened(config, weights)
    if projected and not config.projection:  # Stable Diffusion 3's first is read without one
        like = next(iter(weights.values()))
        weights = {**weights, "text_projection.weight": torch.eye(config.width, dtype=like.dtype)}
    if not projected:
        weights = {name: value for name, value in weights.items() if name != "text_projection.weight"}
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return Component("transformers", name, configs.CLIP.write(config), weights)


def shortened(config: CLIPTextConfig, weights: Mapping[str, Tensor]) -> tuple[CLIPTextConfig, dict[str, Tensor]]:
    """The encoder without its last layer."""
    last = f"text_model.encoder.layers.{config.layers - 1}."
    return CLIPTextConfig(**{**vars(config), "layers": config.layers - 1}), {k: v for k, v in weights.items() if not k.startswith(last)}


# Files


def write_folder(path: Path, spec: ModelSpec, networks: Networks, tokenizers: Mapping[str, Any], shard: int = SHARD) -> None:
    """A folder that diffusers reads, whole or not at all. shard: bytes of a file. Raises FileError."""
    if path.exists():
        raise FileError(f"{path} exists already: name another folder or remove it")
    made = components(spec, networks)
    partial = path.with_name(path.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _fill(partial, made, spec, tokenizers, shard)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(path: Path, made: Mapping[str, Component], spec: ModelSpec, tokenizers: Mapping[str, Any], shard: int) -> None:
    index: dict[str, Any] = {name: [one.library, one.kind] for name, one in made.items()}
    for name, one in made.items():
        (path / name).mkdir()
        stem = "model" if one.library == "transformers" else "diffusion_pytorch_model"
        head = (
            {"architectures": [one.kind]} if one.library == "transformers" else {"_class_name": one.kind, "_diffusers_version": DIFFUSERS}
        )
        _json(path / name / "config.json", {**head, **one.config})
        _weights(path / name, stem, one.tensors, shard)
    for place, tokenizer in tokenizers.items():
        name = place.replace("text_encoder", "tokenizer")
        name = "tokenizer_2" if spec.conditioning == "refiner" else name
        index[name] = ["transformers", _tokenizer(path / name, tokenizer)]
    written = schedulers.write(spec)
    (path / "scheduler").mkdir()
    _json(path / "scheduler" / "scheduler_config.json", {**written, "_diffusers_version": DIFFUSERS})
    index["scheduler"] = ["diffusers", written["_class_name"]]
    _json(path / "model_index.json", _index(spec, index))


def _index(spec: ModelSpec, parts: dict[str, Any]) -> dict[str, Any]:
    """Components that a pipeline knows and this model lacks are said to be left out."""
    kind = pipeline(spec)
    missing: list[str] = []
    options: dict[str, Any] = {}
    if spec.conditioning in ("clip", "clip_penultimate"):
        missing, options = ["safety_checker", "feature_extractor"], {"requires_safety_checker": False}
    if spec.conditioning == "refiner":
        missing, options = ["text_encoder", "tokenizer"], {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    if spec.conditioning == "sd3":
        missing = [f"{name}{end}" for name in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    absent = {name: [None, None] for name in missing if name not in parts}
    return {"_class_name": kind, "_diffusers_version": DIFFUSERS, "_unnoise_version": __version__, **parts, **absent, **options}


def _tokenizer(path: Path, tokenizer: Any) -> str:
    """Its files and its class. CLIP's in the two tables that every version of transformers reads, T5's as one."""
    path.mkdir()
    if not isinstance(tokenizer, Tokenizer):
        raise FileError(f"got a {type(tokenizer).__name__}, which diffusers' folders have not: use layout 'ldm'")
    table = json.loads(tokenizer.pieces.to_str())
    pad = tokenizer.pieces.id_to_token(tokenizer.pad)
    if tokenizer.start is None:
        (path / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
        named = {"eos_token": tokenizer.pieces.id_to_token(tokenizer.end), "pad_token": pad, "unk_token": "<unk>"}
        _json(path / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **named})
        _json(path / "special_tokens_map.json", named)
        return "T5TokenizerFast"
    end = tokenizer.pieces.id_to_token(tokenizer.end)
    _json(path / "vocab.json", table["model"]["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["model"]["merges"]]
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    named = {"bos_token": START, "eos_token": end, "unk_token": end, "pad_token": pad}
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, "do_lower_case": True, "errors": "replace"}
    _json(path / "tokenizer_config.json", {**kind, **named})
    _json(path / "special_tokens_map.json", named)
    return "CLIPTokenizer"


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weights(path: Path, stem: str, tensors: dict[str, Tensor], shard: int) -> None:
    """One file, or several and their index where they are larger than `shard` bytes together."""
    parts = list(_cut(tensors, shard))
    if len(parts) == 1:
        write_tensors(path / f"{stem}.safetensors", parts[0], {"format": "pt"})
        return
    owners = {}
    for i, part in enumerate(parts):
        name = f"{stem}-{i + 1:05}-of-{len(parts):05}.safetensors"
        write_tensors(path / name, part, {"format": "pt"})
        owners |= dict.fromkeys(part, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _json(path / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": owners})


def _cut(tensors: dict[str, Tensor], shard: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if part and size + bytes_ > shard:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += bytes_
    yield part
