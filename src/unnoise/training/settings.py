"""The settings that every training run has, whatever it trains, and what of them may change while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from unnoise.errors import FileError
from unnoise.families.spec import Strict

FREE = {  # what may change while a run goes on: how long, where, how it is shown and kept, what is said of the result
    "max_train_steps",
    "output_dir",
    "log_steps",
    "sample_steps",
    "sample_prompts",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "device",
    "defaults",
    "summary",
    "compile",
}


class LoopSettings(Strict):
    """How long a run is, how it steps and what it keeps. A recipe's settings are these and its own; this class is not used by itself.

    `max_train_steps` is the absolute total: a resumed run stops there too.
    """

    output_dir: Path
    seed: int = 0
    max_train_steps: PositiveInt = 1000
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: float = Field(default=5e-4, gt=0)
    lr_warmup_steps: int = Field(default=500, ge=0)
    lr_end: float = Field(default=0.0, ge=0)  # the cosine ends here, as a share of learning_rate
    weight_decay: float = Field(default=0.01, ge=0)
    adam_beta2: float = Field(default=0.99, gt=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    checkpointing_steps: PositiveInt = 500
    checkpoints_total_limit: PositiveInt = 2
    log_steps: PositiveInt = 50
    sample_steps: PositiveInt = 1000
    sample_prompts: tuple[str, ...] = ()

    @property
    def checkpoint_folder(self) -> Path:
        return self.output_dir / "checkpoints"


class FinetuneSettings(LoopSettings):
    """The settings of a run whose trainee, objective and batches are written in Python: the loop's, and no others."""


def keep(settings: LoopSettings) -> None:
    """Write what runs beside what comes out, as config.json."""
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    (settings.output_dir / "config.json").write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")


def check_unchanged(settings: LoopSettings) -> None:
    """Raise FileError for other settings than the run in this folder began with.

    Those in FREE may change. A key that only one version of unnoise knows says nothing.
    """
    try:
        was = _flat(json.loads((settings.output_dir / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):  # missing or half written; the next one is whole
        return
    for key, value in _flat(json.loads(settings.model_dump_json())).items():
        if key.partition(".")[0] not in FREE and was.get(key, value) != value:
            raise FileError(f"{key} was {was[key]!r} and is {value!r}: the recipe changed since this run began; give another --output-dir")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys in dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
