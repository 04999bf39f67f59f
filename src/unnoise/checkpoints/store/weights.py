"""Weights as files hold them: names, shapes and dtypes from the header, tensors when they are asked for.

A tensor in the stored dtype is the file's own pages, mapped privately: no copy, no pass, and a write never reaches the file. In another
dtype it is read piece by piece through a small buffer, so that the stored bytes never stay in the process's memory.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from unnoise.checkpoints.store import header
from unnoise.checkpoints.store.header import Entry
from unnoise.errors import FileError, NonFiniteError, nearest

PIECE = 2**15  # numbers cast at once: they stay in the core's cache, and torch takes no more of them for one thread (its grain size)
LARGE = 2**20  # numbers from which threads share a cast: most of its time is the system's, finding fresh pages
MOST = 8  # threads, of as many as torch uses


@dataclass(frozen=True)
class Stored:
    """One file of tensors, open for reading."""

    path: Path
    header: header.Header

    @cached_property
    def mapping(self) -> mmap.mmap:
        with self.opened() as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def opened(self) -> BinaryIO:
        """The file again. Raises FileError if it is no longer the one whose header was read."""
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror}") from None
        if header.stamp(file) != self.header.stamp:
            file.close()
            raise FileError(f"{self.path} was replaced while it was read: load it again")
        return file

    def mapped(self, entry: Entry) -> Tensor:
        count = math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.begin % entry.dtype.itemsize:  # a header of odd length; torch wants aligned numbers
            return self.cast(entry, entry.dtype)
        return torch.frombuffer(self.mapping, dtype=entry.dtype, count=count, offset=entry.begin).view(entry.shape)

    def cast(self, entry: Entry, dtype: torch.dtype) -> Tensor:
        result = torch.empty(math.prod(entry.shape), dtype=dtype)
        if len(result) < LARGE:
            self._fill(result, entry.begin, entry.dtype)
            return result.view(entry.shape)
        parts = result.chunk(min(torch.get_num_threads(), MOST))
        begins = [entry.begin + i * len(parts[0]) * entry.dtype.itemsize for i in range(len(parts))]
        with ThreadPoolExecutor(len(parts)) as threads:
            list(threads.map(lambda part, begin: self._fill(part, begin, entry.dtype), parts, begins))
        return result.view(entry.shape)

    def pieces(self, begin: int, count: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """`count` numbers from byte `begin` in turn, all in one small buffer: use a piece before you ask for the next."""
        scratch = bytearray(min(PIECE, max(count, 1)) * dtype.itemsize)
        buffer, view = torch.frombuffer(scratch, dtype=dtype), memoryview(scratch)
        with self.opened() as file:
            file.seek(begin)
            for start in range(0, max(count, 1), PIECE):  # of nothing one empty piece, as torch.split
                length = min(PIECE, count - start)
                wanted = view[: length * dtype.itemsize]
                if file.readinto(wanted) != len(wanted):  # type: ignore[attr-defined]
                    raise FileError(f"{self.path} was cut while it was read: download it again")
                yield buffer[:length]

    def _fill(self, result: Tensor, begin: int, dtype: torch.dtype) -> None:
        for piece, stored in zip(result.split(PIECE), self.pieces(begin, len(result), dtype), strict=True):
            piece.copy_(stored)


@dataclass(frozen=True)
class Weights:
    """Named tensors of one or several files, or of a dict; read-only. Iterates over the names.

    shapes, dtypes, bytes and metadata come from the headers alone: no tensor is touched.
    """

    path: Path | str  # where they are from, for messages
    metadata: dict[str, str]
    places: Mapping[str, tuple[Stored, Entry] | Tensor]

    @classmethod
    def open(cls, source: str | Path | Mapping[str, Tensor]) -> Weights:
        """A .safetensors file, a sharded model's .safetensors.index.json, or tensors. Raises FileError with one line."""
        if isinstance(source, Mapping):
            return cls("a dict of tensors", {}, dict(source))
        path = Path(source)
        if path.suffix == ".json":
            return _sharded(path)
        stored = Stored(path, header.read(path))
        return cls(path, stored.header.metadata, {name: (stored, entry) for name, entry in stored.header.entries.items()})

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(_described(place).shape) for name, place in self.places.items()}

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: _described(place).dtype for name, place in self.places.items()}

    @property
    def bytes(self) -> int:
        return sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items())

    @property
    def some(self) -> str:
        """What there is, for a refusal."""
        return f"{len(self)} tensors" + (f" such as {', '.join(sorted(self)[:3])}" if len(self) else "")

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor. dtype: what floating-point numbers become; None as stored; integers stay. Raises FileError for an unknown name."""
        if name not in self.places:
            near = nearest(name, self.places)
            raise FileError(f"{self.path} has no tensor {name!r}" + (f": did you mean {' or '.join(map(repr, near))}?" if near else ""))
        place = self.places[name]
        stored = _described(place).dtype
        wanted = dtype if dtype is not None and stored.is_floating_point else stored
        if isinstance(place, Tensor):
            return place.detach().to(wanted)
        file, entry = place
        return file.mapped(entry) if wanted == stored else file.cast(entry, wanted)

    def check_finite(self) -> None:
        """One pass over everything, without keeping it. Raises NonFiniteError with the first tensor that holds a NaN or an infinity."""
        for name, place in self.places.items():
            if not all(finite(piece) for piece in _pieces(place)):
                raise NonFiniteError(f"{self.path}: {name} holds NaN or infinity: the file is damaged or was saved from a broken training")

    def prefixed(self, prefix: str) -> Weights:
        """Those whose names begin with `prefix`, without it."""
        return replace(self, places={name[len(prefix) :]: place for name, place in self.places.items() if name.startswith(prefix)})

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places


def finite(tensor: Tensor) -> bool:
    """Whether every number is one. A pass over the tensor: on demand, never while loading."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor if tensor.dtype.itemsize > 1 else tensor.float()).isfinite().all())  # torch tests no 8-bit numbers


def _pieces(place: tuple[Stored, Entry] | Tensor) -> Iterator[Tensor]:
    if isinstance(place, Tensor):
        return iter([place])
    file, entry = place
    return file.pieces(entry.begin, math.prod(entry.shape), entry.dtype)


def _described(place: tuple[Stored, Entry] | Tensor) -> Entry | Tensor:
    return place if isinstance(place, Tensor) else place[1]


def _sharded(path: Path) -> Weights:
    """An index {"weight_map": {name: file}} and the files beside it, each of which must have what the index promises."""
    owners = _index(path)
    files = sorted(set(owners.values()))
    absent = [name for name in files if not (path.parent / name).is_file()]
    if absent:
        raise FileError(f"{path}: {len(absent)} of its {len(files)} files are missing, {absent[0]} first: download them again")
    shards = {name: Stored(path.parent / name, header.read(path.parent / name)) for name in files}
    for name, file in owners.items():
        if name not in shards[file].header.entries:
            raise FileError(f"{path}: {file} lacks {name}, which the index promises: the files are of different models")
    metadata = {key: value for shard in shards.values() for key, value in shard.header.metadata.items()}
    return Weights(path, metadata, {name: (shards[file], shards[file].header.entries[name]) for name, file in owners.items()})


def _index(path: Path) -> dict[str, str]:
    try:
        owners = json.loads(path.read_bytes())["weight_map"]
        plain = all(isinstance(file, str) and file and Path(file).name == file for file in owners.values())
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f'{path} is not an index of safetensors files: expected {{"weight_map": {{name: file}}}}') from None
    if not plain:  # a path would lead out of the model's folder
        raise FileError(f"{path}: its weight_map names something else than files beside it")
    return owners
