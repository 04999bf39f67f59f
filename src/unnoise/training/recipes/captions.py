"""The batches of the emoji recipe: pictures with captions, some of which are dropped so that the model learns to do without."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.data.emoji_scenes import SceneBatches
from unnoise.data.pictures import Batches
from unnoise.networks import drafts
from unnoise.networks.tokenizers import Tokenizer
from unnoise.training.batch import Batch, Seeded, generator
from unnoise.training.recipes.draft import Captioned, EmojiBatch


@dataclass(frozen=True, eq=False)
class CaptionBatches:
    """Batch `number`, and the random numbers of its loss, as pure functions of (seed, number).

    The first batches train the draft alone: `drawn_alone` of them, from pictures and captions of their own.
    """

    pictures: Batches | SceneBatches
    captions: Batches | SceneBatches | None  # for the first batches; None: the recipe has no draft
    drawn_alone: int
    text_encoder: nn.Module
    tokenizer: Tokenizer
    caption_dropout: float  # the share of captions that become empty
    seed: int
    device: torch.device

    def __call__(self, number: int) -> EmojiBatch:
        if self.captions is not None and number < self.drawn_alone:
            return EmojiBatch(self._captioned(*self.captions(number)), None)
        pictures, texts = self.pictures(number)
        left = ["" if gone else text for gone, text in zip(self._dropped(generator(self.seed, number)), texts, strict=True)]
        whole = self._captioned(pictures, texts)
        cond = partial(encoded, self.text_encoder, self._ids(left), *pictures.shape[2:])
        return EmojiBatch(whole if self.captions is not None else None, Batch(whole.pictures, cond))

    def draw(self, number: int) -> Seeded:
        """Numbers of the generator that the dropped captions were drawn from, behind those."""
        source = generator(self.seed, number)
        self._dropped(source)
        return Seeded(source)

    def _dropped(self, source: torch.Generator) -> Tensor:
        return torch.rand(self.pictures.size, generator=source) < self.caption_dropout

    def _captioned(self, pictures: Tensor, texts: list[str]) -> Captioned:
        return Captioned(pictures.to(self.device), self._ids(texts))

    def _ids(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts).ids.to(self.device)


def encoded(text_encoder: nn.Module, ids: Tensor, height: int, width: int) -> Cond:
    """What the network is told of token ids (b, n), with a gradient to the text encoder."""
    return drafts.condition(text_encoder(ids), height, width)
