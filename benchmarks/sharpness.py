"""How sharp pictures are: the power at high spatial frequencies, and lines in the spectrum at the period of a network's patches."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def luma(pictures: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, h, w) without each picture's mean."""
    grey = (pictures.float() * torch.tensor(LUMA)[:, None, None]).sum(dim=1)
    return grey - grey.mean(dim=(1, 2), keepdim=True)


def upper_half(pictures: Tensor) -> float:
    """Mean power of the frequencies above half the highest one of an axis (1/4 cycle a pixel), along either axis."""
    power = torch.fft.fft2(luma(pictures)).abs().square()
    height, width = (torch.fft.fftfreq(size).abs() > 0.25 for size in power.shape[1:])
    return power[:, height[:, None] | width[None, :]].mean().item()


def line(residual: Tensor, patch: int) -> float:
    """The power at one cycle a patch, along both axes, as a multiple of that of the neighbouring frequencies; 1 where there is no line.

    residual (n, 3, h, w): what was drawn without what should have been drawn.
    """
    power = torch.fft.fft2(luma(residual)).abs().square().mean(dim=0)  # (h, w)
    rows, columns = power.mean(dim=1), power.mean(dim=0)  # a vertical period, a horizontal one
    spectrum = (rows + columns) / 2
    place = len(spectrum) // patch  # h/patch cycles a picture; for patches of 2 it is the highest frequency
    return (spectrum[place] / (spectrum[place - 1] + spectrum[(place + 1) % len(spectrum)]) * 2).item()
