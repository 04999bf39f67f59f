"""`unnoise samplers` and `unnoise models`: what there is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from unnoise.cli.console import print_json, print_table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SAMPLER = {"name": "name", "order": "order", "evaluations": "evaluations a step", "stochastic": "stochastic", "summary": "what it is"}
MODEL = {"name": "name", "family": "family", "parameters": "parameters", "bytes": "bytes", "summary": "what it is"}


def samplers(as_json: Json = False) -> None:
    """List the samplers: order, network evaluations a step, whether they add noise."""
    import unnoise

    show("samplers", unnoise.samplers(), SAMPLER, as_json)


def models(as_json: Json = False) -> None:
    """List the models that come with the package."""
    import unnoise

    show("models", unnoise.models(), MODEL, as_json)


def show(name: str, known: list[Any], columns: dict[str, str], as_json: bool) -> None:
    """One entry a line, or one JSON object; `columns` is the attribute and its heading."""
    rows = [[getattr(info, attribute) for attribute in columns] for info in known]
    if as_json:
        print_json({name: [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        print_table(list(columns.values()), [[text(value) for value in row] for row in rows])


def text(value: object) -> str:
    """For people: yes and no, thousands apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
