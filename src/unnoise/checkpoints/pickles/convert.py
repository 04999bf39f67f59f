"""Pickled checkpoints (.ckpt, .pt, .pth, .bin) made into safetensors, by a process of its own: `process.py`.

A pickle is a program, so nothing else in unnoise reads one. This side starts that process and passes on what it says; it needs no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from unnoise.errors import FileError


@dataclass(frozen=True)
class Converted:
    """What a conversion did. taken: the entry of the pickle, "" for all of it; others: those that --key could have taken."""

    taken: str
    others: list[str]
    tensors: int
    bytes: int
    dropped: list[str]


def convert(source: str | Path, out: str | Path, key: str | None = None) -> Converted:
    """Write the tensors of a pickle as safetensors. key: which entry of it; None decides by itself. Raises FileError with one line."""
    source, out = Path(source), Path(out)
    _usable(source, out)
    command = [sys.executable, "-m", "unnoise.checkpoints.pickles.process", str(source), str(out), *([key] if key is not None else [])]
    # PYTHONSAFEPATH: a torch.py that lies beside a downloaded file is not imported (Python 3.11 and later)
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"})
    try:
        answer = json.loads(ran.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise FileError(f"cannot convert {source}: the process that reads it {_ended(ran)}") from None
    if "error" in answer:
        raise FileError(answer["error"])
    return Converted(**answer)


def _usable(source: Path, out: Path) -> None:
    if not source.is_file():
        raise FileError(f"{source} is a folder, expected a file" if source.is_dir() else f"no file {source}: expected a pickled checkpoint")
    if out.suffix != ".safetensors":
        raise FileError(f"got the output {out}: expected a name that ends in .safetensors")
    if out.exists():
        raise FileError(f"{out} exists already: name another file or remove it")
    with source.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < source.stat().st_size:
        raise FileError(f"{source} is a safetensors file already: use it as it is")


def _ended(ran: subprocess.CompletedProcess[str]) -> str:
    if ran.returncode < 0:
        return f"was ended by {signal.Signals(-ran.returncode).name}: is there enough memory?"
    return f"failed: {(ran.stderr.strip().splitlines() or ['no word'])[-1]}"
