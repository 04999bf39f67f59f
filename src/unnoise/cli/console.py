"""What the verbs print. Results go to stdout; notices and progress go to stderr, so a program can read the one without the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def notice(text: str, quiet: bool = False) -> None:
    """A line for people, on stderr."""
    if not quiet:
        print(" ".join(text.split()), file=sys.stderr)


def print_json(value: object, indent: int | None = 2) -> None:
    """One JSON object and nothing else on stdout; ASCII where the stream's encoding could not hold a prompt. indent None: on one line."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=ascii_only, indent=indent), flush=indent is None)


def print_table(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """A table that fits the terminal, or in full width where stdout is a file or a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))  # Text: square brackets in a name are no markup
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A function `show(what, step, steps)` that moves one bar on stderr; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, step, steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda what, step, steps: bar.update(task, description=what, completed=step, total=steps)
