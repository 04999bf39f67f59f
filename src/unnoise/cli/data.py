"""`unnoise data`: the data sets that unnoise can make here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unnoise.cli.console import print_json


class DataSet(StrEnum):
    emoji = "emoji"


def data(
    name: Annotated[DataSet, typer.Argument(help="emoji: 1,918 pictures with English and Korean names.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.  [default: data/NAME]")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Take the packages as they are, also when they changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a data set as an image folder: pictures and metadata.jsonl."""
    from unnoise.data import emoji

    made = emoji.build(out or Path("data") / name.value, verify=not no_verify)
    if as_json:
        print_json({**vars(made), "folder": str(made.folder)})
    else:
        print(f"{made.pictures} pictures, {made.captions} captions in {made.folder} (checksum {made.checksum[:12]})")
