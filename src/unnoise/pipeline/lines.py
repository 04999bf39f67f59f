"""A request from JSON: a line of a batch, or the record that a picture carries. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unnoise.errors import ArgumentError
from unnoise.pipeline.request import Request

# What a record says beside the fields of its request
MADE = ("model_hash", "version", "dtype", "device", "dropped_tokens", "decoded_in", "safety_checker", "adapters")
LOADED = ("model", "variant", "prediction", "parts", "embedding")  # what `load` was given, and words of textual inversion
OLDER = {"steps": "num_inference_steps"}  # names that pictures of version 0.1 carry


def request_of(record: Mapping[str, Any]) -> Request:
    """Read a record, or a line of a batch. Raises UnknownName or ArgumentError, one line each."""
    if not isinstance(record, Mapping):
        raise ArgumentError(f"got {record!r}: expected an object with the fields of a request")
    named = {OLDER.get(name, name): value for name, value in record.items() if name not in (*MADE, *LOADED)}
    return Request(**{name: from_json(name, value) for name, value in named.items()})


def from_json(name: str, value: Any) -> Any:
    """Return one field of JSON as a request takes it."""
    if name == "lora" and isinstance(value, list):
        return [tuple(item) if isinstance(item, list) else item for item in value]
    if name == "latents" and isinstance(value, Mapping):
        raise ArgumentError(f"the latents with sha256 {value.get('sha256')} were no file: give them again")
    return value
