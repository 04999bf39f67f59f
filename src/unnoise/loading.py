"""Models by name, file, folder or hub id. `load` says what a thing is, or in one line why it does not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unnoise.checkpoints import headers, inspecting, native, opening, saving
from unnoise.checkpoints.parts import Found, Part
from unnoise.checkpoints.specs import ModelSpec
from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.images.safety import SafetyChecker
from unnoise.model import BUILTIN, Model
from unnoise.networks import tokenizers, wordpiece
from unnoise.networks.taesd import TinyAutoencoder
from unnoise.networks.tokenizers import Tokenizer
from unnoise.runtime import devices

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass(frozen=True)
class ModelInfo:
    """A model that comes with the package."""

    name: str
    family: str
    summary: str
    parameters: int
    bytes: int


def models() -> list[ModelInfo]:
    """The models that come with the package."""
    return [_info(path) for path in sorted(BUILTIN.glob("*.safetensors"))]


def _info(path: Path) -> ModelInfo:
    spec = native.read_spec(path)
    parameters = sum(p.numel() for p in spec.build("meta").parameters())
    return ModelInfo(spec.name, spec.family, spec.summary, parameters, path.stat().st_size)


def load(
    model: str | Path = "emoji",
    *,
    dtype: str = "auto",
    device: str = "auto",
    variant: str | None = None,
    prediction: str | None = None,
    parts: Mapping[str, str | Path] | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
) -> Model:
    """A model by the name that `models` lists, a .safetensors file, a diffusers folder, or a hub id "owner/name".

    dtype: "auto" (float32 on a CPU, float16 elsewhere), "float32", "bfloat16", "float16". device: "auto", "cpu", "cuda", "cuda:1", "mps".
    variant: of a folder's files, such as "fp16". prediction: "eps", "v", ... where the file does not tell. parts: files for networks that
    the model lacks or should have instead, by place ("autoencoder", "text_encoder", "text_encoder_2", "text_encoder_3"); None leaves one
    out; "preview" is a tiny autoencoder to look at steps with. config: what shapes do not show: {"network": {"heads": 8}}.
    `Model.told` says what told the family.
    Raises UnknownName, ArgumentError or FileError.
    """
    where = devices.device(device)
    path, precision = locate(model, variant), devices.dtype(dtype, where)
    if path.is_file() and headers.read(path).metadata.get("format", "").startswith(native.FORMAT.split("-")[0]):
        spec, tokenizer, networks = native.load(path, precision, where)
        return Model(spec, tokenizer, networks, file=path)
    found = _with_parts(opening.opened(path, config, variant), parts or {})
    spec = found.spec if prediction is None else ModelSpec(**{**dict(found.spec), "prediction": prediction})
    networks = nn.ModuleDict(
        {place: part.load(precision, where) for place, part in found.parts.items() if place in spec.parts() or place == "network"}
    )
    if preview := _tiny(found, (parts or {}).get("preview")):
        networks["preview"] = preview.load(precision, where)
    return Model(spec, _tokenizers(found), networks, file=path, safety=_safety(path, precision, where), told=found.told)


def _tiny(found: Found, path: str | Path | None) -> Part | None:
    """The tiny autoencoder that previews are decoded by. Raises FileError where it is none, or of other latents."""
    if path is None:
        return None
    part = opening.part(locate(path), "autoencoder")
    opening.replaced(found.spec, "autoencoder", part)
    if part.network is not TinyAutoencoder:
        raise FileError(f"{path} is a whole autoencoder: a preview is decoded by a tiny one (TAESD)")
    return part


def rewrite(model: str | Path, out: str | Path, layout: str | None = None) -> str:
    """A model in another layout, its tensors as they are stored; returns the layout.

    model: as for `load`. layout: "diffusers", "ldm" or "dit"; None: by the output's name and the family. Raises UnknownName, FileError.
    """
    path = locate(model)
    found = opening.opened(path)
    chosen = layout or saving.usual(Path(out), found.spec)
    networks = {place: part.load() for place, part in found.parts.items()}
    saving.save(out, found.spec, networks, chosen, tokenizers=_tokenizers(found), source=path)
    return chosen


def inspect(model: str | Path) -> dict[str, Any]:
    """What a file of weights, a folder, a hub id or a model of the package is, by headers alone: no tensor is loaded.

    Ready for JSON: kind, family, parts, parameters, dtypes, bytes, prediction, schedule, told, run, metadata, as far as they are known.
    Raises UnknownName, or FileError for what is no file of weights.
    """
    path = Path(model)
    return inspecting.inspect(path if path.exists() else locate(model))


def _with_parts(found: Found, given: Mapping[str, str | Path | None]) -> Found:
    """The model with networks of other files in their places."""
    places = ("autoencoder", "text_encoder", "text_encoder_2", "text_encoder_3")
    parts = dict(found.parts)
    spec = found.spec
    for place, path in given.items():
        if place not in (*places, "preview"):
            raise UnknownName("part", place, (*places, "preview"))
        if place == "preview":
            continue  # no part of the model: see `_tiny`
        parts.pop(place, None)
        if path is not None:
            parts[place] = opening.part(locate(path), place)
            spec = opening.replaced(spec, place, parts[place])
    return Found(spec, parts, found.told, found.tokenizers).with_stage()


def _tokenizers(found: Found) -> dict[str, Tokenizer]:
    """The folder's own, else the package's: nothing is fetched."""
    spec, made = found.spec, {}
    for place, part in found.parts.items():
        if place in found.tokenizers:
            made[place] = tokenizers.from_folder(found.tokenizers[place], getattr(part.config, "length", None))
        elif place == "text_encoder_3":
            made[place] = tokenizers.published_t5()
        elif spec.conditioning == "bert" and place == "text_encoder":
            made[place] = wordpiece.bert()  # pyright: ignore[reportArgumentType]
        elif place.startswith("text_encoder") and spec.conditioning not in ("label_tokens", "draft"):
            zero = place == "text_encoder_2" or spec.conditioning in ("clip_penultimate", "refiner")  # OpenCLIP pads with 0
            made[place] = tokenizers.published_clip(part.config.length, pad=0 if zero else None)
    return made


def _safety(path: Path, dtype: torch.dtype, device: torch.device) -> SafetyChecker | None:
    """The folder's safety checker, where it has one."""
    part: Part | None = opening.safety(path)
    return SafetyChecker(part.load(dtype, device)) if part else None  # pyright: ignore[reportArgumentType]


def locate(model: str | Path, variant: str | None = None) -> Path:
    """Where a model is: a path as it is, a name among those that come with the package, or a hub id in its cache."""
    expected = "a name that unnoise.models() lists, a .safetensors file, a diffusers folder or a hub id"
    if not isinstance(model, str | Path) or not str(model):
        raise ArgumentError(f"got model {model!r}: expected {expected}")
    path, in_repository, builtin = Path(model), ":" in str(model), BUILTIN / f"{model}.safetensors"
    if path.name == str(model) and builtin.is_file():  # a folder of that name is ./name
        return builtin
    if path.is_dir() or (path.is_file() and path.suffix not in PICKLES) or (path.suffix == ".safetensors" and not in_repository):
        return path
    if path.suffix in PICKLES and not in_repository:
        there = f"{path} is a pickle by its name: run `unnoise convert {path}`"
        raise FileError(there if path.exists() else f"no file {path}: expected {expected}")
    if isinstance(model, str) and "/" in model:
        from unnoise.checkpoints import hub

        if hub.is_id(model):
            return hub.resolve(model, variant=variant)
    raise UnknownName("model", str(model), [p.stem for p in BUILTIN.glob("*.safetensors")], f"expected {expected}")
