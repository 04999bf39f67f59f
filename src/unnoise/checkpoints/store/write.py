"""Safetensors files: written whole or not at all, read by mapping, every failure one line."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from unnoise.errors import FileError, nearest

STEMS = ("diffusion_pytorch_model", "model")  # what a component's weights are called in a diffusers folder


def tensors(path: Path, named: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write under another name, flush it to the disk, rename. Raises FileError."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what this user's new files have; the library's own is readable by its owner alone
        save_file({name: value.contiguous() for name, value in named.items()}, partial, metadata=metadata)
        os.chmod(partial, mode)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):  # whole, it would stand in memory a second time
            found.update(block)
    return found.hexdigest()


def sync(folder: Path) -> None:
    """Flush the folder's names to the disk, so that a rename outlives a power failure; Windows and some network disks cannot."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def match(path: Path, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Refuse weights whose names and shapes are not the network's; the nearest names are said. Raises FileError."""
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((expected, found), (found, expected)))
    if missing or unknown:
        parts = [
            _counted(missing, "weights are missing", unknown, "nearest in the file"),
            _counted(unknown, "unknown", missing, "nearest expected"),
        ]
        raise FileError(f"{path} does not fit: {', '.join(parts)}")
    for name, shape in found.items():
        if tuple(shape) != tuple(expected[name]):
            raise FileError(f"{path} does not fit: {name} has shape {tuple(shape)}, expected {tuple(expected[name])}")


def _counted(names: list[str], what: str, others: list[str], where: str) -> str:
    """`3 weights are missing ['a', 'b'] (nearest in the file: 'c')`."""
    near = nearest(names[0], others, n=1) if names else []
    return f"{len(names)} {what} {names[:2]}" + (f" ({where}: {near[0]!r})" if near else "")


def _reason(error: Exception) -> str:
    """The system's words; safetensors hides its error number in a text."""
    found = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else int(found[1]) if found else 0
    return os.strerror(number) if number in errno.errorcode else str(error)
