"""Checkpoints of a run that survive a crash at any moment.

A checkpoint is written into a folder named `.partial`, every file flushed to the disk, the manifest with the hashes last; then the folder
is renamed. So a folder named `step-…` is complete, and a newer one that fails its hashes is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unnoise.training.ema import EMA

MANIFEST = "manifest.json"


def save(folder: Path, step: int, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write `folder/step-…` and delete all but the newest `keep` checkpoints."""
    final = folder / f"step-{step:08d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {"weights": _weights(model), "ema": ema.weights, "optimizer": _optimizer_state(model, optimizer)}
    hashes = {}
    for name, tensors in files.items():
        path = partial / f"{name}.safetensors"
        save_file(tensors, path)
        hashes[path.name] = _flush(path)
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"step": step, "sha256": hashes}))
    _flush(manifest)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files have their hashes."""
    return next((path for path in reversed(_all(folder)) if _whole(path)), None)


def restore(path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Load everything in place; gives the number of steps already taken."""
    step = json.loads((path / MANIFEST).read_text())["step"]
    model.load_state_dict(load_file(path / "weights.safetensors"), strict=False)  # buffers are not saved: they are constants
    for name, value in load_file(path / "ema.safetensors").items():
        ema.weights[name].copy_(value)
    _load_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"))
    return step


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial" and (path / MANIFEST).is_file())


def _whole(path: Path) -> bool:
    hashes = json.loads((path / MANIFEST).read_text())["sha256"]
    return all((path / name).is_file() and _sha256(path / name) == digest for name, digest in hashes.items())


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's two moments and its step count, under the parameters' names."""
    return {f"{name}/{key}": value.contiguous() for name, p in model.named_parameters() for key, value in optimizer.state[p].items()}


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        # AdamW keeps its step count on the CPU unless the kernel is fused; moments live beside their parameter.
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def _flush(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _sha256(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
