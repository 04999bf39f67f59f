"""The emoji recipe: a text-to-image model in pixels, trained from the start together with its text encoder.

It is one recipe among others: its data, its captions and its draft are here, and the loop knows nothing of them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from unnoise.data import emoji, emoji_scenes, pictures
from unnoise.data.compose import Composer
from unnoise.data.emoji_scenes import SceneBatches
from unnoise.data.pictures import Batches, Pictures
from unnoise.diffusion.losses import Loss, TimeSampling
from unnoise.families.spec import ModelSpec
from unnoise.networks import tokenizers
from unnoise.networks.tokenizers import Tokenizer
from unnoise.pipeline.model import Model
from unnoise.runtime import placement
from unnoise.runtime.placement import Networks, Placement
from unnoise.training import loop
from unnoise.training.loop import Run
from unnoise.training.objective import Denoising
from unnoise.training.recipes.captions import CaptionBatches
from unnoise.training.recipes.draft import Draft, Emoji, EmojiBatch
from unnoise.training.recipes.emoji_config import TrainConfig
from unnoise.training.recipes.emoji_model import spec
from unnoise.training.trainee import Trainee, Values
from unnoise.training.trainees.full import full

PLACES = ("network", "text_encoder")
PREFIX = "networks."  # of the parameters' names in a checkpoint


def prepare(config: TrainConfig) -> Run[EmojiBatch]:
    """A run at its newest checkpoint, or at its start. Raises FileError where a checkpoint was made by another recipe."""
    data = pictures.read(_folder(config), config.data.size)
    tokenizer = _tokenizer(config, data)
    device = _device(config.device)
    torch.manual_seed(config.seed)  # the first weights
    made = spec(config, tokenizer)
    model = Model(made, tokenizer, _placed(made, made.build().to(device), Placement(device, torch.float32)))
    trainee = _trainee(model)
    if config.compile:
        _compile(model)
    batches = _batches(config, data, model, device)
    return loop.begin(config, trainee, _objective(config, trainee), batches, batches.draw)


def averaged(run: Run[EmojiBatch], dtype: torch.dtype = torch.float32) -> Model:
    """The run's averaged weights as a model; the live weights are left alone."""
    return with_values(run.trainee.model, run.ema.weights, dtype)


def with_values(model: Model, values: Values, dtype: torch.dtype) -> Model:
    """A model of the same kind with these weights, under the names of a checkpoint."""
    networks = model.spec.build("meta")
    weights = {name.removeprefix(PREFIX): value.detach().to(dtype) for name, value in values.items()}
    networks.load_state_dict(weights, strict=True, assign=True)
    placed = _placed(model.spec, networks.eval().requires_grad_(False), Placement(model.device, dtype))
    return Model(model.spec, model.tokenizers, placed)


def _placed(described: ModelSpec, networks: nn.ModuleDict, where: Placement) -> Networks:
    configs: dict[str, object] = {**described.networks}
    return Networks(networks, configs, where)


def _trainee(model: Model) -> Trainee:
    """All weights of both networks; it is published in float16, as one file."""
    whole = full(model, PLACES)
    parameters = {f"{PREFIX}{name}": parameter for name, parameter in whole.parameters.items()}

    def save(path: Path, values: Values | None = None) -> None:
        with_values(model, parameters if values is None else values, torch.float16).save(path)

    return replace(whole, parameters=parameters, save=save)


def _compile(model: Model) -> None:
    for place in PLACES:
        network: nn.Module = model.networks[place]
        network.compile()


def _objective(config: TrainConfig, trainee: Trainee) -> Emoji:
    loss, text_encoder = config.loss, trainee.model.networks["text_encoder"]
    autocast = torch.bfloat16 if config.mixed_precision == "bf16" else None
    times = TimeSampling(loss.time, loss.time_mean, loss.time_std)
    denoising = Denoising(trainee, Loss(loss.space, loss.floor, loss.min_snr), times, autocast)
    draft = Draft(text_encoder, config.draft.cells, config.draft.weight, autocast) if config.draft.cells else None
    return Emoji(denoising, draft)


def _batches(config: TrainConfig, data: Pictures, model: Model, device: torch.device) -> CaptionBatches:
    draft = config.draft
    return CaptionBatches(
        pictures=_captioned(config, data, config.train_batch_size, config.seed),
        captions=_captioned(config, data, draft.batch_size, config.seed + 1) if draft.cells else None,
        drawn_alone=draft.steps_alone * config.gradient_accumulation_steps,
        text_encoder=model.networks["text_encoder"],
        tokenizer=model.tokenizers["text_encoder"],
        caption_dropout=config.caption_dropout,
        seed=config.seed,
        device=device,
    )


def _captioned(config: TrainConfig, data: Pictures, size: int, seed: int) -> Batches | SceneBatches:
    """Batches of the recipe's data."""
    if config.data.source == "emoji-scenes":
        return SceneBatches(data, _composer(config), size, seed)
    return Batches(data, size, seed, config.data.repaint)


def _composer(config: TrainConfig) -> Composer:
    return emoji_scenes.composer(emoji_scenes.excluding(config.data.excluded))


def _device(name: str) -> torch.device:
    """auto: a CUDA GPU or the CPU; times are float64, which MPS lacks."""
    return placement.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _folder(config: TrainConfig) -> Path:
    """The folder of pictures; the built-in set is built beside the run where it is not there yet."""
    if config.data.source not in ("emoji", "emoji-scenes"):
        return Path(config.data.source)
    folder = config.output_dir / "emoji"
    if not (folder / "metadata.jsonl").is_file():
        emoji.build(folder)
    return folder


def _tokenizer(config: TrainConfig, data: Pictures) -> Tokenizer:
    """Learnt once from everything the captions can say, and kept beside the run."""
    path = config.output_dir / "tokenizer.json"
    if not path.is_file():
        scenes = config.data.source == "emoji-scenes"
        texts = emoji_scenes.vocabulary(_composer(config)) if scenes else pictures.vocabulary(data)
        learnt = tokenizers.learn(texts, vocab=config.text.vocab, length=config.text.length)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        learnt.save(partial)
        os.replace(partial, path)
    return tokenizers.read(path, config.text.length)
