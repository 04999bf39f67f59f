"""`unnoise compare`: the published models side by side, counted from their networks."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from unnoise.cli import outputs
from unnoise.cli.console import print_json, print_table, progress
from unnoise.errors import ArgumentError

ENDINGS = {".md": "markdown", ".json": "json", ".png": "png"}


class Format(StrEnum):
    table = "table"
    markdown = "markdown"
    json = "json"
    png = "png"


def compare(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Models such as sd1 or dit-xl-2.  [default: all]")] = None,
    family: Annotated[str | None, typer.Option(help="ddpm, adm, ldm, sd, sdxl, sd3, dit, edm ...")] = None,
    columns: Annotated[str | None, typer.Option(metavar="NAME,...", help="Which, and in which order; all: every one.")] = None,
    format: Annotated[Format | None, typer.Option(help="[default: by the ending of --out, or a table]")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file: .md, .json or .png.")] = None,
) -> None:
    """Compare the published models: parameters, multiply-adds, depth, tokens, latents, memory.

    Every number is counted on the network itself, built without weights; the papers' own stand in the columns paper_*.
    """
    kind = format_of(format, out)
    from unnoise.evaluation import compare as models

    wanted = pick(columns, models)
    rows = count(choose(names, family, models), models)
    if out is None:
        tell(kind, rows, wanted, models)
    else:
        write(kind, rows, wanted, out, models)


def format_of(format: Format | None, out: Path | None) -> str:
    """What to make; refused before any work where it cannot be."""
    kind = format.value if format else ENDINGS.get(out.suffix.lower(), "") if out else "table"
    if out and kind == "table":
        raise ArgumentError("--format table is for the terminal: leave out --out, or give --format markdown")
    if out and not kind:
        raise ArgumentError(f"--out {str(out)!r}: got the ending {out.suffix!r}, expected {', '.join(ENDINGS)}; or give --format")
    if kind == "png":
        if out is None:
            raise ArgumentError("--format png makes a file: name it with --out")
        from unnoise.evaluation import plots

        plots.require()
    if out:
        outputs.check(out.with_suffix(".png"), 1)  # whether its folder can be written
    return kind


def pick(columns: str | None, models: Any) -> list[str]:
    wanted = models.COLUMNS if columns == "all" else columns.split(",") if columns else models.USUAL
    models.check(wanted)
    return list(wanted)


def choose(names: list[str] | None, family: str | None, models: Any) -> list[str]:
    if names and family:
        raise ArgumentError(f"got names and --family {family}: give one of the two")
    for name in names or ():
        models.published(name)
    return names or (models.of_family(family) if family else list(models.PUBLISHED))


def count(names: list[str], models: Any) -> list[Any]:
    """The rows, with a bar: all of them take some seconds."""
    rows = []
    with progress(quiet=False) as show:
        for name in names:
            show(name, len(rows), len(names))
            rows += models.table([name])
    return rows


def tell(kind: str, rows: list[Any], columns: list[str], models: Any) -> None:
    if kind == "json":
        print_json({"models": models.as_json(rows, columns)})
    elif kind == "markdown":
        print(models.markdown(rows, columns), end="")
    else:
        from rich.table import Column

        heads, *lines = models.cells(rows, columns)
        sides: list[Any] = ["right" if models.is_number(column) else "left" for column in columns]
        print_table([Column(head, justify=side) for head, side in zip(heads, sides, strict=True)], lines)


def write(kind: str, rows: list[Any], columns: list[str], out: Path, models: Any) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "png":
        models.picture(rows, out, columns)
    elif kind == "json":
        out.write_text(json.dumps({"models": models.as_json(rows, columns)}, indent=1) + "\n", encoding="utf-8")
    else:
        out.write_text(models.markdown(rows, columns), encoding="utf-8")
    print(out)
