"""Models written in the forms that others read: a diffusers folder, a single file of CompVis or Stability AI, facebook's DiT.

Everything is written beside its place and renamed: there is the whole model or nothing. What a file has that no network reads (the text
tower's temperature, tables) is written again from the file that the model came from, so a file saved in its own form is itself, tensor by
tensor; without such a file only what readers ask for is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unnoise.checkpoints.folder.write import write_folder
from unnoise.checkpoints.keys import Networks
from unnoise.checkpoints.layouts import dit, ldm, sd3
from unnoise.checkpoints.store import write
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError, UnknownName
from unnoise.families.spec import ModelSpec


def _stability(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    return (sd3 if spec.network.kind == "mmdit" else ldm).tensors(spec, networks)


SINGLE: dict[str, Callable[[ModelSpec, Networks], dict[str, Tensor]]] = {"ldm": _stability, "dit": dit.tensors}
LAYOUTS = ("diffusers", *SINGLE)


def model(
    path: str | Path,
    spec: ModelSpec,
    networks: Networks | nn.ModuleDict,
    layout: str,
    *,
    tokenizers: Mapping[str, Any] | None = None,
    source: Path | None = None,
) -> None:
    """Write a model. networks, tokenizers: by place. source: the file that it came from. Raises FileError, UnknownName.

    layout: "diffusers", a folder; "ldm", a single file (Stable Diffusion 1 to 3.5, SDXL, latent diffusion); "dit", facebook's file.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, (*LAYOUTS, "unnoise"))
    by_place = dict(networks.items())  # torch's ModuleDict is no mapping
    if layout == "diffusers":
        write_folder(Path(path), spec, by_place, tokenizers or {})
    else:
        single_file(Path(path), SINGLE[layout](spec, by_place), spec, source)


def usual_layout(path: Path, spec: ModelSpec) -> str:
    """The layout of a model whose path alone was given."""
    if spec.conditioning == "draft" or not (spec.first_stage or spec.network.kind == "dit"):
        return "unnoise"
    return "diffusers" if path.suffix != ".safetensors" else "dit" if spec.network.kind == "dit" else "ldm"


def single_file(path: Path, stored: dict[str, Tensor], spec: ModelSpec, source: Path | None = None) -> None:
    """One .safetensors file, with what the source has beside these tensors."""
    if path.suffix != ".safetensors":
        raise FileError(f"got the output {path}: a single file's name ends in .safetensors")
    rest, metadata = _rest(stored, source)
    write.tensors(path, {**rest, **stored} if rest is not None else {**ldm.constants(stored, spec), **stored}, metadata or _metadata(spec))


def _rest(stored: Mapping[str, Tensor], source: Path | None) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """The source's tensors that are no network's, and its metadata; (None, {}) where the source is no file of this form."""
    if source is None or not source.is_file():
        return None, {}
    weights = Weights.open(source)
    if any(weights.shapes.get(key) != tuple(value.shape) for key, value in stored.items()):
        return None, {}
    return {key: weights.read(key) for key in weights if key not in stored and not key.startswith("model_ema.")}, weights.metadata


def _metadata(spec: ModelSpec) -> dict[str, str]:
    """Returns the prediction, which no tensor shows, in the words of Stability AI's model metadata."""
    words = {"v": "v", "eps": "epsilon"}
    return {"format": "pt", "modelspec.prediction_type": words[spec.prediction]} if spec.prediction in words else {"format": "pt"}
