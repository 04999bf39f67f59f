"""From a run to a file of its own: the averaged weights, in the form that its trainee writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unnoise.errors import ArgumentError, FileError
from unnoise.training.loop import Run


def check(path: Path) -> None:
    """Refuse a place before the hours of training, not after them. Raises ArgumentError or FileError."""
    if path.suffix != ".safetensors":
        raise ArgumentError(f"got {str(path)!r} to publish to: expected a name that ends in .safetensors")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise FileError(f"cannot publish to {str(path)!r}: expected a folder at {str(path.parent)!r} that may be written to")


def publish(run: Run[Any], path: Path) -> None:
    """Write the averaged values of what was trained."""
    run.trainee.save(path, run.ema.weights)
