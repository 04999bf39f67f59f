"""`unnoise convert`: a pickled checkpoint as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unnoise.cli.console import notice, print_json


def convert(
    source: Annotated[Path, typer.Argument(help="A pickled checkpoint: .ckpt, .pt, .pth, .bin.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    key: Annotated[str | None, typer.Option("--key", help="Which entry of the file, as model or ema.  [default: decided and said]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a pickled checkpoint safe: its tensors as safetensors, read by a process that runs nothing of it."""
    from unnoise.checkpoints import pickles

    made = pickles.convert(source, out, key)
    if as_json:
        print_json({"out": str(out), **vars(made)})
        return
    if made.taken and made.others:
        notice(f"took {made.taken!r}; the file also has {', '.join(map(repr, made.others))} (--key)")
    if made.dropped:
        more = f" and {len(made.dropped) - 5} more" if len(made.dropped) > 5 else ""
        notice(f"dropped what is no tensor: {', '.join(made.dropped[:5])}{more}")
    print(f"{made.tensors:,} tensors, {made.bytes:,} bytes in {out}")
