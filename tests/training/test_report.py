"""What a run leaves for people: the log, the curve, the samples; and that a resumed run repeats no row."""

from __future__ import annotations

import builtins
import csv

import pytest
from PIL import Image

from training import tiny
from unnoise.errors import MissingExtra
from unnoise.training import loop, report
from unnoise.training.recipes import emoji
from unnoise.training.report import COLUMNS, Report, plot


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> list[tuple]:
    """A curve takes half a second to draw; here the calls are kept."""
    calls: list[tuple] = []
    monkeypatch.setattr(report, "plot", lambda *files: calls.append(files))
    return calls


def reported(config, stop: int = 10**9) -> list[loop.Step]:
    run = emoji.prepare(config)
    written, steps = Report(run, lambda: emoji.averaged(run)), []
    for step in loop.train(run):
        written.add(step)
        steps.append(step)
        if step.step == stop:
            break
    return steps


def rows(config) -> list[dict[str, str]]:
    with (config.output_dir / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_has_the_means_between_its_rows(tmp_path, drawn):
    config = tiny.config(tmp_path, max_train_steps=10, log_steps=4)
    steps = reported(config)
    assert drawn == [(config.output_dir / "log.csv", config.output_dir / "loss.png")] * 3
    found = rows(config)
    assert tuple(found[0]) == COLUMNS and [row["step"] for row in found] == ["4", "8", "10"]
    for row, part in zip(found, (steps[:4], steps[4:8], steps[8:]), strict=True):
        for name in ("loss", "learning_rate", "grad_norm"):
            assert float(row[name]) == pytest.approx(sum(getattr(step, name) for step in part) / len(part), rel=1e-5)


def test_the_curve_and_the_samples(tmp_path, drawn):
    config = tiny.config(tmp_path, max_train_steps=5, sample_steps=2, sample_prompts=("red apple", "파란 자동차", "cat"))
    reported(config)
    plot(*drawn[-1])
    with Image.open(config.output_dir / "loss.png") as curve:
        assert curve.size == (770, 440) and len(curve.convert("L").getcolors()) > 10  # lines are drawn on it
    samples = sorted(path.name for path in (config.output_dir / "samples").iterdir())
    assert samples == ["step-00000002.png", "step-00000004.png", "step-00000005.png"]
    with Image.open(config.output_dir / "samples" / samples[0]) as sheet:
        assert sheet.width >= 3 * 16


def test_no_prompts_no_samples(tmp_path):
    config = tiny.config(tmp_path, max_train_steps=2, sample_steps=1)
    reported(config)
    assert not (config.output_dir / "samples").exists()


@pytest.mark.parametrize("stop", [7, 9, 10])
def test_a_resumed_run_has_the_rows_of_the_run_left_alone(tmp_path, stop):
    """Stopped at 7 it goes on from 5, at 9 from 5 with row 8 already written, at 10 from 10."""
    whole, config = tiny.config(tmp_path / "whole"), tiny.config(tmp_path)
    reported(whole)
    reported(config, stop)
    reported(config)
    assert [row["step"] for row in rows(config)] == [row["step"] for row in rows(whole)] == ["4", "8", "12"]
    assert rows(config)[0]["loss"] == rows(whole)[0]["loss"]


def test_the_first_row_after_a_resume_is_the_mean_since_the_checkpoint(tmp_path):
    """Where the run was stopped between two rows, the steps before the checkpoint are in no row; elsewhere none is lost."""
    reported(tiny.config(tmp_path), 7)
    steps = reported(tiny.config(tmp_path))
    assert [step.step for step in steps[:3]] == [6, 7, 8]
    assert float(rows(tiny.config(tmp_path))[1]["loss"]) == pytest.approx(sum(step.loss for step in steps[:3]) / 3, rel=1e-5)


@pytest.mark.parametrize(
    "left", ["", "step,loss,learning_rate,grad_norm,seconds\n", "step,loss,learning_rate,grad_norm,seconds\n1,2,3,4,5\n7"]
)
def test_a_log_that_a_kill_left_half_written(tmp_path, left):
    config = tiny.config(tmp_path, max_train_steps=4)
    reported(config, 3)
    config.output_dir.joinpath("log.csv").write_text(left)
    reported(config)
    assert [row["step"] for row in rows(config)] == ["4"]


def test_without_matplotlib_the_pip_line(tmp_path, monkeypatch):
    run, real = emoji.prepare(tiny.config(tmp_path)), builtins.__import__

    def without(name, *given, **more):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"needs matplotlib.*pip install 'unnoise\[train\]'"):
        Report(run, lambda: emoji.averaged(run))
