"""`unnoise train`: a model from a recipe; run it again to go on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unnoise.cli import interrupts
from unnoise.cli.console import notice, print_json, progress


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file such as recipes/emoji.toml.")],
    output_dir: Annotated[Path | None, typer.Option(help="Where the run lives.  [default: the recipe's]")] = None,
    max_train_steps: Annotated[int | None, typer.Option(help="The total, also of a resumed run.  [default: the recipe's]")] = None,
    publish: Annotated[Path | None, typer.Option(help="Write the averaged weights to this .safetensors file at the end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train a model. Ctrl-C saves after the step under way and stops, a second one stops at once; the same command goes on."""
    from unnoise.training import loop, report
    from unnoise.training import publish as publishing
    from unnoise.training.recipes import emoji, emoji_config

    if publish:
        publishing.check(publish)
    given = {"output_dir": output_dir, "max_train_steps": max_train_steps}
    config = emoji_config.load(recipe, {key: value for key, value in given.items() if value is not None})
    run = emoji.prepare(config)
    notice(f"{config.name}: step {run.taken} of {config.max_train_steps}, {config.output_dir}", quiet)
    written = report.Report(run, lambda: emoji.averaged(run))
    loss = None
    with progress(quiet) as show, interrupts.deferred() as stopped:
        for step in loop.train(run):
            written.add(step)
            loss = step.loss
            show(f"loss {loss:.4f}", step.step, step.steps)
            if stopped():
                _ = step.checkpoint or loop.save(run)
                raise KeyboardInterrupt
    if publish:
        publishing.publish(run, publish)
    summary = {"name": config.name, "steps": run.taken, "loss": loss, "folder": str(config.output_dir), "published": publish}
    if as_json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in summary.items()})
    elif not quiet:
        print(f"{run.taken} steps done; log, loss curve and samples are in {config.output_dir}")
