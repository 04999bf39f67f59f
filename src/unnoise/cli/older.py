"""Records of pictures that version 0.1 made: "steps", files in "given" as they were typed, and hashes in "inputs"."""

from __future__ import annotations

from unnoise.cli.requests import Record, from_text

OLD = ("given", "inputs")


def modern(record: Record) -> Record:
    """Return a record by today's names; one of today as it is.

    The hashes of version 0.1 are those of pictures resized for the model, so they are not compared with today's.
    """
    kept = {"num_inference_steps" if name == "steps" else name: value for name, value in record.items() if name not in OLD}
    named = {name: from_text(name, value) for name, value in record.get("given", {}).items()}
    hashes = {name: value for name, value in record.get("inputs", {}).items() if name not in named}
    unnamed = {name: value if name == "adapters" else {"sha256": str(value)} for name, value in hashes.items()}
    return {**kept, **unnamed, **named}
