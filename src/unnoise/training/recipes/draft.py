"""The loss of the emoji recipe: that of the draft, and that of the network which sees it (networks/drafts.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks import drafts
from unnoise.training.batch import Batch, Draw
from unnoise.training.objective import Objective


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures and their captions."""

    pictures: Tensor  # (b, 3, h, w) in -1..1
    ids: Tensor  # (b, n) tokens


@dataclass(frozen=True, eq=False)
class EmojiBatch:
    """What the draft learns from, and what the network learns from. None: it learns nothing from this batch."""

    drawn: Captioned | None
    noisy: Batch | None


@dataclass(frozen=True)
class Draft:
    """`weight` times the mean squared error of the drafts of captions: a text encoder learns to expect a small picture."""

    text_encoder: nn.Module
    cells: int  # the side of a draft
    weight: float = 1.0
    autocast: torch.dtype | None = None

    def __call__(self, batch: Captioned, draw: Draw) -> Tensor:
        """Nothing is drawn. Raises ArgumentError for a text encoder without a projection, which makes no draft."""
        pictures = batch.pictures
        with torch.autocast(pictures.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            small = drafts.draft(self.text_encoder(batch.ids))
        if small is None:
            raise ArgumentError("got a text encoder without a projection: expected one that makes drafts")
        return self.weight * F.mse_loss(small.float(), drafts.target(pictures, self.cells))


@dataclass(frozen=True)
class Emoji:
    """The sum of the draft's loss and the network's, of those that a batch has."""

    denoising: Objective[Batch]
    draft: Draft | None

    def __call__(self, batch: EmojiBatch, draw: Draw) -> Tensor:
        terms = []
        if self.draft is not None and batch.drawn is not None:
            terms.append(self.draft(batch.drawn, draw))
        if batch.noisy is not None:
            terms.append(self.denoising(batch.noisy, draw))
        return torch.stack(terms).sum()
