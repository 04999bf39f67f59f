"""What is minimised: the squared error of x_0, weighted so that it equals the squared error of another prediction.

With x fixed, x_0 = skip x + out F, so |F - F*|² = |x_0_hat - x_0|² / out². A loss "in eps", "in v", "in flow" or "in x0" is therefore
one weight, 1/out², whatever the network predicts (Salimans & Ho 2022, section 4; Li & He 2025 train x_0 by the flow loss).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.predictions import prediction as prediction_named
from unnoise.diffusion.schedules import Discrete, Schedule
from unnoise.errors import ArgumentError, UnknownName

TIME_SAMPLINGS = ("uniform", "logit_normal")


@dataclass(frozen=True)
class TimeSampling:
    """How training draws t. logit_normal: t = sigmoid(mean + std n) between the ends of time (Esser et al. 2024, eq. 19)."""

    name: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in TIME_SAMPLINGS:
            raise UnknownName("time sampling", self.name, TIME_SAMPLINGS)
        if not self.std > 0:
            raise ArgumentError(f"got std {self.std}: expected a number above 0")

    def draw(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """n times; float64. A discrete schedule gives whole indices."""
        if self.name == "uniform":
            part = torch.rand(n, generator=generator, dtype=torch.float64)
        else:
            part = torch.sigmoid(self.mean + self.std * torch.randn(n, generator=generator, dtype=torch.float64))
        if isinstance(schedule, Discrete):
            return (part * (schedule.start + 1)).floor().clamp(max=schedule.start)
        return schedule.end + part * (schedule.start - schedule.end)


@dataclass(frozen=True)
class Loss:
    """Mean squared error of a network's output, measured in the prediction called `space` (the network's own if None).

    `floor` bounds 1/out² from above: out is taken to be at least this. `min_snr` is gamma of Hang et al. 2023: the weight in x_0, which is
    snr where nothing else is asked for, is capped at gamma. The error of eps is then multiplied by min(snr, gamma) / snr, that of v by
    min(snr, gamma) / (snr + 1), that of x_0 by min(snr, gamma). With a `space`, it is that space's weight in x_0 that is capped.
    """

    space: str | None = None
    floor: float = 0.05
    min_snr: float | None = None

    def __post_init__(self) -> None:
        if self.space is not None:
            prediction_named(self.space)
        if self.min_snr is not None and not self.min_snr > 0:
            raise ArgumentError(f"got min_snr {self.min_snr}: expected a number above 0, such as 5")

    def __call__(self, output: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        """Per-image losses (b,). output, x0 and noise are (b, c, h, w); alpha and sigma broadcast against them."""
        error = (output - prediction.target(x0, noise, alpha, sigma)).square().flatten(1).mean(1)
        return error * self.weight(alpha, sigma, prediction).flatten()

    def weight(self, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
        """What the error of the network's own output is multiplied by; the shape of alpha."""
        own = self._out(prediction, alpha, sigma)
        weight = torch.ones_like(alpha)
        space = "eps" if self.space is None and self.min_snr is not None else self.space
        if space is not None and space != prediction.name:
            weight = (own / self._out(prediction_named(space), alpha, sigma).clamp(min=self.floor)) ** 2
        if self.min_snr is not None:
            weight = torch.minimum(weight, self.min_snr * own**2)  # the weight in x_0 is weight / out²
        return weight

    @staticmethod
    def _out(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.as_tensor(prediction.coefficients(alpha, sigma)[1], dtype=alpha.dtype).expand_as(alpha).abs()


def noised(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """x_t = alpha x_0 + sigma eps, and the alpha and sigma (b, 1, 1, 1) that made it."""
    shape = (-1, *[1] * (x0.ndim - 1))
    alpha, sigma = (value.to(x0).view(shape) for value in (schedule.alpha(t), schedule.sigma(t)))
    return alpha * x0 + sigma * noise, alpha, sigma
