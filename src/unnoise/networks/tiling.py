"""A convolutional network over a large picture, tile by tile, without seams: the same result as in one piece, to rounding.

Two things tie a tile to the rest of its picture. Convolutions reach over its edge: a tile is cut with a margin, and only its interior is
kept. Group norms average over the whole picture: the tiles run as far as the first norm whose statistics are not known yet, which measures
them on the interiors; then again, as far as the next one; then to the end. So that little is computed twice, the network comes as short
stages, and only what passes between two stages is held for the whole picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unnoise.networks.blocks import Norm, whole


class Stage(NamedTuple):
    """run(x, norm) turns cells of cells[0] pixels a side into cells of cells[1], and no pixel depends on more than MARGIN cells around."""

    run: Callable[[Tensor, Norm], Tensor]
    cells: tuple[int, int] = (1, 1)


MARGIN = 3  # a convolution at an entry and two in a residual block reach one pixel each; where the entry halves, 2 + 1/2 cells


class Span(NamedTuple):
    """Along one axis, in cells: a tile is start..stop, its interior first..last."""

    start: int
    first: int
    last: int
    stop: int

    def tile(self, cell: int) -> slice:
        return slice(self.start * cell, self.stop * cell)

    def kept(self, cell: int) -> slice:
        return slice(self.first * cell, self.last * cell)

    def interior(self, length: int) -> slice:
        """Within a tile that is `length` pixels long by now."""
        cell = length // (self.stop - self.start)
        return slice((self.first - self.start) * cell, (self.last - self.start) * cell)


class Moments(NamedTuple):
    count: int
    mean: Tensor  # (b, groups)
    var: Tensor  # (b, groups), biased, as group normalisation has it


class NotMeasured(Exception):
    """A tile has come to a norm that waits for the other tiles."""


class SharedNorms:
    """A `Norm` for tiles: normalises with the statistics of the whole picture, or measures its share of them and stops the tile."""

    def __init__(self) -> None:
        self.known: dict[nn.GroupNorm, Moments] = {}
        self.parts: list[Moments] = []

    def at(self, rows: Span, cols: Span) -> Norm:
        def norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
            if layer in self.known:
                return normalize(layer, x, self.known[layer])
            self.parts.append(measure(layer, x[:, :, rows.interior(x.shape[2]), cols.interior(x.shape[3])]))
            raise NotMeasured(layer)

        return norm


def measure(layer: nn.GroupNorm, x: Tensor) -> Moments:
    values = x.reshape(len(x), layer.num_groups, -1).float()
    var, mean = torch.var_mean(values, dim=2, correction=0)
    return Moments(values.shape[2], mean, var)


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of the union: var = sum n_i (var_i + (mean_i - mean)^2) / n."""
    n = sum(part.count for part in parts)
    weights = torch.tensor([part.count / n for part in parts], device=parts[0].mean.device)[:, None, None]
    means, variances = torch.stack([part.mean for part in parts]), torch.stack([part.var for part in parts])
    mean = (weights * means).sum(0)
    return Moments(n, mean, (weights * (variances + (means - mean) ** 2)).sum(0))


def normalize(layer: nn.GroupNorm, x: Tensor, moments: Moments) -> Tensor:
    """Group normalisation of x by statistics that are not its own, in float32 as the kernel does it."""
    each = layer.num_channels // layer.num_groups
    rstd = (moments.var + layer.eps).rsqrt()
    mean, rstd = (value.repeat_interleave(each, dim=1) for value in (moments.mean, rstd))  # (b, c)
    scale = layer.weight.float() * rstd
    shift = layer.bias.float() - mean * scale
    return torch.addcmul(shift[:, :, None, None], x.float(), scale[:, :, None, None]).to(x.dtype)


def spans(length: int, tile: int) -> list[Span]:
    """Interiors of at most `tile` cells that divide 0..length evenly, each with its margin where the picture goes on."""
    n = math.ceil(length / tile)
    cuts = [i * length // n for i in range(n + 1)]
    return [Span(max(a - MARGIN, 0), a, b, min(b + MARGIN, length)) for a, b in itertools.pairwise(cuts)]


def through(stages: Sequence[Stage], x: Tensor, *, tile: int, pixels: int) -> Tensor:
    """x (b, c, h, w) through all stages; in tiles of `tile` latents if that is not 0. A latent is `pixels` pixels of x a side."""
    for stage in stages:
        before, after = stage.cells
        side = tile * pixels // before  # of a tile, in cells
        x = in_tiles(stage, x, side) if 0 < side < max(x.shape[2:]) // before else stage.run(x, whole)
        pixels = pixels * after // before
    return x


def in_tiles(stage: Stage, x: Tensor, tile: int) -> Tensor:
    """stage.run(x, whole) on tiles of `tile` cells a side."""
    before, after = stage.cells
    tiles = list(itertools.product(*(spans(side // before, tile) for side in x.shape[2:])))
    norms, out = SharedNorms(), None
    while out is None:
        for rows, cols in tiles:
            try:
                part = stage.run(x[:, :, rows.tile(before), cols.tile(before)], norms.at(rows, cols))
            except NotMeasured as reached:
                layer = reached.args[0]
                continue
            if out is None:
                out = part.new_empty(len(x), part.shape[1], *(side // before * after for side in x.shape[2:]))
            out[:, :, rows.kept(after), cols.kept(after)] = part[:, :, rows.interior(part.shape[2]), cols.interior(part.shape[3])]
        if norms.parts:
            norms.known[layer], norms.parts = merge(norms.parts), []
    return out
