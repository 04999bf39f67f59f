"""Rules from our parameters' names to the keys of a file, in both directions.

A layout is a table: our module's path -> theirs, and regular expressions on what follows the path. Where tensors differ, what stands
behind "#" in a key says how ours is made of theirs; all of it can be undone, so the table that reads a file also writes it:

    to_q.weight   ->  qkv.weight#q        the first third of the rows (k, v: the others)
    to_out.weight ->  proj_out.weight#1   a matrix that is a convolution there: so many axes of length 1 behind it
    a.weight      ->  b#T                 transposed
    a.weight      ->  b.weight#swap       the two halves of the rows exchanged
    qkv.weight    ->  q.weight+k.weight+v.weight   one behind the other

Every parameter must find its key and every key its parameter, or the file is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError, nearest

Shape = tuple[int, ...]
Networks = Mapping[str, nn.Module]  # by the places of `ModelSpec.networks`
# How the rows of a joint query-key-value matrix are ordered: as three matrices, or with what belongs to one head together.
Order = Literal["qkv head d", "head qkv d", "head d qkv"]


def config_of(network: nn.Module) -> Any:
    """The config that says what kind of network it is, also of one that torch.compile wraps; None where a network has none."""
    return getattr(network, "config", None)


class Source(NamedTuple):
    """Where one of our tensors stands in a file."""

    key: str
    piece: Literal["", "q", "k", "v", "T", "swap"] = ""
    ones: int = 0  # trailing axes of length 1 of a matrix there

    @property
    def keys(self) -> list[str]:
        """Of the tensors that ours is made of."""
        return self.key.split("+")


@dataclass(frozen=True)
class Layout:
    """How a file names a network's parameters."""

    modules: Mapping[str, str]  # our module's path: theirs; the longest that fits holds
    inside: Mapping[str, str] = field(default_factory=dict)  # regular expression on what follows the path: replacement, in this order
    order: Order = "qkv head d"
    heads: Callable[[int], int] | None = None  # width of an attention -> its heads, where the order asks for it
    ignored: str = r"(?!)"  # regular expression of keys that hold no weights: constants, schedules

    def source(self, name: str) -> Source:
        """Of one of our parameters. Raises KeyError where the table has no such module."""
        path = max((p for p in self.modules if p in ("", name) or name.startswith(p + ".")), key=len, default=None)
        if path is None:
            raise KeyError(name)
        rest = name[len(path) :] if path else "." + name
        for pattern, other in self.inside.items():
            rest = re.sub(pattern, other, rest)
        key, _, how = (self.modules[path] + rest).removeprefix(".").partition("#")
        ones = int(how[-1]) if how[-1:].isdigit() else 0
        return Source(key, how.rstrip("0123456789"), ones)  # pyright: ignore[reportArgumentType]


def read(layout: Layout, expected: Mapping[str, Shape], weights: Weights, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Our parameters, one after another, from a file that `check` has let pass. No copy where the file has the dtype and the order."""
    last: dict[str, Tensor] = {}  # three of ours may be of one there, and stand one behind another
    for name, shape in expected.items():
        source = layout.source(name)
        last = {key: last[key] if key in last else weights.read(key, dtype) for key in source.keys}
        tensor = last[source.key] if source.key in last else torch.cat(list(last.values()))
        yield name, _taken(tensor, source, layout).reshape(shape)


def write(layout: Layout, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file from our parameters: `read`, undone."""
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, tensor in parameters.items():
        key, piece, ones = layout.source(name)
        shaped = tensor.reshape(*tensor.shape, *[1] * ones) if tensor.ndim > 1 else tensor
        pieces.setdefault(key, {})[piece] = shaped
    joined = {key: _joined(parts, layout) for key, parts in pieces.items()}
    return {
        one: part
        for key, value in joined.items()
        for one, part in zip(key.split("+"), value.chunk(key.count("+") + 1) if "+" in key else [value], strict=True)
    }


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` in front of each key."""
    return {prefix + key: value for key, value in tensors.items()}


def check(layout: Layout, expected: Mapping[str, Shape], weights: Weights, what: str) -> None:
    """Refuse a file whose keys or shapes are not the network's. Raises FileError, which names the nearest keys."""
    sources = {name: layout.source(name) for name in expected}
    keys = {key for source in sources.values() for key in source.keys}
    missing = sorted(keys - weights.shapes.keys())
    unexpected = sorted(key for key in weights.shapes.keys() - keys if not re.search(layout.ignored, key))
    if missing or unexpected:
        raise FileError(f"{what} does not fit: {'; '.join(_counted(missing, unexpected, weights))}")
    for name, source in sources.items():
        shapes = [tuple(weights.shapes[key]) for key in source.keys]
        if sum(map(_size, shapes)) != _size(expected[name]) * (3 if source.piece in ("q", "k", "v") else 1):
            raise FileError(f"{what} does not fit: {source.key} has shape {shapes[0]}, expected that of {tuple(expected[name])}")


def count(pattern: str, names: Iterable[str]) -> int:
    """How many numbered things there are: one more than the largest number that the pattern's group finds, 0 where it finds none."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def _counted(missing: list[str], unexpected: list[str], weights: Weights) -> Iterator[str]:
    if missing:
        near = nearest(missing[0], unexpected or weights.shapes, n=1)
        hint = f" (nearest in the file: {near[0]})" if near else ""
        yield f"{len(missing)} keys are missing, such as {missing[0]}{hint}"
    if unexpected:
        yield f"{len(unexpected)} keys are unknown, such as {', '.join(unexpected[:2])}"


def _size(shape: Iterable[int]) -> int:
    return int(torch.Size(shape).numel())


def _taken(tensor: Tensor, source: Source, layout: Layout) -> Tensor:
    if source.piece == "T":
        return tensor.T
    if source.piece == "swap":
        return torch.cat(tensor.chunk(2)[::-1])
    if source.piece:
        return _third(tensor, "qkv".index(source.piece), layout)
    return tensor


def _third(rows: Tensor, i: int, layout: Layout) -> Tensor:
    if layout.order == "qkv head d":
        return rows.chunk(3)[i]
    heads = _heads(len(rows) // 3, layout)
    if layout.order == "head qkv d":
        return rows.unflatten(0, (heads, 3, -1))[:, i].flatten(0, 1)
    return rows.unflatten(0, (heads, -1, 3))[:, :, i].flatten(0, 1)


def _joined(parts: dict[str, Tensor], layout: Layout) -> Tensor:
    if "q" not in parts:
        (piece, tensor), *_ = parts.items()
        return tensor.flatten(1).T if piece == "T" else torch.cat(tensor.chunk(2)[::-1]) if piece == "swap" else tensor
    three = [parts[name] for name in "qkv"]
    if layout.order == "qkv head d":
        return torch.cat(three)
    heads = _heads(len(three[0]), layout)
    axis = 1 if layout.order == "head qkv d" else 2
    return torch.stack([part.unflatten(0, (heads, -1)) for part in three], dim=axis).flatten(0, 2)


def _heads(width: int, layout: Layout) -> int:
    if layout.heads is None:
        raise FileError(f"the rows of an attention of width {width} are ordered by head, and this layout does not say how many there are")
    return layout.heads(width)
