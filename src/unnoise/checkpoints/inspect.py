"""What a file is, by its header alone: kind, family, parts, precision, process, and the command that would run it. No tensor is loaded."""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from unnoise.checkpoints import recognise
from unnoise.checkpoints.adapters import families, words
from unnoise.checkpoints.adapters.keys import grouped, other_kind
from unnoise.checkpoints.adapters.words import bundled
from unnoise.checkpoints.folder.read import read_folder, read_json, weights_file
from unnoise.checkpoints.found import Part
from unnoise.checkpoints.layouts import adm, controlnet, single
from unnoise.checkpoints.store import header
from unnoise.checkpoints.store.weights import Weights
from unnoise.checkpoints.store.write import STEMS
from unnoise.errors import FileError, UnknownName
from unnoise.families.spec import ModelSpec, NetworkConfig

SHOWN = 200  # characters of a metadata value
NUMBERED = re.compile(r"^(unet|text_encoder):\d+:(up|down)$")
# How a LoRA's keys are written: a regular expression that one of them has. The first that fits.
DIALECTS = {
    r"\.(hada|lokr)_w|\.lora_mid\.": "LyCORIS",
    r"^lora_(unet|te)": "kohya",
    r"\.lora_[AB]\.": "PEFT",
    r"processor\..*_lora\.": "diffusers attention processors",
    r"lora_linear_layer|\.lora\.(up|down)\.": "diffusers",
    r"^(unet|text_encoder):\d+:": "cloneofsimo",
    r"lora_(up|down)\.": "kohya",
}
RANKS = {"down": 0, "hada_w1_b": 0, "lokr_w2_b": 0, "lokr_w1_b": 0}  # role: the axis of its tensor that is the rank


def describe(path: Path) -> dict[str, Any]:
    """Describes a path as a record ready for JSON, as far as it is known.

    Its keys: kind, family, parts, parameters, dtypes, bytes, prediction, schedule, evidence, run, metadata. Of a pickle it says the kind
    and the size of the tensors; of a file that no layout knows, names and shapes. Raises FileError for what is no file of weights.
    """
    record = _folder(path) if path.is_dir() else _file(path)
    return {"path": str(path), **{key: value for key, value in record.items() if value not in (None, "", [], {})}}


# Files


def _file(path: Path) -> dict[str, Any]:
    if pickled := _pickle(path):
        return pickled
    weights = Weights.open(path)
    for one in (_adapter, _control, _model, _alone, _words):
        if found := one(path, weights):
            return {**found, **_sizes(weights, path)}
    return {**_unknown(weights), **_sizes(weights, path)}


def _sizes(weights: Weights, path: Path) -> dict[str, Any]:
    metadata = {key: value if len(value) <= SHOWN else value[:SHOWN] + "…" for key, value in weights.metadata.items()}
    metadata = {key: value for key, value in metadata.items() if key not in ("spec", "tokenizer") and not key.endswith(":rank")}
    return {"tensors": len(weights), **counted(weights), "file_bytes": path.stat().st_size, "metadata": metadata}


def counted(weights: Weights, ignored: str = r"(?!)") -> dict[str, Any]:
    """Parameters, their precisions (most numbers first), and bytes. Whole numbers are no parameters."""
    numbers: Counter[str] = Counter()
    total = 0
    for name, shape in weights.shapes.items():
        dtype, count = weights.dtypes[name], math.prod(shape)
        if re.search(ignored, name):
            continue
        total += count * dtype.itemsize
        if dtype.is_floating_point:
            numbers[str(dtype).removeprefix("torch.")] += count
    return {"parameters": sum(numbers.values()), "dtypes": [name for name, _ in numbers.most_common()], "bytes": total}


def _pickle(path: Path) -> dict[str, Any] | None:
    """A file that torch.save wrote; nothing of it is run. Its zip says how large its tensors are."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    if not start.startswith(header.PICKLES):
        return None
    record: dict[str, Any] = {"kind": "pickle", "file_bytes": path.stat().st_size}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            stored = [info for info in archive.infolist() if "/data/" in info.filename]
        record |= {"tensors": len(stored), "bytes": sum(info.file_size for info in stored)}
    evidence = "a pickle can run code, so its names are not read: convert it and inspect what comes out"
    return {**record, "evidence": [evidence], "run": f"unnoise convert {path} {path.with_suffix('.safetensors').name}"}


def _model(path: Path, weights: Weights) -> dict[str, Any] | None:
    try:
        found = recognise.single_file(weights, {})
    except FileError:
        return None
    return _found(path, found.spec, found.parts, found.evidence)


def _found(path: Path, spec: ModelSpec, parts: Mapping[str, Part], evidence: Any) -> dict[str, Any]:
    wanted = [place for place in spec.networks if place not in parts]
    rows = {place: (part.config, part.weights, part.layout.ignored) for place, part in parts.items()}
    evidence = [*evidence, *([f"without {', '.join(wanted)}: name files with --part"] if wanted else [])]
    return {"kind": "model", **_spec(spec), "parts": _parts(rows), "missing": wanted, "evidence": evidence, "run": _run(path, spec)}


def _spec(spec: ModelSpec) -> dict[str, Any]:
    schedule = {name: value for name, value in spec.schedule.model_dump(exclude_defaults=True).items() if value is not None}
    about = {"family": spec.name, "summary": spec.summary, "size": spec.size, "prediction": spec.prediction}
    return {**about, "schedule": {"kind": spec.schedule.kind, **schedule}, "conditioning": spec.conditioning}


def _parts(parts: Mapping[str, tuple[Any, Weights, str]]) -> dict[str, Any]:
    return {place: {"network": _class(config), **counted(weights, ignored)} for place, (config, weights, ignored) in parts.items()}


def _class(config: NetworkConfig) -> str:
    """The class of network that a config builds, by the annotation of `build`: T5 alone takes a second to build."""
    return get_type_hints(type(config).build)["return"].__name__


def _run(path: Path | str, spec: ModelSpec) -> str:
    asked = {"none": "", "labels": "--label 1 ", "label_tokens": "--label 1 "}.get(spec.conditioning, '"a red apple" ')
    picture = "--image IMAGE " if spec.extra_channels else ""
    mask = "--mask MASK " if "mask" in spec.extra_channels else ""
    return f"unnoise generate {asked}{picture}{mask}--model {path}"


def _control(path: Path, weights: Weights) -> dict[str, Any] | None:
    try:
        part = controlnet.part(weights, _beside(path), {})
    except FileError as error:
        return {"kind": "other control", "evidence": [str(error)]}
    if part is None or "model.diffusion_model.out.2.weight" in weights:  # lllyasviel's first files hold the whole model too
        return None
    family = controlnet.family(part.config)
    parts = _parts({"network": (part.config, part.weights, part.layout.ignored)})
    hint = controlnet.kind(part.weights)
    run = f'unnoise generate "a red apple" --model MODEL --control {path}=IMAGE'
    return {
        "kind": "ControlNet",
        "family": family,
        "hint": hint,
        "parts": parts,
        "evidence": [f"zero convolutions beside a copy of {family}"],
        "run": run,
    }


def _beside(path: Path) -> dict[str, Any]:
    config = path.parent / "config.json"
    return read_json(config) if path.name.startswith(STEMS[0]) and config.is_file() else {}


def _alone(path: Path, weights: Weights) -> dict[str, Any] | None:
    """One network of a model."""
    tries: list[tuple[str, str, Callable[[], Part | None]]] = [
        ("autoencoder", "autoencoder", lambda: single.first_stage(weights, "autoencoder")),
        ("tiny autoencoder", "autoencoder", lambda: single.tiny(weights, "autoencoder")),
        ("text encoder", "text_encoder_3", lambda: single.text(weights, "text_encoder_3")),
        ("text encoder", "text_encoder", lambda: single.text(weights, "text_encoder")),
        ("classifier", "classifier", lambda: adm.classifier_part(weights, {})),
    ]
    for kind, place, attempt in tries:
        try:
            part = attempt()
        except FileError as error:
            return {"kind": kind, "evidence": [str(error)]}
        if part is not None:
            parts = _parts({place: (part.config, part.weights, part.layout.ignored)})
            evidence = [", ".join(f"{name} {value}" for name, value in vars(part.config).items())]
            option = f"--classifier {path}" if kind == "classifier" else f"--part {place}={path}"
            return {"kind": kind, "parts": parts, "evidence": evidence, "run": f"unnoise generate ... --model MODEL {option}"}
    return None


# Adapters and words


def _adapter(path: Path, weights: Weights) -> dict[str, Any] | None:
    numbered = [key for key in weights if NUMBERED.match(key)]
    rest = Weights(weights.path, weights.metadata, {key: place for key, place in weights.places.items() if not NUMBERED.match(key)})
    modules, others = grouped(rest, {})
    factors = {role for roles in modules.values() for role in roles} - {"alpha"}
    if not numbered and (not factors or len(others) > len(rest) / 2):
        if kind := other_kind(others):
            return {"kind": "adapter", "evidence": [f"{kind}, which is not read: LoRA, LoCon, LoHa, LoKr, DoRA and whole differences are"]}
        return None
    trained_for = families.of_file(weights, modules)
    dialect = next((name for pattern, name in DIALECTS.items() if any(re.search(pattern, key) for key in weights)), "")
    count = len(modules) + len(numbered) // 2
    words = [word.word for word in bundled(weights, others)[0]]
    evidence = [f"{count} modules in {dialect or 'mixed'} keys", *([f"brings the words {', '.join(words)}"] if words else [])]
    return {
        "kind": "LoRA",
        "family": " or ".join(trained_for),
        "change": _change(modules, weights),
        "dialect": dialect,
        "rank": _rank(modules, weights, numbered),
        "evidence": evidence,
        "run": f'unnoise generate "a red apple" --model MODEL --lora {path}',
    }


def _change(modules: Mapping[str, Mapping[str, str]], weights: Weights) -> str:
    roles = {role for found in modules.values() for role in found}
    names = {"dora_scale": "DoRA", "magnitude": "DoRA", "hada_w1_a": "LoHa", "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "mid": "LoCon"}
    if roles and roles <= {"diff", "diff_b", "w_norm", "b_norm", "alpha"}:
        return "whole differences"
    if named := next((name for role, name in names.items() if role in roles), None):
        return named
    spread = any(
        len(weights.shapes[found["down"]]) == 4 and weights.shapes[found["down"]][2] > 1 for found in modules.values() if "down" in found
    )
    return "LoCon" if spread else "LoRA"


def _rank(modules: Mapping[str, Mapping[str, str]], weights: Weights, numbered: list[str]) -> int:
    """The largest."""
    ranks = [weights.shapes[found[role]][axis] for found in modules.values() for role, axis in RANKS.items() if role in found]
    return max([*ranks, *(weights.shapes[key][0] for key in numbered if key.endswith(":down"))], default=0)


def _words(path: Path, weights: Weights) -> dict[str, Any] | None:
    if len(weights) > 64:
        return None
    try:
        found = words.read(weights)
    except FileError:
        return None
    widths = {vectors.shape[-1] for word in found for vectors in word.vectors.values()}
    if not widths & words.WIDTHS.keys():
        return None
    family = "SDXL or Stable Diffusion 3" if len(widths) > 1 else words.WIDTHS[widths.pop()]
    evidence = [f"the word {word.word!r}, {word.count} vectors" for word in found]
    run = f'unnoise generate "a drawing of {found[0].word}" --model MODEL --embedding {path}'
    return {"kind": "textual inversion", "family": family, "evidence": evidence, "run": run}


# What no layout knows


def _unknown(weights: Weights) -> dict[str, Any]:
    """The names with the most parameters, and what shapes say of a network of pictures."""
    groups: Counter[str] = Counter()
    for name, shape in weights.shapes.items():
        groups[name.split(".")[0]] += math.prod(shape)
    largest = ", ".join(f"{name} ({count:,})" for name, count in groups.most_common(4))
    convolutions = [shape for shape in weights.shapes.values() if len(shape) == 4 and shape[2] > 1]
    evidence = [f"no layout that runs here; most parameters in {largest}"]
    if convolutions:
        evidence.append(
            f"{len(convolutions)} convolutions, the first from {convolutions[0][1]} channels, the last to {convolutions[-1][0]}"
        )
    tables = [
        name for name, shape in weights.shapes.items() if len(shape) == 1 and shape[0] >= 100 and re.search(r"beta|alpha|sigma", name)
    ]
    if tables:
        evidence.append(f"a schedule of {weights.shapes[tables[0]][0]} steps in {', '.join(tables[:3])}")
    return {"kind": "unknown", "evidence": evidence}


# Folders


def _folder(path: Path) -> dict[str, Any]:
    if (path / "model_index.json").is_file():
        try:
            found = read_folder(path, {})
        except (FileError, UnknownName) as error:
            return _broken(path, str(error))
        record = _found(path, found.spec, found.parts, found.evidence)
        total = sum(part.weights.bytes for part in found.parts.values())
        parameters = sum(row["parameters"] for row in record["parts"].values())
        return {**record, "parameters": parameters, "bytes": total}
    if (path / "config.json").is_file():
        return {**_file(weights_file(path)), "config": read_json(path / "config.json").get("_class_name", "")}
    inside = sorted(one.name for one in path.iterdir())[:4]
    raise FileError(f"{path} is no model's folder: it has {', '.join(inside) or 'nothing'}, expected a model_index.json or a config.json")


def _broken(path: Path, reason: str) -> dict[str, Any]:
    """A folder that does not load: what its index names, and what of it is here."""
    index = read_json(path / "model_index.json")
    named = {name: row[1] for name, row in index.items() if isinstance(row, list) and len(row) == 2 and row[1]}
    here = {name: {"class": kind, "state": _state(path / name)} for name, kind in named.items()}
    return {"kind": "model", "family": index.get("_class_name", ""), "parts": here, "evidence": [f"does not load: {reason}"]}


def _state(folder: Path) -> str:
    if not folder.is_dir():
        return "missing"
    if not any(one.suffix in (".safetensors", ".bin") for one in folder.iterdir()):
        return "config alone" if (folder / "config.json").is_file() else "here"
    try:
        weights = Weights.open(weights_file(folder))
    except FileError as error:
        return str(error)
    return f"{counted(weights)['parameters']:,} parameters"
