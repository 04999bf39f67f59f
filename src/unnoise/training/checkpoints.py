"""Checkpoints of a run that survive a crash at any moment.

A checkpoint is written into a folder named `.partial`, every file flushed to the disk, the manifest with the hashes last; then the folder
is renamed. So a folder named `step-…` is complete, and one that fails its hashes (a broken disk, a careless hand) is passed over.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unnoise.checkpoints.store import write
from unnoise.errors import FileError
from unnoise.training.ema import EMA
from unnoise.training.trainee import Parameters

MANIFEST = "manifest.json"


def save(folder: Path, step: int, parameters: Parameters, ema: EMA, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write `folder/step-…`; of it and the older ones, keep the newest `keep`. Raises FileError."""
    final = folder / f"step-{step:08d}"
    for left in folder.glob("*.partial"):  # by a run that was killed here
        shutil.rmtree(left)
    partial = final.with_suffix(".partial")
    partial.mkdir(parents=True)
    hashes = {}
    try:
        for name, tensors in _tensors(parameters, ema, optimizer).items():
            path = partial / f"{name}.safetensors"
            write.tensors(path, tensors)
            hashes[path.name] = write.sha256(path)
        _write_manifest(partial / MANIFEST, {"step": step, "sha256": hashes})
        write.sync(partial)
        shutil.rmtree(final, ignore_errors=True)  # it is damaged, or the run would have gone on from it
        os.replace(partial, final)
        write.sync(folder)  # before an older one is removed
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
        raise
    for old in [path for path in _all(folder) if path <= final][:-keep]:  # a newer one is damaged: it counts for nothing
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files have their hashes."""
    return next((path for path in reversed(_all(folder)) if _whole(path)), None)


def restore(path: Path, parameters: Parameters, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Load everything in place; gives the number of steps already taken. Raises FileError when the network is another one."""
    weights = load_file(path / "weights.safetensors")
    shapes = [{name: value.shape for name, value in group} for group in (weights.items(), parameters.items())]
    try:
        write.match(path, *shapes)
    except FileError as error:
        raise FileError(f"{error}; the recipe changed since this run began: give another --output-dir") from None
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    for name, value in load_file(path / "ema.safetensors").items():
        ema.weights[name].copy_(value)
    _load_optimizer(parameters, optimizer, load_file(path / "optimizer.safetensors"))
    return _manifest(path)["step"]


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial" and (path / MANIFEST).is_file())


def _whole(path: Path) -> bool:
    hashes = _manifest(path).get("sha256", {})
    return bool(hashes) and all((path / name).is_file() and write.sha256(path / name) == digest for name, digest in hashes.items())


def _manifest(path: Path) -> dict[str, Any]:
    """{} where it cannot be read."""
    try:
        found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_manifest(path: Path, content: dict[str, Any]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error


def _tensors(parameters: Parameters, ema: EMA, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The files of a checkpoint."""
    weights = {name: p.detach() for name, p in parameters.items()}
    return {"weights": weights, "ema": ema.weights, "optimizer": _optimizer_state(parameters, optimizer)}


def _optimizer_state(parameters: Parameters, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's two moments and its step count, under the parameters' names."""
    return {f"{name}/{key}": value for name, p in parameters.items() for key, value in optimizer.state[p].items()}


def _load_optimizer(parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        # AdamW keeps its step count on the CPU unless the kernel is fused; moments live beside their parameter.
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)
