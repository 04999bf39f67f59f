"""The loss of one batch: captions and pictures in, one number out. Every random choice comes from the generator it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.diffusion.losses import Loss, TimeSampling, noised
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.schedules import Schedule
from unnoise.networks.tokenizers import Tokenizer


class TextDenoiser(nn.Module):
    """Text encoder and network as one module: (x, timestep, token ids) -> the network's output."""

    def __init__(self, networks: nn.ModuleDict):
        super().__init__()
        self.networks = networks

    def forward(self, x: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        states = self.networks["text_encoder"](ids)
        return self.networks["network"](x, timestep, Cond(tokens=states.last, pooled=states.pooled))


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
