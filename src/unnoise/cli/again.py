"""`unnoise generate --from`: the record that a picture carries, options over it, and why the pixels may differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unnoise.cli.older import OLD, modern
from unnoise.cli.options import OPTIONS
from unnoise.cli.requests import Record, left_out
from unnoise.errors import ArgumentError, FileError
from unnoise.pipeline.lines import MADE

WATCHED = ("model_hash", "version", "dtype", "device")  # what else decides the last bit of a pixel


def recorded(path: Path) -> tuple[Record, bool]:
    """Read the record of a picture, and whether it is of unnoise, which makes the same pixels again. Raises FileError."""
    from unnoise.images.files import read

    embedded = read(path)
    if embedded.exact:
        check(embedded.settings, path)
    return modern(embedded.settings), embedded.exact


def check(record: Record, source: Path) -> None:
    """Raise FileError for a record that is damaged."""
    for name in ("prompt", "model", "dtype", "device"):
        value = record.get(name, "" if name in ("dtype", "device") else None)
        if not isinstance(value, str):
            raise FileError(f"the settings in {str(source)!r} are damaged: its {name} is {value!r}, expected a text")
    for name in OLD:
        value = record.get(name, {})
        if not isinstance(value, dict):
            raise FileError(f"the settings in {str(source)!r} are damaged: its {name} are {value!r}, expected names and values")


def check_named(record: Record, source: str) -> None:
    """Refuse a record of a picture that was made from what had no file. Raises ArgumentError."""
    missing = [OPTIONS.get(name, name) for name, value in record.items() if not is_named(value)]
    if "adapters" in record and not {"lora", "embedding"} & record.keys():
        missing.append(OPTIONS["lora"])
    if missing:
        raise ArgumentError(f"{source} was made with what it does not name: give {', '.join(missing)} again")


def is_named(value: Any) -> bool:
    """Whether each picture in a field of a record has a path."""
    return all("path" in one for one in hashed(value))


def hashed(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the pictures and tensors in a field of a record: objects with a sha256."""
    if isinstance(value, Mapping) and "sha256" in value:
        yield value
    for inside in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from hashed(inside)


def notices(record: Record, typed: Record, source: Path) -> list[str]:
    """Return a line for each option that changes a record, and for each setting that it leaves out."""
    changed = {
        f"{OPTIONS[name]}: {shown(value)} instead of {shown(record[name])} in {str(source)!r}"
        for name, value in typed.items()
        if name in record and is_named(record[name]) and shown(record[name]) != shown(value)
    }
    left = {
        f"{OPTIONS[name]}: {shown(record[name])} in {str(source)!r} is left out" for name in left_out(record, typed) if name not in typed
    }
    return sorted(changed | left)


def shown(value: Any) -> str:
    """A value as a notice prints it; one prompt and a list of one are the same, and a picture is its path."""
    value = _paths(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return "random" if value is None else repr(value)


def _paths(value: Any) -> Any:
    """JSON with each picture's path in place of its path and hash."""
    if isinstance(value, Mapping):
        return value["path"] if "path" in value else {name: _paths(inside) for name, inside in value.items()}
    return [_paths(inside) for inside in value] if isinstance(value, list) else value


def differences(record: Record, made: Record) -> list[str]:
    """Return why the pixels may differ from those of the record: what was used then and now, where it is not the same."""
    pairs = [(name, record.get(name), made.get(name)) for name in WATCHED]
    fields = [name for name in record if name not in MADE]
    pairs += [(OPTIONS.get(name, name), hashes(record[name]), hashes(made.get(name))) for name in fields if hashes(record[name])]
    return [f"{name} was {old!r} and is {new!r}: the pixels may differ" for name, old, new in pairs if old is not None and old != new]


def hashes(value: Any) -> str:
    """The hashes in a field, with commas between."""
    return ",".join(str(one["sha256"]) for one in hashed(value))
