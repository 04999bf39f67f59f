"""A model of our own in one .safetensors file: the weights, and in the header its spec and its tokenizer as JSON.

The file is mapped, not copied: reading it costs its pages, and tensors that are stored in the wanted dtype are used where they lie.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import tokenizers
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from unnoise.checkpoints.store import write
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.tokenizers import Tokenizer

FORMAT = "unnoise-2"
FORMATS = ("unnoise-1", FORMAT)  # those that are read; the first has one field for each kind of network, see `FIELDS`


def save(path: Path, spec: ModelSpec, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> None:
    """Write the file whole or not at all."""
    header = {"format": FORMAT, "spec": spec.model_dump_json(), "tokenizer": tokenizer.pieces.to_str()}
    write.tensors(path, weights, header)


def load(path: Path, dtype: torch.dtype, device: torch.device) -> tuple[ModelSpec, Tokenizer, nn.ModuleDict]:
    """The spec, the tokenizer and the networks in eval mode. Raises FileError with one line."""
    with write.opened(path, str(device)) as file:
        spec, tokenizer = _header(path, file.metadata() or {})
        weights = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # the keys of a file, which is no dict
    return spec, tokenizer, _networks(path, spec, weights)


def read_spec(path: Path) -> ModelSpec:
    """The spec alone, from the file's header."""
    with write.opened(path) as file:
        return _header(path, file.metadata() or {})[0]


def file_hash(path: Path) -> str:
    """The first ten hexadecimal digits of the file's sha256: what pictures are marked with. Read once, unless the file changes."""
    about = path.stat()
    return _hashed(path, about.st_size, about.st_mtime_ns)


@lru_cache
def _hashed(path: Path, _size: int, _changed: int) -> str:
    return write.sha256(path)[:10]


def _header(path: Path, metadata: dict[str, str]) -> tuple[ModelSpec, Tokenizer]:
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


def _networks(path: Path, spec: ModelSpec, weights: dict[str, Tensor]) -> nn.ModuleDict:
    """Modules around the file's own tensors: built empty, then given them."""
    networks = spec.build("meta")
    expected = {name: p.shape for name, p in networks.named_parameters()}
    write.match(path, {name: value.shape for name, value in weights.items()}, expected)
    for name, value in weights.items():
        owner, _, leaf = name.rpartition(".")
        setattr(networks.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return networks.eval()
