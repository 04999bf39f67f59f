"""Adapters that were read before: a file that has not changed since then is not read again for the same networks.

An adapter holds mapped tensors and no weights of a model, so keeping it costs little. It is forgotten together with its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from unnoise.checkpoints.adapters import files
from unnoise.checkpoints.adapters.files import Adapter
from unnoise.checkpoints.store.weights import Weights

LATEST = 16  # adapters that are kept for each network

Key = tuple[object, ...]
_KEPT: WeakKeyDictionary[nn.Module, dict[Key, Adapter]] = WeakKeyDictionary()
_LOCK = Lock()


def read(path: str | Path, networks: Mapping[str, nn.Module], *, strict: bool = True) -> Adapter:
    """`files.read` of the file at `path`, or what it gave the last time. Raises FileError as it does."""
    beside = Path(path).with_name("adapter_config.json")  # PEFT's alphas
    key = (str(path), _stamp(Path(path)), _stamp(beside), strict, *networks)
    with _LOCK:
        kept = _KEPT.setdefault(networks["network"], {})
        found = kept.pop(key, None)
    if found is None:
        found = files.read(Weights.open(path), networks, strict=strict)
    with _LOCK:
        kept[key] = found  # behind the others: it is the latest
        for old in list(kept)[:-LATEST]:
            del kept[old]
    return found


def _stamp(path: Path) -> tuple[int, ...]:
    """Size, time and place of a file, which change when it is written anew; () where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev
