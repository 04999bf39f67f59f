"""What a path is: a folder, a single file of a family, or nothing that runs here. One line says which, or why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from unnoise.checkpoints import native
from unnoise.checkpoints.folder import configs
from unnoise.checkpoints.folder.read import Folder, read_folder, read_json, text, vae, weights_file
from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import adm, consistency, controlnet, ddpm, dit, edm, ldm, score_sde, sd3, single
from unnoise.checkpoints.store.weights import Weights
from unnoise.checkpoints.store.write import STEMS
from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.families import table
from unnoise.families.spec import FITS, ModelSpec
from unnoise.networks.controlnet_mmdit import MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vision import SafetyConfig

# Who knows which single file, the most telling keys first.
RECOGNISERS: tuple[Callable[[Weights, Hints], Found | None], ...] = (
    native.recognise,
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


FILE_HINTS = ("ema", "family", "order")  # of a single file
EXTRA = {"mask": 1, "depth": 1, "low_res": 3}  # channels that join x; a masked picture has as many as x


class NoModel(FileError):
    """A file whose keys are no family's: perhaps of another kind, which `inspect.py` knows."""


def model(path: Path, hints: Hints | None = None, variant: str | None = None) -> Found:
    """The model of a folder or a .safetensors file; no weight is read.

    Raises FileError, and ArgumentError or UnknownName where a hint cannot be used.
    """
    hints = hints or {}
    check_hints(hints)
    if path.is_dir() and "file" in hints:
        raise ArgumentError(f"config: 'file' says what a single file is, and {path} is a folder: leave it out")
    if variant and not path.is_dir():
        raise ArgumentError(f"got variant {variant!r} for {path}: a single file has no variants; leave it out")
    with _described(path):
        found = read_folder(path, hints, variant) if path.is_dir() else single_file(Weights.open(path), hints)
    found.check_beside(path, ["config"] if hints else [])
    if not found.complete:  # whose network may be given a draft, of which the spec does not tell
        check_channels(found.spec, path)
    check_used(hints, found)
    return found


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Configs that do not hold together, or have no such field, as one line with the path."""
    try:
        yield
    except UnknownName:
        raise
    except ArgumentError as error:  # of a config
        out = "say what the file does not show, such as config={'network': {'head_width': 64}}"
        raise FileError(f"{path}: {error}; {out}") from None
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        kind, field = str(error).split(".")[0], str(error).split()[-1]
        raise ArgumentError(f"config: {path} is described by a {kind}, which has no field {field}: leave it out") from None


def check_hints(hints: Hints) -> None:
    """Raises UnknownName for a place or a field that no model has, ArgumentError for what is no mapping."""
    for place, given in hints.items():
        if place not in (*FITS, "file"):
            raise UnknownName("network in config", place, (*FITS, "file"))
        if not isinstance(given, Mapping):
            raise ArgumentError(f"config[{place!r}] is {given!r}: expected fields and values, such as {{'network': {{'heads': 8}}}}")
        known = FILE_HINTS if place == "file" else {one.name for config in FITS[place] for one in fields(config)}
        for name in given:
            if name not in known:
                raise UnknownName(f"field in config[{place!r}]", name, known)
    if (family := hints.get("file", {}).get("family")) is not None:
        table.family(family)


def check_used(hints: Hints, found: Found) -> None:
    """Raises ArgumentError for a hint that changed nothing because the model has no such network, or reads the field elsewhere."""
    for place, given in hints.items():
        if place == "file":
            continue
        if place not in found.parts:
            raise ArgumentError(f"config names {place!r}, and this {found.spec.name} brings {', '.join(found.parts)}: leave it out")
        config = found.parts[place].config
        for name, value in given.items():
            if not hasattr(config, name):
                raise UnknownName(f"field in config[{place!r}]", name, [one.name for one in fields(config)])
            if getattr(config, name) != (tuple(value) if isinstance(value, list) else value):
                raise ArgumentError(f"config: {name} of {place!r} cannot be set for {found.spec.name}: it is {getattr(config, name)!r}")
    family = hints.get("file", {}).get("family")
    if family is not None and family not in (found.spec.name, found.spec.family):
        raise ArgumentError(f"config: the file's family is {found.spec.name}, which {family!r} cannot replace: leave it out")


def check_channels(spec: ModelSpec, path: Path) -> None:
    """Raises FileError where the network wants other channels than x and what joins it, as InstructPix2Pix does."""
    wanted, x = spec.network.in_channels, spec.channels
    given = x + sum(EXTRA.get(name, x) for name in spec.extra_channels)
    if wanted == given:
        return
    like = " (as InstructPix2Pix's, which is not supported)" if wanted == 2 * x and spec.first_stage else ""
    raise FileError(f"{path} has a network of {wanted} channels in{like}: {spec.name} gives it {given}, so no family here runs it")


def single_file(weights: Weights, hints: Hints) -> Found:
    """Raises NoModel where no family has these keys."""
    for one in RECOGNISERS:
        if found := one(weights, hints):
            return found
    raise NoModel(f"{weights.path} is no model of a family that runs here: {weights.some}")


def part(path: Path, place: str) -> Part:
    """One network for a place of a model: of a folder with a config.json, of a file of its own, or of a whole model's. Raises FileError."""
    if path.is_dir():
        folder = Folder(path.parent, {path.name: ["", ""]})
        if place == "autoencoder":
            return single.tiny(folder.weights(path.name), place) or vae(folder, path.name)
        return text(folder, path.name)
    weights = Weights.open(path)
    for one in (single.first_stage, single.tiny, single.text):
        if found := one(weights, place):
            return found
    try:
        return single_file(weights, {}).parts[place]
    except (FileError, KeyError):
        raise FileError(f"{path} holds no {place}: {weights.some}") from None


def control(path: Path, hints: Mapping[str, Any], variant: str | None = None) -> Part:
    """A ControlNet: a folder with a config.json, or a file of one of its published forms. Raises FileError, ArgumentError, UnknownName."""
    known = {one.name for config in (UNetConfig, MMDiTConfig, MMDiTControlNetConfig) for one in fields(config)}
    for name in hints:
        if name not in known:
            raise UnknownName("field in config", name, known)
    if variant and not path.is_dir():
        raise ArgumentError(f"got variant {variant!r} for {path}: a single file has no variants; leave it out")
    folder = path if path.is_dir() else path.parent
    weights = Weights.open(weights_file(path, variant) if path.is_dir() else path)
    described = path.is_dir() or path.name.startswith(STEMS[0])  # a file that left its folder has no config of its own
    beside = folder / "config.json"
    found = controlnet.part(weights, read_json(beside) if described and beside.is_file() else {}, hints)
    if found is None:
        raise FileError(f"{path} is no ControlNet: {weights.some}")
    return found


def replaced(spec: ModelSpec, place: str, part: Part) -> ModelSpec:
    """The spec with another network in a place. An autoencoder keeps the family's scale and shift. Raises FileError for other latents."""
    config = part.config
    if place != "autoencoder":
        own: Any = spec.networks.get(place)  # pyright: ignore[reportArgumentType]
        if own is not None and own.width != config.width:
            raise FileError(f"{part.weights.path} is a text encoder of width {config.width}, {spec.name} has one of {own.width}")
        return spec.with_networks({place: config})
    stage = spec.first_stage
    if stage is None or config.latent_channels != stage.latent_channels:
        wanted = f"{stage.latent_channels} latent channels" if stage else "no autoencoder"
        raise FileError(f"{part.weights.path} has {config.latent_channels} latent channels, and {spec.name} has {wanted}: use its own")
    return table.resized(spec, {"autoencoder": config})


def safety(path: Path) -> Part | None:
    """The safety checker beside a folder's model, where it has weights."""
    folder = path / "safety_checker"
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors*")):
        return None
    return safety_checker(folder)


def safety_checker(folder: Path) -> Part:
    """Of its own folder. Raises FileError."""
    vision = configs.VISION.read(read_json(folder / "config.json").get("vision_config", {}))
    return Part(SafetyConfig(vision), SAFETY, Weights.open(weights_file(folder)))
