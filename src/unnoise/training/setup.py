"""From settings to a run: data, tokenizer, networks, optimiser, and the newest checkpoint if there is one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from unnoise.data import emoji, pictures
from unnoise.data.pictures import Batches
from unnoise.diffusion import predictions
from unnoise.diffusion.losses import Loss, TimeSampling
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.networks import drafts, tokenizers
from unnoise.networks.dit import DiTConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.tokenizers import Tokenizer
from unnoise.networks.unet import UNetConfig
from unnoise.runtime import placement
from unnoise.training import checkpoints
from unnoise.training.config import TrainConfig
from unnoise.training.ema import EMA
from unnoise.training.loop import Run
from unnoise.training.objective import Objective, TextDenoiser

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


def prepare(config: TrainConfig) -> Run:
    """A run at its newest checkpoint, or at its start.

    Raises FileError where a checkpoint was made by another recipe. max_train_steps may change; the cosine of the learning rate ends there,
    so the steps to come follow another curve than those taken.
    """
    kept = config.output_dir / "config.json"
    found = checkpoints.newest(config.output_dir / "checkpoints")
    if found and kept.is_file():
        _same_recipe(kept, config)
    data = pictures.read(_folder(config), config.data.size)
    tokenizer = _tokenizer(config, data)
    device = _device(config.device)
    torch.manual_seed(config.seed)
    model = TextDenoiser(spec(config, tokenizer).build()).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True
    )
    batches = Batches(data, config.train_batch_size, config.seed, config.data.repaint)
    captions = Batches(data, config.draft.batch_size, config.seed + 1, config.data.repaint) if config.draft.cells else None
    run = Run(config, model, _objective(config, tokenizer, device), batches, captions, EMA(model, config.ema_decay), optimizer)
    if found:
        run.taken = checkpoints.restore(found, model, run.ema, optimizer)
    kept.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")  # what ran
    return run


def _same_recipe(path: Path, config: TrainConfig) -> None:
    """Refuse to go on with other settings than the run began with. A key that only one version of unnoise knows says nothing."""
    try:
        was = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError):  # half written; the next one is whole
        return
    for key, value in _flat(json.loads(config.model_dump_json())).items():
        if key.partition(".")[0] not in FREE and was.get(key, value) != value:
            raise FileError(f"{key} was {was[key]!r} and is {value!r}: the recipe changed since this run began; give another --output-dir")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys in dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _device(name: str) -> torch.device:
    """auto: a CUDA GPU or the CPU; times are float64, which MPS lacks."""
    return placement.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def spec(config: TrainConfig, tokenizer: Tokenizer) -> ModelSpec:
    """What the trained model will say of itself."""
    text = config.text
    clip = CLIPTextConfig(
        vocab=tokenizer.pieces.get_vocab_size(),
        length=text.length,
        width=text.width,
        layers=text.layers,
        heads=text.heads,
        mlp=4 * text.width,
        activation="gelu",
        projection=drafts.projection(config.draft.cells),
        end_token=tokenizer.end,
    )
    return ModelSpec(
        name=config.name,
        summary=config.summary,
        prediction=config.prediction,
        schedule=config.schedule,
        size=config.data.size,
        multiple=config.network.multiple,
        networks={"network": _unet(config) if config.network.kind == "unet" else _dit(config), "text_encoder": clip},
        defaults=config.defaults,
    )


def _unet(config: TrainConfig) -> UNetConfig:
    network = config.network
    return UNetConfig(
        in_channels=6 if config.draft.cells else 3,
        out_channels=3,
        widths=network.widths,
        depths=network.depths,
        blocks=network.blocks,
        heads=network.heads,
        patch=network.patch,
        context_width=0,
        pooled_width=config.text.width,
        scale_shift=True,
    )


def _dit(config: TrainConfig) -> DiTConfig:
    network = config.network
    return DiTConfig(
        in_channels=3,
        patch=network.patch,
        width=network.width,
        depth=network.depth,
        heads=network.heads,
        learn_sigma=False,
        context_width=config.text.width,
        pooled_width=config.text.width,
    )


def _objective(config: TrainConfig, tokenizer: Tokenizer, device: torch.device) -> Objective:
    loss = config.loss
    return Objective(
        schedule=config.schedule.build(),
        prediction=predictions.prediction(config.prediction),
        loss=Loss(loss.space, loss.floor, loss.min_snr),
        times=TimeSampling(loss.time, loss.time_mean, loss.time_std),
        tokenizer=tokenizer,
        caption_dropout=config.caption_dropout,
        autocast=torch.bfloat16 if config.mixed_precision == "bf16" else None,
        device=device,
        draft_cells=config.draft.cells,
        draft_weight=config.draft.weight,
    )


def _folder(config: TrainConfig) -> Path:
    if config.data.source != "emoji":
        return Path(config.data.source)
    folder = config.output_dir / "emoji"
    if not (folder / "metadata.jsonl").is_file():
        emoji.build(folder)
    return folder


def _tokenizer(config: TrainConfig, data: pictures.Pictures) -> Tokenizer:
    """Learnt once from everything the captions can say, and kept beside the run."""
    path = config.output_dir / "tokenizer.json"
    if not path.is_file():
        learnt = tokenizers.learn(pictures.vocabulary(data), vocab=config.text.vocab, length=config.text.length)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        learnt.save(partial)
        os.replace(partial, path)
    return tokenizers.read(path, config.text.length)
