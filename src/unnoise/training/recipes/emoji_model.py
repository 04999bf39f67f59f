"""The model that the emoji recipe trains, as data: the sizes of its networks, its process, its prediction."""

from __future__ import annotations

from unnoise.families.spec import ModelSpec
from unnoise.networks import drafts
from unnoise.networks.dit import DiTConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.tokenizers import Tokenizer
from unnoise.networks.unet import UNetConfig
from unnoise.training.recipes.emoji_config import TrainConfig


def spec(config: TrainConfig, tokenizer: Tokenizer) -> ModelSpec:
    """Describe the model of a recipe, as its published file does."""
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
        context_width=config.text.width if network.tokens else 0,
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
