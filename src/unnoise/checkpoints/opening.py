"""What a path is: a folder, a single file of a family, or nothing that runs here. One line says which, or why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unnoise.checkpoints import families, folders
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import adm, consistency, controlnet, ddpm, dit, edm, ldm, score_sde, sd3, single
from unnoise.checkpoints.parts import Found, Hints, Part
from unnoise.checkpoints.specs import FIRST_STAGES, ModelSpec
from unnoise.checkpoints.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.vision import CLIPVisionConfig, SafetyNetwork

# Who knows which single file, the most telling keys first.
RECOGNISERS: tuple[Callable[[Weights, Hints], Found | None], ...] = (
    ldm.recognise,
    sd3.recognise,
    dit.recognise,
    ddpm.recognise,
    adm.recognise,
    consistency.recognise,
    edm.recognise,
    score_sde.recognise,
)
SAFETY = Layout({"": ""}, ignored=r"position_ids$")


def opened(path: Path, hints: Hints | None = None, variant: str | None = None) -> Found:
    """The model of a folder or a .safetensors file; no weight is read. Raises FileError."""
    if path.is_dir():
        return folders.recognise(path, hints or {}, variant)
    return recognise(Weights.open(path), hints or {})


def recognise(weights: Weights, hints: Hints) -> Found:
    """Raises FileError where no family has these keys."""
    for one in RECOGNISERS:
        if found := one(weights, hints):
            return found
    some = ", ".join(sorted(weights)[:3])
    raise FileError(f"{weights.path} is no model of a family that runs here: {len(weights)} tensors such as {some}")


def part(path: Path, place: str) -> Part:
    """One network for a place of a model: of a folder with a config.json, of a file of its own, or of a whole model's. Raises FileError."""
    if path.is_dir():
        folder = folders.Folder(path.parent, {path.name: ["", ""]})
        if place == "autoencoder":
            return single.tiny(folder.weights(path.name), place) or folders.vae(folder, path.name)
        return folders.text(folder, path.name)
    weights = Weights.open(path)
    for one in (single.first_stage, single.tiny, single.text):
        if found := one(weights, place):
            return found
    try:
        return recognise(weights, {}).parts[place]
    except (FileError, KeyError):
        raise FileError(f"{path} holds no {place}: {len(weights)} tensors such as {', '.join(sorted(weights)[:3])}") from None


def control(path: Path, hints: Mapping[str, Any], variant: str | None = None) -> Part:
    """A ControlNet: a folder with a config.json, or a file of one of its published forms. Raises FileError."""
    folder = path if path.is_dir() else path.parent
    weights = Weights.open(folders.weights_file(path, variant) if path.is_dir() else path)
    described = path.is_dir() or path.name.startswith(folders.STEMS[0])  # a file that left its folder has no config of its own
    beside = folder / "config.json"
    found = controlnet.part(weights, folders.read_json(beside) if described and beside.is_file() else {}, hints)
    if found is None:
        raise FileError(f"{path} is no ControlNet: {len(weights)} tensors such as {', '.join(sorted(weights)[:3])}")
    return found


def replaced(spec: ModelSpec, place: str, part: Part) -> ModelSpec:
    """The spec with another network in a place. An autoencoder keeps the family's scale and shift. Raises FileError for other latents."""
    config = part.config
    if place != "autoencoder":
        fields = {"text_encoder": "text", "text_encoder_2": "text_2", "text_encoder_3": "text_3"}
        own = getattr(spec, fields[place])
        if own is not None and own.width != config.width:
            raise FileError(f"{part.weights.path} is a text encoder of width {config.width}, {spec.name} has one of {own.width}")
        return spec.model_copy(update={fields[place]: config})
    stage = spec.first_stage
    if stage is None or config.latent_channels != stage.latent_channels:
        wanted = f"{stage.latent_channels} latent channels" if stage else "no autoencoder"
        raise FileError(f"{part.weights.path} has {config.latent_channels} latent channels, and {spec.name} has {wanted}: use its own")
    given = families.FIELDS[type(config)]
    return families.resized(spec, {field: config if field == given else None for field in FIRST_STAGES})


def safety(path: Path) -> Part | None:
    """The safety checker beside a folder's model, where it has weights."""
    folder = path / "safety_checker"
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors*")):
        return None
    config = folders.read_json(folder / "config.json").get("vision_config", {})
    sizes = {
        "image_size": "image",
        "patch_size": "patch",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
    }
    vision = CLIPVisionConfig(
        **{ours: config[theirs] for theirs, ours in (sizes | {"intermediate_size": "mlp"}).items() if theirs in config}
    )
    return Part(SafetyNetwork, vision, SAFETY, Weights.open(folders.weights_file(folder)))
