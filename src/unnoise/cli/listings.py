"""`unnoise samplers` and `unnoise models`: what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from unnoise.cli.console import print_json, print_table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def samplers(as_json: Json = False) -> None:
    """List the samplers: order, network evaluations a step, whether they add noise."""
    import unnoise

    known = unnoise.samplers()
    if as_json:
        return print_json({"samplers": [asdict(info) for info in known]})
    rows = [(i.name, i.order, i.evaluations, "yes" if i.stochastic else "no", i.summary) for i in known]
    print_table(("name", "order", "evaluations a step", "stochastic", "what it is"), rows)


def models(as_json: Json = False) -> None:
    """List the models that can be named."""
    import unnoise

    known = unnoise.models()
    if as_json:
        return print_json({"models": [asdict(info) for info in known]})
    rows = [(i.name, i.family, f"{i.parameters / 1e6:.1f} M", f"{i.bytes / 1e6:.1f} MB", i.summary) for i in known]
    print_table(("name", "family", "parameters", "file", "what it is"), rows)
