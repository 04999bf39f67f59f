"""The model that a request is for: what `load` is given, and words of textual inversion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unnoise.cli.requests import Record
from unnoise.errors import ArgumentError

if TYPE_CHECKING:
    from unnoise.pipeline.model import Model


@dataclass(frozen=True)
class Source:
    """Where a model comes from. Equal sources give equal models, so a batch loads each once."""

    model: str
    dtype: str = "auto"
    device: str = "auto"
    variant: str | None = None
    prediction: str | None = None
    parts: tuple[tuple[str, str | None], ...] = ()  # place and file; None leaves the network out
    embedding: tuple[tuple[str, str | None], ...] = ()  # file and word; None is the file's own

    def load(self) -> Model:
        """Load the model. Raises UnknownName, ArgumentError or FileError."""
        import unnoise

        model = unnoise.load(
            self.model,
            dtype=self.dtype,
            device=self.device,
            variant=self.variant,
            prediction=self.prediction,
            parts=dict(self.parts) or None,  # pyright: ignore[reportArgumentType]  (None leaves a network out)
        )
        for file, word in self.embedding:
            model = model.with_embedding(file, word)
        return model

    def record(self) -> Record:
        """Return what a picture's record says of it: names and files as they were typed."""
        named = {"variant": self.variant, "prediction": self.prediction, "parts": dict(self.parts)}
        named["embedding"] = [list(pair) for pair in self.embedding]
        return {"model": self.model, **{name: value for name, value in named.items() if value}}


def source(record: Record, dtype: str | None = None, device: str | None = None) -> Source:
    """Read a record's model.

    Precision and device are as typed, else as recorded (every machine has a CPU, not every one that GPU), else automatic.
    Raises ArgumentError.
    """
    recorded = "cpu" if record.get("device") == "cpu" else "auto"
    return Source(
        model=_text(record, "model") or "emoji",
        dtype=dtype or _text(record, "dtype") or "auto",
        device=device or recorded,
        variant=_text(record, "variant"),
        prediction=_text(record, "prediction"),
        parts=tuple(_parts(record.get("parts") or {})),
        embedding=tuple(_words(record.get("embedding") or [])),
    )


def _text(record: Record, name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise ArgumentError(f"got {name} {value!r}: expected a text")
    return value


def _parts(value: Any) -> Iterator[tuple[str, str | None]]:
    if not isinstance(value, Mapping) or not all(file is None or isinstance(file, str) for file in value.values()):
        raise ArgumentError(f"got parts {value!r}: expected files by place, such as {{'autoencoder': 'vae.safetensors'}}")
    yield from value.items()


def _words(value: Any) -> Iterator[tuple[str, str | None]]:
    """A file, or [FILE, WORD], or a list of either."""
    for item in value if isinstance(value, list) else [value]:
        match item:
            case str(file) | [str(file)] | [str(file), None]:
                yield file, None
            case [str(file), str(word)]:
                yield file, word
            case _:
                raise ArgumentError(f"got embedding {item!r}: expected a file, or a file and its word")
