"""What a solver's keyword options may be, said by their types: a Literal lists its values, an Amount has a range."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from unnoise.errors import ArgumentError, UnknownName

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Range:
    """low <= value <= high."""

    low: float = -LARGEST
    high: float = LARGEST
    open: bool = False  # whether `low` itself is left out

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.low < value if self.open else self.low <= value) and value <= self.high  # NaN fails too

    def __str__(self) -> str:
        if self.low == -LARGEST:
            return "a finite number"
        if self.high >= LARGEST:
            return f"a number {'above' if self.open else 'of at least'} {self.low:g}"
        return f"a number from {self.low:g} to {self.high:g}"


Share = Annotated[float, Range(0.0, 1.0)]
Part = Annotated[float, Range(0.0, 1.0, open=True)]
Amount = Annotated[float, Range(0.0)]
Positive = Annotated[float, Range(0.0, open=True)]
Limit = Annotated[float, Range(0.0, math.inf)]
Count = Annotated[int, Range(0, 100)]


def of(function: Any, skip: int = 1) -> dict[str, Any]:
    """The keyword options of a function and their defaults; `skip`: parameters that are none."""
    return {parameter.name: parameter.default for parameter in list(inspect.signature(function).parameters.values())[skip:]}


def check(owner: str, function: Any, name: str, value: Any) -> None:
    """Raise UnknownName or ArgumentError for a value that this option of `function` cannot have."""
    kind = get_type_hints(function, include_extras=True)[name]
    what = f"got {name} {value!r} as option of {owner}"
    if get_origin(kind) is Literal:
        _check_literal(what, name, value, get_args(kind))
        return
    plain, allowed = get_args(kind) or (kind, Range())
    if value not in allowed or (plain is int and value != int(value)):
        raise ArgumentError(f"{what}: expected {'a whole number' + str(allowed).removeprefix('a number') if plain is int else allowed}")


def _check_literal(what: str, name: str, value: Any, allowed: tuple) -> None:
    if any(value == known and type(value) is type(known) for known in allowed):
        return
    if isinstance(allowed[0], str) and isinstance(value, str):
        raise UnknownName(name, value, allowed)
    raise ArgumentError(f"{what}: expected one of {', '.join(map(repr, allowed))}")
