"""The verbs, put together. One literal table; each verb has its own file."""

from __future__ import annotations

from typing import Annotated

import typer

from unnoise.cli.bench import bench
from unnoise.cli.compare import compare
from unnoise.cli.convert import convert
from unnoise.cli.data import data
from unnoise.cli.generate import generate
from unnoise.cli.inspect import inspect
from unnoise.cli.listings import models, samplers
from unnoise.cli.train import train

VERBS = {
    "generate": generate,
    "train": train,
    "bench": bench,
    "compare": compare,
    "convert": convert,
    "inspect": inspect,
    "data": data,
    "samplers": samplers,
    "models": models,
}

app = typer.Typer(
    help="Pictures from text with diffusion models: make them, and see what made them.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, verb in VERBS.items():
    if isinstance(verb, typer.Typer):  # a group of verbs
        app.add_typer(verb, name=name)
    else:
        app.command(name)(verb)


@app.callback(invoke_without_command=True)
def start(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Pictures from text with diffusion models: make them, and see what made them."""
    if version:
        import unnoise

        print(unnoise.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
