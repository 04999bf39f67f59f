"""What a path is: a folder, a single file of a family, or nothing that runs here. One line says which, or why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unnoise.checkpoints import folders
from unnoise.checkpoints.layouts import ldm, sd3
from unnoise.checkpoints.parts import Found, Hints
from unnoise.checkpoints.weights import Weights
from unnoise.errors import FileError

# Who knows which single file, the most telling keys first.
RECOGNISERS: tuple[Callable[[Weights, Hints], Found | None], ...] = (ldm.recognise, sd3.recognise)


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
