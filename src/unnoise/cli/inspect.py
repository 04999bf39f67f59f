"""`unnoise inspect`: what a file is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from unnoise.cli.console import print_json, print_table
from unnoise.cli.listings import text

LAST = ("evidence", "run")  # said under the table


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file of weights, a folder, a hub id, or a model's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a file is without loading it: kind, family, parts, precision, process, and what would run it."""
    import unnoise

    record = unnoise.inspect(file)
    if as_json:
        print_json(record)
        return
    rows = [(name.replace("_", " "), value) for name, value in lines(record)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    if parts := record.get("parts"):
        print()
        columns = list(dict.fromkeys(key for row in parts.values() for key in row))
        print_table(["part", *columns], [[place, *(shown(row.get(key, "")) for key in columns)] for place, row in parts.items()])
    print()
    for line in [*record.get("evidence", []), *([f"run: {record['run']}"] if "run" in record else [])]:
        print(line)


def lines(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything but the parts and what is said under them; metadata one by one."""
    for name, value in record.items():
        if name == "metadata":
            yield from ((f"metadata {key}", str(one)) for key, one in value.items())
        elif name not in ("parts", *LAST):
            yield name, shown(value)


def shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else text(value)
