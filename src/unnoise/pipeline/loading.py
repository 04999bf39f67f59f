"""Models by name, file, folder or hub id. `load` says what a thing is, or in one line why it does not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from unnoise.checkpoints import native, recognise, save
from unnoise.checkpoints.found import Found, Part
from unnoise.checkpoints.inspect import describe
from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.images.safety import SafetyChecker
from unnoise.networks import tokenizers, wordpiece
from unnoise.networks.tokenizers import Tokenizer
from unnoise.pipeline import classifiers, controls
from unnoise.pipeline.classifiers import ClassifierModel
from unnoise.pipeline.conditionings import CONDITIONINGS
from unnoise.pipeline.controls import ControlModel
from unnoise.pipeline.locating import BUILTIN, locate
from unnoise.pipeline.model import Model
from unnoise.runtime.placement import Networks, Placement

BESIDE = ("preview", "safety_checker")  # places of networks that are no part of the model


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
    out; "preview" is a tiny autoencoder to look at steps with, "safety_checker" the folder of one.
    config: what the file does not show, or says wrongly: {"network": {"heads": 8}}. What cannot be used is refused.
    `Model.evidence` says how the family, the prediction and the schedule are known.
    Raises UnknownName, ArgumentError or FileError.
    """
    placement = Placement.named(device, dtype)
    path = locate(model, variant)
    found = _opened(path, config, variant)
    found.check_beside(path, [name for name, given in (("parts", parts), ("prediction", prediction)) if given])
    found = _with_parts(found, parts or {})
    if config:
        recognise.check_used({place: given for place, given in config.items() if place not in (parts or {})}, found)
    spec = found.spec if prediction is None else _predicting(found.spec, prediction)
    used = {place: part for place, part in found.parts.items() if place in spec.networks}
    if preview := _tiny(found, (parts or {}).get("preview")):
        used["preview"] = preview
    networks = placed(used, placement)
    safety, files = _safety(path, spec, parts or {}, placement), OpenFiles(placement)
    return Model(spec, _tokenizers(found), networks, file=path, safety=safety, evidence=found.evidence, files=files)


def placed(parts: Mapping[str, Part], placement: Placement) -> Networks:
    """Load the networks of a file to where they run. Raises FileError."""
    modules = {place: part.load(placement.dtype, placement.device) for place, part in parts.items()}
    return Networks(modules, {place: part.config for place, part in parts.items()}, placement)


class OpenFiles:
    """Opens networks that a request names by their files, each once for one model; see `inputs.Files`."""

    def __init__(self, placement: Placement):
        self.placement = placement
        self._opened: dict[tuple[str, str], Any] = {}

    def model(self, path: Any) -> Model:
        dtype, device = str(self.placement.dtype).removeprefix("torch."), str(self.placement.device)
        return self._once("model", path, lambda: load(path, dtype=dtype, device=device))

    def control(self, path: Any) -> ControlModel:
        return self._once("control", path, lambda: controls.opened(path, self.placement))

    def classifier(self, path: Any) -> ClassifierModel:
        return self._once("classifier", path, lambda: classifiers.opened(path, self.placement))

    def _once(self, kind: str, path: Any, read: Callable[[], Any]) -> Any:
        key = kind, str(path)
        if key not in self._opened:
            self._opened[key] = read()
        return self._opened[key]


def _predicting(spec: ModelSpec, prediction: str) -> ModelSpec:
    known = get_args(ModelSpec.model_fields["prediction"].annotation)
    if prediction not in known:
        raise UnknownName("prediction", prediction, known)
    return spec.model_copy(update={"prediction": prediction})


# What a file is that is no model, by the words of `inspect`: which argument takes it
TAKERS = {
    "LoRA": "Model.with_lora",
    "textual inversion": "Model.with_embedding",
    "ControlNet": "load_control, for generate(control=...)",
    "classifier": "load_classifier, for generate(classifier=...)",
    "autoencoder": "load(MODEL, parts={'autoencoder': FILE})",
    "tiny autoencoder": "load(MODEL, parts={'preview': FILE}), or 'autoencoder' to decode by it",
    "text encoder": "load(MODEL, parts={'text_encoder': FILE})",
}


def _opened(path: Path, config: Mapping[str, Mapping[str, Any]] | None, variant: str | None) -> Found:
    """Raises FileError, which says of another kind of file who takes it."""
    try:
        return recognise.model(path, config, variant)
    except recognise.NoModel:
        kind = describe(path)["kind"]
        if kind not in TAKERS:
            raise
        raise FileError(f"{path} is no whole model but of kind {kind}: give it to {TAKERS[kind]}") from None


def _tiny(found: Found, path: str | Path | None) -> Part | None:
    """The tiny autoencoder that previews are decoded by. Raises FileError where it is none, or of other latents."""
    if path is None:
        return None
    part = recognise.part(locate(path), "autoencoder")
    recognise.replaced(found.spec, "autoencoder", part)
    if part.config.kind != "tiny":
        raise FileError(f"{path} is a whole autoencoder: a preview is decoded by a tiny one (TAESD)")
    return part


def rewrite(model: str | Path, out: str | Path, layout: str | None = None) -> str:
    """A model in another layout, its tensors as they are stored; returns the layout.

    model: as for `load`. layout: "diffusers", "ldm" or "dit"; None: by the output's name and the family. Raises UnknownName, FileError.
    """
    path = locate(model)
    found = recognise.model(path)
    chosen = layout or save.usual_layout(Path(out), found.spec)
    networks = {place: part.load() for place, part in found.parts.items()}
    save.model(out, found.spec, networks, chosen, tokenizers=_tokenizers(found), source=path)
    return chosen


def inspect(model: str | Path) -> dict[str, Any]:
    """What a file of weights, a folder, a hub id or a model of the package is, by headers alone: no tensor is loaded.

    Ready for JSON: kind, family, parts, parameters, dtypes, bytes, prediction, schedule, evidence, run, metadata, as far as they are known.
    Raises UnknownName, or FileError for what is no file of weights.
    """
    path = Path(model)
    return describe(path if path.exists() else locate(model))


def _with_parts(found: Found, given: Mapping[str, str | Path | None]) -> Found:
    """The model with networks of other files in their places."""
    places = ("autoencoder", "text_encoder", "text_encoder_2", "text_encoder_3")
    parts = dict(found.parts)
    spec = found.spec
    has = {*spec.networks, *FAMILIES.get(spec.name, spec).networks} - {"network"}  # a folder's spec lacks what was left out of it
    for place, path in given.items():
        if place not in (*places, *BESIDE):
            raise UnknownName("part", place, (*places, *BESIDE))
        if place in BESIDE:
            continue  # no part of the model: see `_tiny` and `_safety`
        if place not in has:
            raise ArgumentError(
                f"got a part {place!r}, and {spec.name} has {', '.join(sorted(has)) or 'none beside its network'}: leave it out"
            )
        parts.pop(place, None)
        if path is not None:
            parts[place] = recognise.part(locate(path), place)
            spec = recognise.replaced(spec, place, parts[place])
    return replace(found, spec=spec, parts=parts).with_stage()


def _tokenizers(found: Found) -> dict[str, Tokenizer]:
    """The folder's own, else the package's: nothing is fetched."""
    spec, made = found.spec, {}
    for place, part in found.parts.items():
        if isinstance(tokenizer := found.tokenizers.get(place), Tokenizer):
            made[place] = tokenizer
        elif tokenizer is not None:
            made[place] = tokenizers.from_folder(tokenizer, getattr(part.config, "length", None))
        elif part.config.kind == "t5":
            made[place] = tokenizers.published_t5()
        elif spec.conditioning == "bert" and place == "text_encoder":
            made[place] = wordpiece.bert()  # pyright: ignore[reportArgumentType]
        elif place.startswith("text_encoder") and spec.conditioning not in ("label_tokens", "draft"):
            zero = place == "text_encoder_2" or spec.conditioning in ("clip_penultimate", "refiner")  # OpenCLIP pads with 0
            made[place] = tokenizers.published_clip(part.config.length, pad=0 if zero else None)
    return made


def _safety(path: Path, spec: ModelSpec, given: Mapping[str, str | Path | None], placement: Placement) -> SafetyChecker | None:
    """The given safety checker, else the folder's, where it has one."""
    part: Part | None
    if asked := given.get("safety_checker"):
        if not CONDITIONINGS[spec.conditioning].photographs:
            raise ArgumentError(f"got a safety checker for {spec.name}, which draws no photographs of anything: leave it out")
        part = recognise.safety_checker(locate(asked))
    else:
        part = None if "safety_checker" in given else recognise.safety(path)
    return SafetyChecker(part.load(placement.dtype, placement.device), part.config, placement) if part else None
