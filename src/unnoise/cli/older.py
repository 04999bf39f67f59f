"""Records of pictures that version 0.1 made: "steps", files in "given" as they were typed, and hashes in "inputs"."""

from __future__ import annotations

from typing import Any

from unnoise.cli.requests import Record, from_text
from unnoise.errors import ArgumentError

OLD = ("given", "inputs")


def modern(record: Record) -> Record:
    """Return a record by today's names; one of today as it is. Raises ArgumentError where its files are no texts.

    The hashes of version 0.1 are those of pictures resized for the model, so they are not compared with today's.
    """
    given, inputs = (check(name, record.get(name, {})) for name in OLD)
    kept = {"num_inference_steps" if name == "steps" else name: value for name, value in record.items() if name not in OLD}
    named = {name: from_text(name, check_texts(name, value)) for name, value in given.items()}
    hashes = {name: value for name, value in inputs.items() if name not in named}
    unnamed = {name: value if name == "adapters" else {"sha256": str(value)} for name, value in hashes.items()}
    return {**kept, **unnamed, **named}


def check(name: str, value: Any) -> Record:
    """Return "given" or "inputs" of a record. Raises ArgumentError for anything but names and values."""
    if not isinstance(value, dict):
        raise ArgumentError(f"got {name} {value!r} in a record of version 0.1: expected names and values")
    return value


def check_texts(name: str, value: Any) -> str | list[str]:
    """Return an option's text, or its texts. Raises ArgumentError for anything else."""
    if not all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])):
        raise ArgumentError(f"got {name} {value!r} in a record of version 0.1: expected a text, or several")
    return value
