"""The emoji recipe on the source "emoji-scenes": it trains, goes on as if it had not been stopped, and answers prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from training import tiny
from unnoise.training import loop
from unnoise.training.loop import Run
from unnoise.training.recipes import emoji, emoji_config
from unnoise.training.recipes.emoji_config import TrainConfig

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def config(folder: Path, excluded: Path) -> TrainConfig:
    return tiny.config(
        folder,
        output_dir=str(folder / "run"),
        max_train_steps=4,
        checkpointing_steps=2,
        data={"source": "emoji-scenes", "size": 16, "excluded": [str(excluded)]},
        network={**tiny.UNET, "depths": (1,), "tokens": True},
        text={"vocab": 600, "length": 12, "width": 16, "layers": 1, "heads": 2},
        draft={"cells": 4, "batch_size": 4, "steps_alone": 1},
    )


@pytest.mark.slow
def test_a_stopped_run_equals_one_left_alone(tmp_path):
    excluded = tmp_path / "prompts.tsv"
    excluded.write_text("prompt\ntwo apples\n")
    runs: list[Run[Any]] = []
    for name, stop in (("stopped", 2), ("whole", 4)):
        folder = tmp_path / name
        folder.mkdir()
        for done in loop.train(emoji.prepare(config(folder, excluded))):
            if done.step == stop:
                break
        runs.append(emoji.prepare(config(folder, excluded)))
    assert [run.taken for run in runs] == [2, 4]
    for _ in loop.train(runs[0]):
        pass
    tiny.assert_equal(*map(tiny.everything, runs))
    model = emoji.averaged(runs[0])
    assert torch.isfinite(model.generate("a cat and a dog", seed=0, num_inference_steps=2).latents).all()


def test_the_recipe_is_read_and_keeps_its_size():
    recipe = emoji_config.load(RECIPES / "emoji2.toml")
    assert recipe.data.source == "emoji-scenes" and recipe.network.tokens
    assert [path.name for path in recipe.data.excluded] == ["free.en.tsv", "free.ko.tsv", "scenes.tsv"]
    assert all((RECIPES.parent / path).is_file() for path in recipe.data.excluded)
