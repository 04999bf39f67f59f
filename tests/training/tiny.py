"""A run small enough for a test: eight pictures of 16x16, networks of a few thousand weights. Also a program, for runs that are killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unnoise.training.loop import Run
from unnoise.training.recipes.emoji_config import TrainConfig

NAMES = ("red apple", "blue car", "green tree", "yellow sun", "black cat", "white cup", "purple hat", "brown bear")
KOREAN = ("빨간 사과", "파란 자동차", "초록색 나무", "노란 해", "검은 고양이", "하얀 컵", "보라색 모자", "갈색 곰")
UNET = {"kind": "unet", "patch": 2, "widths": (32,), "depths": (0,), "blocks": 1, "heads": 1}
DIT = {"kind": "dit", "patch": 4, "width": 32, "depth": 2, "heads": 2}


def pictures(folder: Path) -> Path:
    """Eight discs in eight colours, named in two languages."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (en, ko) in enumerate(zip(NAMES, KOREAN, strict=True)):
        y, x = np.mgrid[:16, :16]
        inside = (x - 8) ** 2 + (y - 8) ** 2 < (3 + index % 4) ** 2
        colour = [(index * 53 + shift) % 256 for shift in (20, 110, 200)]
        Image.fromarray(np.dstack([np.where(inside, c, 0) for c in (*colour, 255)]).astype(np.uint8)).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "captions": {"en": [en], "ko": [ko]}}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """A recipe: everything that matters is switched on (accumulation, clipping, dropout, repainting, EMA, decay)."""
    given = {
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "max_train_steps": 12,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-3,
        "lr_warmup_steps": 3,
        "max_grad_norm": 0.5,
        "ema_decay": 0.9,
        "caption_dropout": 0.25,
        "checkpointing_steps": 5,
        "log_steps": 4,
        "device": "cpu",
        "data": {"source": str(folder / "pictures"), "size": 16, "repaint": 0.3},
        "network": UNET,
        "text": {"vocab": 600, "length": 8, "width": 16, "layers": 1, "heads": 2},
        "defaults": {"num_inference_steps": 2},
    }
    if not (folder / "pictures").exists():
        pictures(folder / "pictures")
    return {**given, **more}


def config(folder: Path, **more: Any) -> TrainConfig:
    return TrainConfig.model_validate(settings(folder, **more))


def recipe(folder: Path, **more: Any) -> Path:
    """The settings as TOML; JSON's numbers, texts and lists are TOML's too."""
    given = settings(folder, **more)
    tables = {key: value for key, value in given.items() if isinstance(value, dict)}
    lines = [f"{key} = {toml(value)}" for key, value in given.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def everything(run: Run[Any]) -> dict[str, Tensor]:
    """All that a step reads or changes, copied: weights, averages, moments, step counts."""
    found = {f"weight {name}": p.detach().clone() for name, p in run.trainee.parameters.items()}
    found |= {f"average {name}": value.clone() for name, value in run.ema.weights.items()}
    for name, p in run.trainee.parameters.items():
        found |= {f"{key} {name}": value.clone() for key, value in run.optimizer.state[p].items()}
    return found


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert one.keys() == other.keys() and len(one) > 50
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} differ, such as {different[:3]}"
