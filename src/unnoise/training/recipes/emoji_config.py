"""The settings of a run of the emoji recipe: a TOML file, checked, unknown keys refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.families.spec import Defaults, ScheduleSpec, Strict
from unnoise.training.settings import LoopSettings


class DataSettings(Strict):
    source: str = "emoji"  # "emoji", "emoji-scenes", or a folder that `unnoise.data.pictures.read` takes
    size: PositiveInt = 64
    repaint: float = Field(default=0.0, ge=0, le=1)  # share of pictures painted another colour, with its word
    excluded: tuple[Path, ...] = ()  # emoji-scenes: tables whose first column holds captions that are never drawn


class NetworkSettings(Strict):
    """The backbone: U-Net sizes, or `kind = "dit"` with a width, a depth and patches."""

    kind: Literal["unet", "dit"] = "unet"
    patch: PositiveInt = 4
    heads: PositiveInt = 4
    widths: tuple[PositiveInt, ...] = (128, 192, 256)  # unet: channels a level
    depths: tuple[NonNegativeInt, ...] = (0, 1, 1)  # unet: attention a level
    blocks: PositiveInt = 2  # unet: residual blocks a level
    tokens: bool = False  # unet: attention is to the text's tokens too
    width: PositiveInt = 384  # dit
    depth: PositiveInt = 6  # dit

    @property
    def multiple(self) -> int:
        """What a side must divide by: the patches, and a U-Net's halvings."""
        return self.patch * (2 ** (len(self.widths) - 1) if self.kind == "unet" else 1)


class TextSettings(Strict):
    vocab: PositiveInt = 3072
    length: int = Field(default=16, ge=3)  # tokens: a start, an end, and at least one between
    width: PositiveInt = 256
    layers: PositiveInt = 2
    heads: PositiveInt = 4


class DraftSettings(Strict):
    """A small picture predicted from the text alone, given to a U-Net beside the noise; see networks/drafts.py."""

    cells: int = Field(default=0, ge=0)  # its side; 0: no draft
    batch_size: PositiveInt = 128  # captions a step while it is trained alone; afterwards it learns from the run's own batches
    weight: float = Field(default=1.0, gt=0)  # of its squared error beside the loss
    steps_alone: int = Field(default=0, ge=0)  # first steps in which nothing else is trained


class LossSettings(Strict):
    space: Literal["eps", "x0", "v", "flow"] | None = None
    floor: float = Field(default=0.05, gt=0)
    min_snr: float | None = Field(default=None, gt=0)
    time: Literal["uniform", "logit_normal"] = "uniform"
    time_mean: float = 0.0
    time_std: float = Field(default=1.0, gt=0)


class TrainConfig(LoopSettings):
    """One run: a text-to-image model in pixels with its text encoder, both from the start."""

    name: str
    summary: str = ""
    train_batch_size: PositiveInt = 64
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    device: str = "auto"
    prediction: Literal["eps", "x0", "v", "flow"] = "x0"
    schedule: ScheduleSpec = ScheduleSpec()
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    text: TextSettings = TextSettings()
    draft: DraftSettings = DraftSettings()
    loss: LossSettings = LossSettings()
    defaults: Defaults = Defaults()

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.data.size % self.network.multiple:
            raise ValueError(f"data.size {self.data.size}: expected a multiple of {self.network.multiple} for this network")
        for where, width, heads in (("text", self.text.width, self.text.heads), ("network", self.network.width, self.network.heads)):
            if width % heads and (where == "text" or self.network.kind == "dit"):
                raise ValueError(f"{where}.width {width}: expected a multiple of {where}.heads {heads}")
        if self.network.kind == "dit" and self.network.width % 4:
            raise ValueError(f"network.width {self.network.width}: expected a multiple of 4, for sine and cosine of both axes")
        if self.schedule.kind == "edm":
            raise ValueError("schedule.kind 'edm' wants EDM's own prediction, which recipes do not have yet: use flow or vp")
        if self.prediction == "eps" and (self.schedule.kind == "flow" or self.schedule.zero_terminal_snr):
            raise ValueError("prediction 'eps' says nothing of the picture in pure noise, where this schedule starts: use v, flow or x0")
        if self.draft.cells and self.network.kind == "dit":
            raise ValueError("draft.cells: a draft is given to a U-Net, and network.kind is 'dit'")
        if self.draft.steps_alone and not self.draft.cells:
            raise ValueError(f"draft.steps_alone {self.draft.steps_alone}: there is no draft to train, draft.cells is 0")
        if self.draft.steps_alone >= self.max_train_steps:
            raise ValueError(f"draft.steps_alone {self.draft.steps_alone}: expected fewer than max_train_steps {self.max_train_steps}")
        return self


def load(path: Path, overrides: dict[str, object] | None = None) -> TrainConfig:
    """Read a recipe; `overrides` replace its top-level keys. Raises FileError or ArgumentError with one line."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"no recipe at {path}: expected a TOML file such as recipes/emoji.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not TOML: {error}") from None
    try:
        return TrainConfig.model_validate({**settings, **(overrides or {})})
    except ValidationError as error:
        raise _refusal(path, error, overrides or {}) from None


def _refusal(path: Path, error: ValidationError, overrides: dict[str, object]) -> ArgumentError:
    """The first fault, in one line."""
    first = error.errors()[0]
    dotted = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        table = dotted.rpartition(".")[0]
        return UnknownName(f"key in {path}:", dotted, [key for key in _keys(TrainConfig) if key.rpartition(".")[0] == table])
    if first["type"] == "missing":
        return ArgumentError(f"{path}: {dotted} is missing")
    if not dotted:
        return ArgumentError(f"{path}: {message}")
    got = repr(first["input"])
    if dotted in overrides:  # no fault of the file
        return ArgumentError(f"got {dotted} {got}: {message}")
    return ArgumentError(f"{path}, {dotted}: got {got if len(got) < 80 else got[:80] + '…'}: {message}")


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key that a recipe may have, in dots."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _keys(field.annotation, f"{prefix}{name}.")
    return found
