"""unnoise's own format: one .safetensors file of all weights, behind the names of their places, with spec and tokenizer in its header.

It is one format among the others: `recognise` answers as every layout does, and `Part.load` reads the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import tokenizers
from pydantic import ValidationError
from torch import Tensor

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.store import header
from unnoise.checkpoints.store.weights import Weights
from unnoise.checkpoints.store.write import match, sha256, tensors
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.tokenizers import Tokenizer

FORMAT = "unnoise-2"
SAVED = "saved by unnoise"  # how the family of such a file is known
FORMATS = ("unnoise-1", FORMAT)  # those that are read; the first has one field for each kind of network, see `FIELDS`


def save(path: Path, spec: ModelSpec, tokenizer: Tokenizer, weights: Mapping[str, Tensor]) -> None:
    """Write the file whole or not at all."""
    described = {"format": FORMAT, "spec": spec.model_dump_json(), "tokenizer": tokenizer.pieces.to_str()}
    tensors(path, dict(weights), described)


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """Recognises a file that unnoise saved, by its header; None for other files.

    Raises FileError for a header or weights that do not fit.
    """
    if not weights.metadata.get("format", "").startswith(FORMAT.partition("-")[0]):
        return None
    spec, tokenizer = _header(weights.path, weights.metadata)
    expected = {name: value.shape for name, value in spec.build("meta").named_parameters()}
    match(Path(weights.path), weights.shapes, expected)
    parts = {place: Part(config, Layout({"": ""}), weights.prefixed(f"{place}.")) for place, config in spec.networks.items()}
    return Found(spec, parts, (SAVED,), {"text_encoder": tokenizer}, complete=True)


def read_spec(path: Path) -> ModelSpec:
    """Reads the spec alone, from the file's header. Raises FileError."""
    return _header(path, header.read(path).metadata)[0]


def file_hash(path: Path) -> str:
    """The first ten hexadecimal digits of the file's sha256: what pictures are marked with. Read once, unless the file changes."""
    about = path.stat()
    return _hashed(path, about.st_size, about.st_mtime_ns)


@lru_cache
def _hashed(path: Path, _size: int, _changed: int) -> str:
    return sha256(path)[:10]


def _header(path: Path | str, metadata: dict[str, str]) -> tuple[ModelSpec, Tokenizer]:
    if metadata.get("format") not in FORMATS:
        raise FileError(f"{path}: expected a model that unnoise saved (format {FORMAT}), got format {metadata.get('format')}")
    try:
        spec = ModelSpec.model_validate_json(upgraded(metadata.get("spec", "")))
    except ValidationError as error:
        first = error.errors()[0]
        raise FileError(f"{path}: its description is not understood: {'.'.join(map(str, first['loc']))} {first['msg']}") from None
    try:
        pieces = tokenizers.Tokenizer.from_str(metadata.get("tokenizer", ""))
    except Exception as error:  # the library raises the bare class
        raise FileError(f"{path}: its tokenizer is not understood: {error}") from None
    text = spec.networks.get("text_encoder")
    if not isinstance(text, CLIPTextConfig):
        raise FileError(f"{path}: its description has no text encoder, which every model of this format has")
    return spec, Tokenizer(pieces, text.length)


# The fields of a network's config in format unnoise-1, each with its place and kind
FIELDS = {
    "unet": ("network", "unet"),
    "dit": ("network", "dit"),
    "mmdit": ("network", "mmdit"),
    "ncsnpp": ("network", "ncsnpp"),
    "autoencoder": ("autoencoder", "autoencoder"),
    "vq": ("autoencoder", "vq"),
    "tiny": ("autoencoder", "tiny"),
    "text": ("text_encoder", "clip"),
    "text_2": ("text_encoder_2", "clip"),
    "text_3": ("text_encoder_3", "t5"),
    "bert": ("text_encoder", "bert"),
    "class_tokens": ("text_encoder", "class_tokens"),
}


def upgraded(text: str) -> str:
    """The JSON of a spec of either format as one of today's; text that is neither is left as it is, for pydantic to refuse."""
    try:
        spec = json.loads(text)
    except ValueError:
        return text
    if not isinstance(spec, dict) or "networks" in spec:
        return text
    old = {name: spec.pop(name) for name in FIELDS if name in spec}
    networks = {place: {"kind": kind, **old[name]} for name, (place, kind) in FIELDS.items() if isinstance(old.get(name), dict)}
    return json.dumps({**spec, "networks": networks})
