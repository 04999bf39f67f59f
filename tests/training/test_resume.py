"""A run that was stopped, at any moment and in any way, and goes on, is the run left alone, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cli.fake_library import environment
from training import tiny
from unnoise.checkpoints.store import write
from unnoise.errors import FileError
from unnoise.training import checkpoints, loop
from unnoise.training.loop import Run
from unnoise.training.recipes import emoji
from unnoise.training.recipes.draft import EmojiBatch
from unnoise.training.recipes.emoji_config import TrainConfig


def run_to(config, step: int) -> Run[EmojiBatch]:
    """Go on from wherever the run's folder stands; stop after this step, as a closed window would."""
    run = emoji.prepare(config)
    for done in loop.train(run):
        if done.step >= step:
            break
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder and the end of a run of twelve steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, tiny.everything(run_to(tiny.config(folder), 12))


@pytest.mark.parametrize("stops", [(7,), (5,), (3, 6, 11)], ids=str)
@pytest.mark.parametrize("network", ["unet", "dit", "drafts"])
def test_resumed_equals_left_alone(tmp_path, alone, stops, network):
    """Stopped between checkpoints, at one, before the first one, several times; with accumulation, dropout, repainting and decay.
    With drafts also while only the text encoder learns, when the optimiser knows nothing of the other weights."""
    drafts = {"draft": {"cells": 4, "batch_size": 8, "steps_alone": 7}}
    more = {"unet": {}, "dit": {"network": tiny.DIT}, "drafts": drafts}[network]
    expected = alone[1] if network == "unet" else tiny.everything(run_to(tiny.config(tmp_path / "alone", **more), 12))
    config = tiny.config(tmp_path, **more)
    for stop in stops:
        run_to(config, stop)
    resumed = emoji.prepare(config)
    assert resumed.taken == stops[-1] // 5 * 5
    list(loop.train(resumed))
    tiny.assert_equal(tiny.everything(resumed), expected)


def test_max_train_steps_is_a_total(tmp_path):
    run_to(tiny.config(tmp_path, max_train_steps=4), 4)
    longer = emoji.prepare(tiny.config(tmp_path, max_train_steps=7))
    assert [step.step for step in loop.train(longer)] == [5, 6, 7]
    assert list(loop.train(emoji.prepare(tiny.config(tmp_path, max_train_steps=7)))) == []


def test_what_ran_is_kept_beside_what_came_out(alone):
    kept = json.loads((alone[0] / "run" / "config.json").read_text())
    assert kept["learning_rate"] == 2e-3 and kept["text"]["vocab"] == 600 and kept["adam_beta2"] == 0.99  # defaults too


CHANGES = {  # a setting that decides what is learnt, and the refusal
    "learning_rate": (1e-3, "learning_rate was 0.002 and is 0.001"),
    "seed": (3, "seed was 0 and is 3"),
    "schedule": ({"shift": 2.0}, "schedule.shift was 1.0 and is 2.0"),
    "network": (tiny.DIT, "network.kind was 'unet' and is 'dit'"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_recipe_is_refused(tmp_path, alone, key):
    shutil.copytree(alone[0] / "run", tmp_path / "run")
    kept = (tmp_path / "run/config.json").read_bytes()
    changed, expected = CHANGES[key]
    same = tiny.config(alone[0]).model_copy(update={"output_dir": tmp_path / "run"})
    with pytest.raises(FileError) as refused:
        emoji.prepare(TrainConfig.model_validate({**same.model_dump(), key: changed}))
    assert str(refused.value) == f"{expected}: the recipe changed since this run began; give another --output-dir"
    assert (tmp_path / "run/config.json").read_bytes() == kept
    free = {"max_train_steps": 20, "log_steps": 1, "checkpointing_steps": 2, "summary": "x", "defaults": {"guidance_scale": 2.0}}
    assert emoji.prepare(TrainConfig.model_validate({**same.model_dump(), **free})).taken == 12


def test_another_network_is_refused_with_the_way_out(tmp_path):
    run_to(tiny.config(tmp_path), 5)
    (tmp_path / "run/config.json").unlink()  # it would tell first
    for more in ({"network": tiny.DIT}, {"network": {**tiny.UNET, "widths": (64,)}}):
        with pytest.raises(FileError, match=r"does not fit.*the recipe changed.*--output-dir") as refused:
            emoji.prepare(tiny.config(tmp_path, **more))
        assert "\n" not in str(refused.value)


# Broken at any point of the writing


def broken_at(monkeypatch, point: str) -> None:
    """Make the next checkpoint fail at this point, as a full disk (error 28) or an end of the process would."""
    saved = {"count": 0}
    original, replace = write.save_file, os.replace

    def save_file(tensors, path, metadata=None):
        saved["count"] += 1
        if point == f"before file {saved['count']}":
            raise OSError(28, "No space left on device")
        if point == f"half of file {saved['count']}":
            Path(path).write_bytes(b"\0" * 100)
            raise OSError(28, "No space left on device")
        original(tensors, path, metadata=metadata)
        if point == f"stopped after file {saved['count']}":
            raise KeyboardInterrupt

    def rename(source, target):
        if Path(target).name.startswith("step-") and point == "before the rename":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(write, "save_file", save_file)
    monkeypatch.setattr(os, "replace", rename)
    if point == "before the manifest":
        monkeypatch.setattr(checkpoints.json, "dump", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))


POINTS = [
    *(f"{what} file {number}" for what in ("before", "half of", "stopped after") for number in (1, 2, 3)),
    "before the manifest",
    "before the rename",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(tmp_path, alone, monkeypatch, point):
    config = tiny.config(tmp_path)
    run_to(config, 6)
    with monkeypatch.context() as patch:
        broken_at(patch, point)
        with pytest.raises((FileError, KeyboardInterrupt)) as failed:
            run_to(config, 10)
    if failed.type is FileError:
        assert "cannot write" in str(failed.value) and "No space left on device" in str(failed.value)
    assert names(tmp_path / "run/checkpoints") == ["step-00000005"]  # nothing half written takes room on the disk
    found = checkpoints.newest(tmp_path / "run/checkpoints")
    assert found is not None and found.name == "step-00000005"
    tiny.assert_equal(tiny.everything(run_to(config, 12)), alone[1])
    assert names(tmp_path / "run/checkpoints") == ["step-00000010", "step-00000012"]


def damage(path: Path, how: str) -> None:
    weights = path / "weights.safetensors"
    if how == "a flipped bit":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)
    elif how == "a missing file":
        (path / "ema.safetensors").unlink()
    elif how == "half a file":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    elif how == "half a manifest":
        (path / "manifest.json").write_text((path / "manifest.json").read_text()[:40])
    else:
        (path / "manifest.json").write_text("{}")


DAMAGES = ["a flipped bit", "a missing file", "half a file", "no manifest", "half a manifest", "an empty manifest"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, alone, how):
    shutil.copytree(alone[0], tmp_path, dirs_exist_ok=True)
    data = tiny.settings(alone[0])["data"]
    config, folder = tiny.config(tmp_path, data=data), tmp_path / "run/checkpoints"
    assert names(folder) == ["step-00000010", "step-00000012"]
    damage(folder / "step-00000012", how)
    found = checkpoints.newest(folder)
    assert found is not None and found.name == "step-00000010"
    again = emoji.prepare(config)
    assert again.taken == 10
    list(loop.train(again))
    tiny.assert_equal(tiny.everything(again), alone[1])
    whole = checkpoints.newest(folder)
    assert whole is not None and whole.name == "step-00000012"


@pytest.mark.parametrize("keep", [1, 2])
def test_deleting_old_checkpoints_never_deletes_the_only_good_one(tmp_path, keep):
    """A damaged checkpoint of a later step must not count among the ones that are kept."""
    run_to(tiny.config(tmp_path, checkpoints_total_limit=2), 10)
    folder = tmp_path / "run/checkpoints"
    damage(folder / "step-00000010", "a flipped bit")
    run_to(tiny.config(tmp_path, checkpoints_total_limit=keep, checkpointing_steps=7), 7)
    found = checkpoints.newest(folder)
    assert found is not None and found.name == "step-00000007"
    assert ("step-00000005" in names(folder)) == (keep == 2)


def test_only_the_newest_are_kept(tmp_path):
    run_to(tiny.config(tmp_path, checkpointing_steps=2, checkpoints_total_limit=3), 12)
    assert names(tmp_path / "run/checkpoints") == ["step-00000008", "step-00000010", "step-00000012"]


@pytest.mark.skipif(os.name == "nt", reason="a folder cannot be flushed there")
def test_names_are_on_the_disk_before_an_older_checkpoint_goes(tmp_path, monkeypatch):
    """In the order of a power failure's worst case: the files' names, the new name, its folder's, and only then the removal."""
    config = tiny.config(tmp_path, checkpoints_total_limit=1)
    run_to(config, 5)
    done: list[tuple[str, str]] = []
    opened, flush, rename, remove = os.open, os.fsync, os.replace, shutil.rmtree
    paths: dict[int, str] = {}

    def open_folder(path, *given, **more):
        number = opened(path, *given, **more)
        paths[number] = Path(path).name
        return number

    def note(what, call, name):
        return lambda *given, **more: (done.append((what, name(given))), call(*given, **more))[1]

    monkeypatch.setattr(os, "open", open_folder)
    monkeypatch.setattr(os, "fsync", note("flush", flush, lambda given: paths.get(given[0], "a file")))
    monkeypatch.setattr(os, "replace", note("rename", rename, lambda given: Path(given[1]).name))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", note("remove", remove, lambda given: Path(given[0]).name))
    run_to(config, 10)
    start = done.index(("rename", "weights.safetensors"))
    assert done[start + 1] == ("flush", "step-00000010.partial")
    end = done.index(("rename", "step-00000010"))
    assert ("flush", "step-00000010.partial") in done[end - 2 : end]
    assert done[end + 1 : end + 3] == [("flush", "checkpoints"), ("remove", "step-00000005")]


def test_an_empty_folder_holds_no_checkpoint(tmp_path):
    assert checkpoints.newest(tmp_path) is None and checkpoints.newest(tmp_path / "none") is None


# Killed, through the command

KILLS = {  # where the process kills itself, as code in front of the command
    "in the middle of a step": """
import torch
step, calls = torch.optim.AdamW.step, []
def killed(self, *given):
    calls.append(1)
    step(self, *given)
    len(calls) == 8 and os.kill(os.getpid(), signal.SIGKILL)
torch.optim.AdamW.step = killed
""",
    "while the second checkpoint is written": """
from unnoise.checkpoints.store import write
save, calls = write.save_file, []
def killed(tensors, path, metadata=None):
    calls.append(1)
    save(tensors, path, metadata=metadata)
    len(calls) == 5 and os.kill(os.getpid(), signal.SIGKILL)
write.save_file = killed
""",
    "before the first checkpoint has its name": """
rename = os.replace
def killed(source, target):
    str(target).endswith("step-00000005") and os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = killed
""",
}


def command(folder: Path, *more: str, first: str = "") -> list[str]:
    code = f"import os, signal\n{first}\nfrom unnoise.cli import main\nmain()"
    return [sys.executable, "-c", code, "train", str(folder / "recipe.toml"), *more]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL there")
@pytest.mark.parametrize("where", KILLS)
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, alone, where):
    """SIGKILL, then the same command again in a new process: weights, averages, optimiser and log are those of the run left alone."""
    tiny.recipe(tmp_path)
    options: dict = {"cwd": tmp_path, "env": environment(OMP_NUM_THREADS="1"), "capture_output": True, "text": True, "timeout": 300}
    killed = subprocess.run(command(tmp_path, first=KILLS[where]), **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = subprocess.run(command(tmp_path, "--json"), **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12
    end = emoji.prepare(tiny.config(tmp_path))
    assert end.taken == 12 and names(tmp_path / "run/checkpoints") == ["step-00000010", "step-00000012"]
    tiny.assert_equal(tiny.everything(end), alone[1])
    rows = [line.split(",")[0] for line in (tmp_path / "run/log.csv").read_text().splitlines()]
    assert rows == ["step", "4", "8", "12"]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_loses_no_step(tmp_path):
    """Far from the next checkpoint: the step under way is finished and kept. A second Ctrl-C, while it is written, leaves nothing half."""
    tiny.recipe(tmp_path, max_train_steps=100_000, checkpointing_steps=90_000, log_steps=1)
    options: dict = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(tmp_path), **options)
    wait_for(tmp_path / "run/log.csv", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[1:]) == (130, "", ["stopped"])
    taken = int((tmp_path / "run/log.csv").read_text().splitlines()[-1].split(",")[0])
    assert names(tmp_path / "run/checkpoints") == [f"step-{taken:08d}"]
    slow = "import time\nfrom unnoise.training import loop\nloop.save = lambda run: (print('saving', flush=True), time.sleep(60))"
    process = subprocess.Popen(command(tmp_path, first=slow), **options)
    assert process.stderr is not None and process.stdout is not None
    process.stderr.readline()  # where the run goes on
    while len((tmp_path / "run/log.csv").read_text().splitlines()) <= taken + 1:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "stopped\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_ends_with_one_line_and_a_good_state(tmp_path):
    tiny.recipe(tmp_path, max_train_steps=100_000)
    process = subprocess.Popen(
        command(tmp_path), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "run/checkpoints/step-00000010", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "stopped" and len(err.splitlines()) == 2  # where the run began, and this
    resumed = emoji.prepare(tiny.config(tmp_path, max_train_steps=100_000))
    assert resumed.taken >= 10 and next(loop.train(resumed)).step == resumed.taken
    assert [name for name in names(tmp_path / "run") if "partial" in name] == []
