"""Recipes: every one in the repository parses, and every fault in one is one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import REPOSITORY
from training import tiny
from unnoise.errors import ArgumentError, FileError, UnnoiseError
from unnoise.training.recipes import emoji
from unnoise.training.recipes import emoji_config as config

RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_says_what_its_name_is(path):
    recipe = config.load(path)
    assert recipe.name == path.stem and recipe.summary
    assert recipe.data.size % recipe.network.multiple == 0


def test_there_are_recipes():
    assert "emoji.toml" in [path.name for path in RECIPES]


def test_a_recipe_round_trips(tmp_path):
    assert config.load(tiny.recipe(tmp_path)) == tiny.config(tmp_path)


def test_overrides_stand_above_the_recipe(tmp_path):
    read = config.load(tiny.recipe(tmp_path), {"max_train_steps": 3, "output_dir": "elsewhere"})
    assert (read.max_train_steps, read.output_dir, read.train_batch_size) == (3, Path("elsewhere"), 4)


def test_a_fault_of_an_override_is_not_the_recipe_s(tmp_path):
    with pytest.raises(ArgumentError, match=r"^got max_train_steps 0: "):
        config.load(tiny.recipe(tmp_path), {"max_train_steps": 0})


FAULTS = {  # what the recipe has that it should not, and what the line says
    "a misspelt key": ({"learning_rat": 1e-3}, "'learning_rat': did you mean 'learning_rate'"),
    "a misspelt key below": ({"data": {"sise": 16}}, "'data.sise': did you mean 'data.size'"),
    "a key far from any": ({"zzz": 1}, "'zzz'"),
    "a text for a number": ({"max_train_steps": "many"}, "max_train_steps: got 'many'"),
    "no steps": ({"max_train_steps": 0}, "max_train_steps: got 0"),
    "half a batch": ({"train_batch_size": 1.5}, "train_batch_size: got 1.5"),
    "a negative rate": ({"learning_rate": -1}, "learning_rate: got -1"),
    "a rate that is no number": ({"learning_rate": float("nan")}, "learning_rate: got nan"),
    "an average that never moves": ({"ema_decay": 1.0}, "ema_decay: got 1.0"),
    "dropout above one": ({"caption_dropout": 1.1}, "caption_dropout: got 1.1"),
    "an unknown prediction": ({"prediction": "epsilon"}, "prediction: got 'epsilon'"),
    "an unknown schedule": ({"schedule": {"kind": "vpp"}}, "schedule.kind: got 'vpp'"),
    "an unknown precision": ({"mixed_precision": "fp8"}, "mixed_precision: got 'fp8'"),
    "an unknown network": ({"network": {"kind": "mlp"}}, "network.kind: got 'mlp'"),
    "a table that is no table": ({"network": 3}, "network: got 3"),
    "a size that does not halve": (
        {"data": {"size": 18}, "network": {"widths": [32, 32], "depths": [0, 0]}},
        "data.size 18: expected a multiple of 8",
    ),
    "heads that do not divide": ({"text": {"width": 30, "heads": 4}}, "text.width 30: expected a multiple of text.heads 4"),
    "heads of a transformer": ({"network": {"kind": "dit", "width": 30}}, "network.width 30: expected a multiple of network.heads 4"),
    "noise alone says nothing": ({"prediction": "eps"}, "'eps' says nothing of the picture in pure noise"),
    "the same by another schedule": (
        {"prediction": "eps", "schedule": {"kind": "vp", "zero_terminal_snr": True}},
        "'eps' says nothing of the picture in pure noise",
    ),
    "a draft that nothing reads": ({"draft": {"cells": 4}, "network": {"kind": "dit"}}, "a draft is given to a U-Net"),
    "a draft alone that is none": ({"draft": {"steps_alone": 5}}, "draft.steps_alone 5: there is no draft to train"),
    "a draft alone to the end": ({"max_train_steps": 9, "draft": {"cells": 4, "steps_alone": 9}}, "expected fewer than max_train_steps 9"),
    "a shift of another process": ({"schedule": {"kind": "vp", "shift": 3.0}}, "shift 3.0 does nothing for kind 'vp'"),
    "betas of another process": ({"schedule": {"betas": "cosine"}}, "betas 'cosine' does nothing for kind 'flow'"),
    "zero terminal snr of a flow": ({"schedule": {"zero_terminal_snr": True}}, "zero_terminal_snr True does nothing for kind 'flow'"),
    "a process that cannot be trained": ({"schedule": {"kind": "edm"}}, "schedule.kind 'edm' wants EDM's own prediction"),
    "no room for a word": ({"text": {"length": 2}}, "text.length: got 2"),
    "a transformer without places": ({"network": {"kind": "dit", "width": 30, "heads": 3}}, "network.width 30: expected a multiple of 4"),
    "a misspelt sampler": (
        {"defaults": {"sampler": "eular"}},
        "defaults.sampler: got 'eular': unknown sampler 'eular': did you mean 'euler'",
    ),
    "a misspelt spacing": ({"defaults": {"spacing": "karas"}}, "unknown spacing 'karas': did you mean 'karras'"),
    "an interval upside down": (
        {"defaults": {"guidance_interval": [0.8, 0.2]}},
        "defaults.guidance_interval: got [0.8, 0.2]: expected two",
    ),
    "guidance that is no number": ({"defaults": {"guidance_scale": float("nan")}}, "defaults.guidance_scale: got nan"),
    "more steps than there are": ({"defaults": {"num_inference_steps": 1001}}, "defaults.num_inference_steps: got 1001"),
    "no name": ({"name": None}, "name"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_line_with_the_file_and_the_key(tmp_path, case):
    more, expected = FAULTS[case]
    path = tmp_path / "recipe.toml"
    rows = [f"{key} = {tiny.toml(value)}" for key, value in more.items() if not isinstance(value, dict) and value is not None]
    tables = [
        f"[{key}]\n" + "\n".join(f"{k} = {tiny.toml(v)}" for k, v in value.items())
        for key, value in more.items()
        if isinstance(value, dict)
    ]
    named = [] if "name" in more else ['name = "x"']
    path.write_text("\n".join([*named, 'output_dir = "run"', *rows, *tables]).replace("NaN", "nan"))
    with pytest.raises(ArgumentError) as refused:
        config.load(path)
    message = str(refused.value)
    assert expected in message and "recipe.toml" in message and "\n" not in message and len(message) < 800


@pytest.mark.parametrize("content, expected", [(b"name = ", "is not TOML"), (b"\xff", "is not TOML"), (None, "no recipe at")])
def test_a_file_that_is_no_recipe(tmp_path, content, expected):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=expected) as refused:
        config.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "more, expected",
    [
        ({"network": {**tiny.UNET, "widths": (40,)}}, "widths"),
        ({"network": {**tiny.UNET, "depths": (0, 1)}}, "2 depths for 1 widths"),
        ({"device": "cudda"}, "did you mean 'cuda'"),
        ({"data": {"source": "nowhere", "size": 16}}, "no pictures in nowhere"),
    ],
)
def test_what_only_the_parts_can_tell(tmp_path, more, expected):
    with pytest.raises(UnnoiseError, match=expected) as refused:
        emoji.prepare(tiny.config(tmp_path, **more))
    assert "\n" not in str(refused.value)
