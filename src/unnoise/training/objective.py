"""The loss of one batch: captions and pictures in, one number out. Every random choice comes from the generator it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.diffusion.losses import Loss, TimeSampling, noised
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.schedules import Schedule
from unnoise.networks.drafts import condition, draft, target
from unnoise.networks.tokenizers import Tokenizer


class TextDenoiser(nn.Module):
    """Text encoder and network as one module: (x, timestep, token ids) -> the network's output."""

    def __init__(self, networks: nn.ModuleDict):
        super().__init__()
        self.networks = networks

    def forward(self, x: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        states = self.networks["text_encoder"](ids)
        return self.networks["network"](x, timestep, condition(states, *x.shape[2:]))

    def draft(self, ids: Tensor) -> Tensor:
        """The drafts (b, 3, cells, cells) of token ids alone."""
        small = draft(self.networks["text_encoder"](ids))
        assert small is not None  # asked for only where the recipe has drafts
        return small


@dataclass(frozen=True)
class Objective:
    """Which noise levels are drawn, what the network is asked, and how its error counts."""

    schedule: Schedule
    prediction: Prediction
    loss: Loss
    times: TimeSampling
    tokenizer: Tokenizer
    caption_dropout: float
    autocast: torch.dtype | None
    device: torch.device
    draft_cells: int
    draft_weight: float

    def __call__(self, network: Callable[..., Tensor], pictures: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        """Mean loss of the batch, float32."""
        n = len(captions)
        drop = torch.rand(n, generator=generator) < self.caption_dropout  # the empty caption learns the unconditional model
        ids = self.tokenizer(["" if gone else text for gone, text in zip(drop, captions, strict=True)]).ids.to(self.device)
        noise = torch.randn(pictures.shape, generator=generator).to(self.device)
        t = self.times.draw(n, self.schedule, generator).to(self.device)
        x0 = pictures.to(self.device)
        x, alpha, sigma = noised(x0, noise, t, self.schedule)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = network(x, self.schedule.timestep(t).float(), ids)
        return self.loss(output.float(), x0, noise, alpha, sigma, self.prediction).mean()

    def draft(self, model: TextDenoiser, pictures: Tensor, captions: list[str]) -> Tensor:
        """Mean squared error of the drafts of these captions, weighted."""
        ids = self.tokenizer(captions).ids.to(self.device)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            drafts = model.draft(ids)
        return self.draft_weight * F.mse_loss(drafts.float(), target(pictures.to(self.device), self.draft_cells))
