"""What a run leaves for people while it goes: log.csv, a loss curve and grids of samples."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unnoise.errors import MissingExtra
from unnoise.images.sheet import sheet
from unnoise.pipeline.model import Model
from unnoise.training.loop import Run, Step

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "seconds")


@dataclass
class Report:
    """Feed it every step; it writes every log_steps and sample_steps. `averaged` gives the model that draws the samples.

    A row of the log is the mean since the row before. After a resume the first one begins at the checkpoint: it has all its steps where
    checkpointing_steps is a multiple of log_steps and the run was not stopped between.
    """

    run: Run[Any]
    averaged: Callable[[], Model]
    _recent: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            import matplotlib
        except ImportError:
            raise MissingExtra("matplotlib", "train") from None
        matplotlib.use("Agg")
        self._forget_after(self.run.taken)

    @property
    def log(self) -> Path:
        return self.run.settings.output_dir / "log.csv"

    def add(self, step: Step) -> None:
        self._recent.append(step)
        last = step.step == step.steps
        if step.step % self.run.settings.log_steps == 0 or last:
            self._write_log()
            plot(self.log, self.log.with_name("loss.png"))
        if self.run.settings.sample_prompts and (step.step % self.run.settings.sample_steps == 0 or last):
            self._write_samples(step.step)

    def _write_log(self) -> None:
        """One row: the mean of the steps that were fed since the last one."""
        rows = [[getattr(step, name) for name in COLUMNS[1:]] for step in self._recent]
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        with self.log.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([] if file.tell() else [COLUMNS])
            writer.writerow([self._recent[-1].step, *(f"{value:.6g}" for value in means)])
        self._recent.clear()

    def _write_samples(self, step: int) -> None:
        prompts = list(self.run.settings.sample_prompts)
        model = self.averaged()
        pictures = model.to_pil(model.generate(prompts, seed=0).latents)
        folder = self.run.settings.output_dir / "samples"
        folder.mkdir(exist_ok=True)
        sheet(pictures, prompts).save(folder / f"step-{step:08d}.png")

    def _forget_after(self, step: int) -> None:
        """Drop rows that the steps to come will write again, and half a row: the run was stopped after its last checkpoint."""
        if not self.log.exists():
            return
        with self.log.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) <= step]
        partial = self.log.with_name("log.csv.partial")
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        os.replace(partial, self.log)


def plot(log: Path, picture: Path) -> None:
    """The loss against the step, both on logarithmic axes."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows])
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(picture, dpi=110)
