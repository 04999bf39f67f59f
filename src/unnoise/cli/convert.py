"""`unnoise convert`: a pickled checkpoint as safetensors, or a model in another layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unnoise.cli.console import notice, print_json
from unnoise.errors import ArgumentError


def convert(
    source: Annotated[str, typer.Argument(help="A pickled checkpoint: .ckpt, .pt, .pth, .bin; with --layout any model.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write, or with --layout diffusers the folder.")],
    key: Annotated[str | None, typer.Option("--key", help="Which entry of the file, as model or ema.  [default: decided and said]")] = None,
    layout: Annotated[str | None, typer.Option(help="diffusers, ldm (a single file) or dit: write the model in this form.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a pickled checkpoint safe: its tensors as safetensors, read by a process that runs nothing of it.

    With --layout a model is written as others read it; its tensors stay as they are stored.
    """
    if layout is not None:
        _rewrite(source, out, layout, key, as_json)
        return
    from unnoise.checkpoints.pickles import convert as pickled

    made = pickled.convert(source, out, key)
    if as_json:
        print_json({"out": str(out), **vars(made)})
        return
    if made.taken and made.others:
        notice(f"took {made.taken!r}; the file also has {', '.join(map(repr, made.others))} (--key)")
    if made.dropped:
        more = f" and {len(made.dropped) - 5} more" if len(made.dropped) > 5 else ""
        notice(f"dropped what is no tensor: {', '.join(made.dropped[:5])}{more}")
    print(f"{made.tensors:,} tensors, {made.bytes:,} bytes in {out}")


def _rewrite(source: str, out: Path, layout: str, key: str | None, as_json: bool) -> None:
    if key is not None:
        raise ArgumentError("--key is for a pickle and --layout for a model: convert the pickle first, then the file")
    from unnoise.pipeline import loading

    written = loading.rewrite(source, out, layout)
    if as_json:
        print_json({"out": str(out), "layout": written})
    else:
        print(f"{out} in the layout {written}")
