"""A draft: the small picture that a text encoder expects, given to the U-Net beside the noise.

The pooled text vector is projected onto 3 x cells x cells numbers, trained to be the picture averaged to as many cells. A U-Net without
positions learns slowly from a vector where things belong; a draft tells it, and leaves it the detail. It is a cascade (Ho et al. 2021)
whose first stage is one matrix.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from unnoise.conditioning import Cond
from unnoise.networks.text import TextStates


def projection(cells: int) -> int:
    """Width of the text projection that a draft of cells x cells needs."""
    return 3 * cells**2


def draft(states: TextStates) -> Tensor | None:
    """(b, 3, cells, cells) about -1..1; None for an encoder that projects nothing."""
    if states.projected is None:
        return None
    cells = math.isqrt(states.projected.shape[1] // 3)
    return states.projected.view(-1, 3, cells, cells)


def condition(states: TextStates, height: int, width: int) -> Cond:
    """What a text-to-image network in pixels is told of a text, for pictures of height x width."""
    small = draft(states)
    concat = None if small is None else F.interpolate(small, size=(height, width), mode="bilinear")
    return Cond(tokens=states.last, pooled=states.pooled, concat=concat)


def target(pictures: Tensor, cells: int) -> Tensor:
    """What a draft should be: pictures (b, 3, h, w) averaged to (b, 3, cells, cells)."""
    return F.adaptive_avg_pool2d(pictures, cells)
