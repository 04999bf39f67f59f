"""Where a model runs and in which number format, from names that people type."""

from __future__ import annotations

import torch

from unnoise.errors import ArgumentError, UnknownName

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device(name: str) -> torch.device:
    """auto: the first GPU if there is one, else the CPU. Raises ArgumentError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UnknownName("device", name, ("auto", "cpu", "cuda", "mps")) from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(found.type, False):
        raise ArgumentError(f"got device {name!r}, which this machine does not have: use 'cpu' or 'auto'")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(f"got device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return found


def dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: float32 on a CPU, float16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise UnknownName("dtype", name, ("auto", *DTYPES))
    return DTYPES[name]
