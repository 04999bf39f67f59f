"""A model of our own in one .safetensors file: the weights, and in the header its spec and its tokenizer as JSON.

The file is mapped, not copied: reading it costs its pages, and tensors that are stored in the wanted dtype are used where they lie.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import tokenizers
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unnoise.checkpoints.specs import ModelSpec
from unnoise.errors import FileError
from unnoise.networks.tokenizers import Tokenizer

FORMAT = "unnoise-1"


def save(path: Path, spec: ModelSpec, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> None:
    """Write the file whole or not at all."""
    header = {"format": FORMAT, "spec": spec.model_dump_json(), "tokenizer": tokenizer.pieces.to_str()}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: value.contiguous() for name, value in weights.items()}, partial, metadata=header)
        os.replace(partial, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, dtype: torch.dtype | None, device: torch.device) -> tuple[ModelSpec, Tokenizer, nn.ModuleDict]:
    """The spec, the tokenizer and the networks in eval mode; dtype None keeps the stored one. Raises FileError with one line."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            spec, tokenizer = _header(path, file.metadata() or {})
            weights = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118: not a dict
    except FileNotFoundError:
        raise FileError(f"no file {path}: expected a model that unnoise saved") from None
    except SafetensorError as error:
        raise FileError(f"{path} is not a whole safetensors file: {error}") from None
    return spec, tokenizer, _networks(path, spec, weights)


def read_spec(path: Path) -> ModelSpec:
    """The spec alone, from the file's header."""
    with safe_open(path, "pt") as file:
        return _header(path, file.metadata() or {})[0]


def file_hash(path: Path) -> str:
    """The first ten hexadecimal digits of the file's sha256: what pictures are marked with."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def _header(path: Path, metadata: dict[str, str]) -> tuple[ModelSpec, Tokenizer]:
    if metadata.get("format") != FORMAT:
        raise FileError(f"{path}: expected a model that unnoise saved (format {FORMAT}), got format {metadata.get('format')}")
    try:
        spec = ModelSpec.model_validate_json(metadata["spec"])
    except ValidationError as error:
        raise FileError(f"{path}: its description is not understood: {error.errors()[0]['msg']}") from None
    return spec, Tokenizer(tokenizers.Tokenizer.from_str(metadata["tokenizer"]), spec.text.length)


def _networks(path: Path, spec: ModelSpec, weights: dict[str, Tensor]) -> nn.ModuleDict:
    """Modules around the file's own tensors: built empty, then given them."""
    networks = spec.build("meta")
    missing = dict(networks.named_parameters()).keys() - weights.keys()
    unexpected = weights.keys() - dict(networks.named_parameters()).keys()
    if missing or unexpected:
        raise FileError(
            f"{path}: {len(missing)} weights are missing {sorted(missing)[:2]}, {len(unexpected)} unknown {sorted(unexpected)[:2]}"
        )
    for name, value in weights.items():
        owner, _, leaf = name.rpartition(".")
        expected = networks.get_parameter(name).shape
        if value.shape != expected:
            raise FileError(f"{path}: {name} has shape {tuple(value.shape)}, expected {tuple(expected)}")
        setattr(networks.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return networks.eval()
