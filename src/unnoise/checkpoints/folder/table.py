"""How a config.json and a config of ours are told in one table, run in both directions.

A row is a Pair, one field under both names, or a Group, several fields that say the same only together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from unnoise.errors import FileError

Theirs = Mapping[str, Any]  # a config.json
Ours = TypeVar("Ours")
REQUIRED = object()


def _same(value: Any) -> Any:
    return value


class Pair(NamedTuple):
    """One field. default: their value where a config.json lacks it. optional: it is not written where ours is our config's default."""

    theirs: str
    ours: str
    default: Any = REQUIRED
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same
    optional: bool = False


class Group(NamedTuple):
    """Fields that say the same only together: our fields from theirs, and theirs from our config."""

    ours: tuple[str, ...]
    read: Callable[[Theirs], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Table(Generic[Ours]):
    """How one class of network describes itself."""

    name: str  # the class
    config: type[Ours]
    rows: tuple[Pair | Group, ...]
    constants: Theirs = field(default_factory=dict)  # written, the same for every network of ours
    plain: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # values that a field may have; the first one is the default
    what: str = "network"  # for messages
    library: str = "diffusers"

    def read(self, theirs: Theirs, hints: Theirs | None = None) -> Ours:
        """Our config; `hints` go before what theirs says. Raises FileError where the network computes something else than ours."""
        self._check(theirs)
        return self.config(**{**self.fields(theirs), **(hints or {})})

    def fields(self, theirs: Theirs, *names: str) -> dict[str, Any]:
        """Our fields, or those of these names alone."""
        found: dict[str, Any] = {}
        for row in self.rows:
            if names and not {*names} & {*([row.ours] if isinstance(row, Pair) else row.ours)}:
                continue
            if isinstance(row, Group):
                found |= row.read(theirs)
            else:
                found[row.ours] = row.read(theirs[row.theirs] if row.default is REQUIRED else theirs.get(row.theirs, row.default))
        return {name: value for name, value in found.items() if not names or name in names}

    def write(self, ours: Ours) -> dict[str, Any]:
        """What a config.json of this network holds, but for its class."""
        found: dict[str, Any] = {}
        for row in self.rows:
            if isinstance(row, Group):
                found |= row.write(ours)
            elif not (row.optional and getattr(ours, row.ours) == getattr(self.config, row.ours)):
                found[row.theirs] = row.write(getattr(ours, row.ours))
        return {**found, **self.constants}

    def _check(self, theirs: Theirs) -> None:
        for name, plain in self.plain.items():
            value = theirs.get(name, plain[0])
            values = value if isinstance(value, list | tuple) and value else [value]
            if odd := [one for one in values if one not in plain]:
                raise FileError(f"this {self.what} has {name} {odd[0]!r}, which no family here has: expected {plain[0]!r}")
