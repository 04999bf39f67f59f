"""The header of a safetensors file, read and checked without touching a tensor; every failure is one line.

8 bytes   n, little-endian        safetensors' own format (github.com/huggingface/safetensors, README)
n bytes   JSON: {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {text: text}}
the rest  the tensors, one behind the other
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from unnoise.errors import FileError

LONGEST = 100_000_000  # bytes of a header, safetensors' own limit
POINTER = b"version https://git-lfs"  # what Git leaves in a file's place where Git LFS is not installed
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save since 1.6 is a zip, before that a bare pickle
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class Entry:
    """One tensor: where it lies in the file, in bytes from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]
    stamp: tuple[int, ...]  # which state of the file was read


def read(path: Path) -> Header:
    """The file's header. Raises FileError with one line that says what the file is instead."""
    try:
        with path.open("rb") as file:
            return _parse(path, file)
    except FileNotFoundError:
        raise FileError(f"no file {path}: expected a safetensors file") from None
    except OSError as error:
        if path.is_dir():
            inside = sorted(p.name for p in path.glob("*.safetensors"))[:2]
            hint = f"name the file in it, as {' or '.join(inside)}" if inside else "it has no .safetensors file in it"
            raise FileError(f"{path} is a folder, not a whole safetensors file: {hint}") from None
        raise FileError(f"cannot read {path}: {error.strerror}") from None


def stamp(file: BinaryIO) -> tuple[int, ...]:
    """Size, time and place of an open file: equal as long as nobody replaces or rewrites it."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


def _parse(path: Path, file: BinaryIO) -> Header:
    state = stamp(file)
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > LONGEST or not _looks_like_json(file):
        file.seek(0)
        raise FileError(_otherwise(path, file.read(512), state[0]))
    text = file.read(length)
    if len(text) < length:
        raise _refused(path, f"it has {state[0]:,} bytes, its header alone needs {length + 8:,}: download it again")
    try:
        table: dict[str, Any] = json.loads(text)
        metadata = table.pop("__metadata__", {})
        entries = {name: _entry(path, name, row, length + 8) for name, row in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refused(path, f"its header is not understood ({type(error).__name__})") from None
    _whole(path, entries, length + 8, state[0])
    return Header(entries, {str(key): str(value) for key, value in metadata.items()}, state)


def _looks_like_json(file: BinaryIO) -> bool:
    place = file.tell()
    found = file.read(1)
    file.seek(place)
    return found in (b"{", b"")  # nothing: cut behind the length


def _entry(path: Path, name: str, row: dict[str, Any], start: int) -> Entry:
    if row["dtype"] not in DTYPES:
        raise FileError(f"{path}: {name} is stored as {row['dtype']}, which torch has not: expected one of {', '.join(DTYPES)}")
    dtype, shape, (begin, end) = DTYPES[row["dtype"]], tuple(map(int, row["shape"])), map(int, row["data_offsets"])
    if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise _refused(path, f"{name} of shape {shape} and dtype {row['dtype']} cannot have {end - begin:,} bytes")
    return Entry(dtype, shape, start + begin, start + end)


def _whole(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """The tensors fill the file without holes: nothing is missing, nothing is hidden."""
    place = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise _refused(path, f"{name} begins at byte {entry.begin:,}, expected {place:,}")
        place = entry.end
    if size < place:
        raise _refused(path, f"it has {size:,} bytes and should have {place:,}: download it again")
    if size > place:
        raise _refused(path, f"it has {size:,} bytes, {size - place:,} more than its header says")


def _otherwise(path: Path, start: bytes, size: int) -> str:
    """What the file is, by its first bytes."""
    if start.startswith(POINTER):
        return f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`"
    if start.startswith(PICKLES):
        out = path.with_suffix(".safetensors").name
        return f"{path} is a pickle, not a whole safetensors file: pickles can run code; run `unnoise convert {path} {out}` first"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"{path} is a web page, not a whole safetensors file: download the file itself again, logged in where its page asks for it"
    if start.lstrip().startswith((b"{", b"[")):
        return f"{path} is JSON, not a whole safetensors file: expected weights"
    if start.startswith(b"GGUF"):
        return f"{path} is a GGUF file, not a whole safetensors file: unnoise does not read quantised GGUF weights"
    return f"{path} is not a whole safetensors file: it has {size:,} bytes and begins with {start[:8]!r}"


def _refused(path: Path, reason: str) -> FileError:
    return FileError(f"{path} is not a whole safetensors file: {reason}")
