"""The process that reads a pickled checkpoint, by weights_only, and writes its tensors as safetensors. Nothing else imports this.

A pickle is a program. torch's weights_only reader runs a small part of it: tensors, containers, numbers. What else it names is
refused, but for what trainers leave beside the weights, callbacks and settings: their names stand for an empty placeholder (`INERT`), which
runs nothing and is dropped.

    {"state_dict": {...}} {"model": ..., "ema": ...}   CompVis, DiT: one is taken and said, the averaged weights first
    [model, optimizer, epoch, step, ema]               ermongroup/ddim
    {"model": ..., "ema": {"shadow_params": [...]}}    score_sde: the average is a list in the order of the parameters
    [up, down, up, down, ...]                          cloneofsimo's LoRA: numbered as in its safetensors form
    {"string_to_param": {"*": tensor}, "name": ...}    textual inversion of the web UI
    module.a.weight                                    DataParallel's prefix goes
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unnoise.checkpoints.adapters import keys
from unnoise.checkpoints.pickles.convert import Converted
from unnoise.checkpoints.store import header, write
from unnoise.errors import FileError, UnknownName

# Averaged weights first: they are what the authors sample with.
WRAPPERS = (
    "ema",
    "model_ema",
    "ema_state_dict",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "module",
)
INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\.|argparse\.Namespace$|numpy\.(_?core\.multiarray\.scalar|dtype)$"
)
CODE = re.compile(rb"torch_utils\.persistence|dnnlib")  # NVIDIA's pickles of EDM and StyleGAN


class Placeholder:
    """Stands for an object that a pickle describes: takes whatever it is given and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Placeholder:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def load(path: Path) -> Any:
    """What the file holds. Raises FileError."""
    with path.open("rb") as file:
        start = file.read(4096)
    zipped = zipfile.is_zipfile(path)
    if start.startswith(b"PK") and not zipped:
        raise FileError(
            f"{path} is cut: it begins as a checkpoint of PyTorch and has no end at {path.stat().st_size:,} bytes: download it again"
        )
    if not start.startswith((b"PK", b"\x80")):
        header.read(path)  # says what it is
    try:
        stubs = [name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if INERT.match(name)] if zipped else []
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_placeholder(name), name) for name in stubs]):
            warnings.simplefilter("ignore")  # torch's word on other protocols, which it then reads or refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        raise FileError(_refusal(path, start, str(error))) from None
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise FileError(f"{path} is not a whole checkpoint of PyTorch ({' '.join(str(error).split())[:120]}): download it again") from None


def chosen(found: Any, key: str | None = None) -> tuple[str, Any, list[str]]:
    """Which entry holds the weights: its name ("" for all), what it holds, and the other entries with tensors. Raises UnknownName."""
    if isinstance(found, list | tuple):
        found = _listed(found)
    if not isinstance(found, Mapping):
        return "", found, []
    if "string_to_param" in found:
        return "string_to_param", {"emb_params": next(iter(found["string_to_param"].values()))}, []
    entries = [
        str(name) for name, value in found.items() if isinstance(value, Mapping | list | tuple) and any(True for _ in tensors(value))
    ]
    taken = key if key is not None else next((name for name in WRAPPERS if name in entries), "")
    if key is not None and key not in entries:
        raise UnknownName("entry", key, entries, expected="an entry of the file that holds tensors")
    value = found[taken] if taken else found
    if isinstance(value, Mapping) and "shadow_params" in value:
        value = named(value["shadow_params"], found.get("model", {}))
    return taken, value, [name for name in entries if taken and name != taken]


def tensors(found: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with the path that leads to it, `a.b.0`."""
    if isinstance(found, Tensor):
        yield prefix or "tensor", found
    for name, value in _children(found):
        yield from tensors(value, f"{prefix}.{name}" if prefix else str(name))


def others(found: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all that is no tensor."""
    children = list(_children(found))
    if not children and not isinstance(found, Tensor | Mapping | list | tuple):
        yield prefix or type(found).__name__
    for name, value in children:
        yield from others(value, f"{prefix}.{name}" if prefix else str(name))


def named(shadow: Sequence[Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An average without names, given those of the model: both are in the order of the parameters; buffers have no average."""
    rest = list(shadow)
    result = {name: rest.pop(0) if rest and rest[0].shape == value.shape else value for name, value in model.items()}
    if rest:
        raise FileError(f"the average has {len(shadow)} tensors that do not follow the model's {len(model)}: use --key model")
    return result


def _children(found: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(found, Mapping):
        yield from found.items()
    elif isinstance(found, list | tuple):
        yield from enumerate(found)


def _numbered(found: Any, name: str) -> Any:
    """cloneofsimo's list of tensors alone, with keys; which network it is for stands in the file's name only."""
    if not isinstance(found, list) or not found or not all(isinstance(one, Tensor) for one in found):
        return found
    return keys.from_list(found, "text_encoder" if "text_encoder" in name else "unet")


def _listed(found: Sequence[Any]) -> dict[str, Any]:
    """ermongroup/ddim's list by name: the model first, the average last where there is one."""
    names = {0: "model", 1: "optimizer", **({len(found) - 1: "ema"} if len(found) > 4 else {})}
    return {names.get(i, str(i)): value for i, value in enumerate(found)}


def _placeholder(name: str) -> type:
    return type(name.rpartition(".")[2], (Placeholder,), {})


def _refusal(path: Path, start: bytes, message: str) -> str:
    """One line for what torch says in twenty."""
    found = re.search(r"GLOBAL `?([\w.]+)`?", message)
    if CODE.search(found[1].encode() if found else start):
        return (
            f"{path} is a pickle of code, as NVIDIA's EDM and StyleGAN are: it carries Python source that runs when it is read; with the "
            "authors' own code, save `net.state_dict()` by torch.save and convert that"
        )
    if found:
        return f"{path} asks to run {found[1]}, which weights never need: refused, it may be malicious"
    return f"{path} is a pickle that torch.save did not write: refused; save the weights by torch.save or as safetensors"


def convert(source: Path, out: Path, key: str | None = None) -> Converted:
    """The whole conversion. Raises FileError and UnknownName."""
    taken, value, rest = chosen(_numbered(load(source), source.name), key)
    found = dict(tensors(value))
    if not found:
        raise FileError(f"{source} holds no tensors")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    write.tensors(out, _apart(found), {"format": "pt", "source": source.name, "entry": taken})
    size = sum(tensor.nbytes for tensor in found.values())
    return Converted(taken, rest, len(found), size, list(others(value)))


def _apart(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory, each with its own: the format holds no views."""
    seen: set[int] = set()
    result = {}
    for name, tensor in found.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.detach().clone() if place in seen else tensor.detach().to_dense()
        seen.add(place)
    return result


def _main(source: str, out: str, key: str | None = None) -> None:
    try:
        answer = asdict(convert(Path(source), Path(out), key))
    except (FileError, UnknownName) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
