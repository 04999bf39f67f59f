"""The verbs, put together. One literal table; each verb has its own file, which is imported when the verb is used.

So `unnoise --help` reads no more than this table. A test compares its lines with the verbs' own help.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Name: module, function or group there, the first line of its help
VERBS = {
    "generate": ("unnoise.cli.generate", "generate", "Make pictures from text, a class or another picture."),
    "train": ("unnoise.cli.train", "train", "Train a model."),
    "bench": ("unnoise.cli.bench", "bench", "Measure what there is to choose from."),
    "compare": (
        "unnoise.cli.compare",
        "compare",
        "Compare the published models: parameters, multiply-adds, depth, tokens, latents, memory.",
    ),
    "convert": (
        "unnoise.cli.convert",
        "convert",
        "Make a pickled checkpoint safe: its tensors as safetensors, read by a process that runs nothing of it.",
    ),
    "inspect": (
        "unnoise.cli.inspect",
        "inspect",
        "Say what a file is without loading it: kind, family, parts, precision, process, and what would run it.",
    ),
    "data": ("unnoise.cli.data", "data", "Write a data set as an image folder: pictures and metadata.jsonl."),
    "samplers": ("unnoise.cli.listings", "samplers", "List the samplers: order, network evaluations a step, whether they add noise."),
    "models": ("unnoise.cli.listings", "models", "List the models that come with the package."),
}
HELP = {"help_option_names": ["-h", "--help"]}


def verb(name: str) -> Any:
    """Import a verb and return its command, or its group of commands."""
    module, function, _ = VERBS[name]
    found = getattr(import_module(module), function)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings=HELP)
    alone.command(name)(found)
    return typer.main.get_command(alone)


class Verbs(TyperGroup):
    """The group of all verbs, which imports the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return verb(cmd_name) if cmd_name in VERBS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in VERBS.items()])


app = typer.Typer(
    cls=Verbs,
    help="Pictures from text with diffusion models: make them, and see what made them.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)


@app.callback(invoke_without_command=True)
def start(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Pictures from text with diffusion models: make them, and see what made them."""
    if version:
        import unnoise

        print(unnoise.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
