"""A convolutional network over a large picture, strip by strip, without seams: the same result as in one piece, to rounding.

Two things tie a strip of rows to the rest of its picture. Convolutions reach over its edge: it is computed from a few rows more. Group
norms average over the whole picture: what a norm reads is measured first, strip by strip, and normalised when it is asked for. So every
layer is a pass over the picture. What passes between two of them is held in memory, or computed again where that is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.networks.blocks import ResidualBlock


@dataclass(frozen=True)
class Rows:
    """Features (b, c, height, w) of which some rows are asked at a time: take(first, last) computes them, or cuts them from memory."""

    take: Callable[[int, int], Tensor]
    height: int
    step: int  # rows of a strip

    def strips(self) -> Iterator[tuple[int, int]]:
        return ((first, min(first + self.step, self.height)) for first in range(0, self.height, self.step))

    def then(self, layer: Callable[[Tensor], Tensor], *, reach: int = 0, cells: tuple[int, int] = (1, 1)) -> Rows:
        """layer(self), computed when asked. It turns cells of cells[0] rows into cells[1] rows and looks `reach` cells around each."""
        before, after = cells
        count = self.height // before

        def take(first: int, last: int) -> Tensor:
            start, stop = max(first // after - reach, 0), min(-(-last // after) + reach, count)
            return layer(self.take(start * before, stop * before))[:, :, first - start * after : last - start * after]

        return Rows(take, count * after, self.step // before * after)

    def hold(self, out: Tensor | None = None) -> Rows:
        """All rows computed and in memory: in `out` if given, which they may be computed from, looking one row around."""
        late = None
        for first, last in self.strips():
            part = self.take(first, last)
            if out is None:
                shape = (*part.shape[:2], self.height, part.shape[3])
                out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
            if late is None:
                late = torch.empty_like(part[:, :, -1])
            else:
                out[:, :, first - 1] = late
            late.copy_(part[:, :, -1])  # the last row waits: the next strip still reads what is in its place
            out[:, :, first : last - 1] = part[:, :, :-1]
            del part  # before the next one is made
        assert out is not None and late is not None  # there is a strip at least
        out[:, :, -1] = late
        return held(out, self.step)

    def all(self) -> Tensor:
        return self.take(0, self.height)


def held(x: Tensor, step: int) -> Rows:
    return Rows(lambda first, last: x[:, :, first:last], x.shape[2], step)


def strip_height(height: int, width: int, tile: int) -> int:
    """Rows of a strip as large as `tile` by `tile`; 0 where all fit into one."""
    return max(tile * tile // width, 1) if 0 < tile * tile < height * width else 0


def residual(block: ResidualBlock, x: Rows) -> Rows:
    """block(x), in room for one more features like its own."""
    h = activated(block.norm1, x).then(block.conv1, reach=1).hold()
    branch, skip = activated(block.norm2, h).then(block.conv2, reach=1), x.then(block.conv_shortcut)
    return Rows(lambda first, last: branch.take(first, last).add_(skip.take(first, last)), x.height, x.step).hold(h.all())


def activated(layer: nn.GroupNorm, x: Rows) -> Rows:
    """silu(layer(x)) by the statistics of all rows."""
    moments = measured(layer.num_groups, x)
    return x.then(lambda part: F.silu(normalize(layer, part, moments), inplace=True).to(part.dtype))


class Moments(NamedTuple):
    mean: Tensor  # (b, groups), float32
    var: Tensor  # (b, groups), biased, as group normalisation has it


def measured(groups: int, x: Rows) -> Moments:
    """Of all rows. The strips' figures share one tensor: small ones that stay, one a strip, would cut up the freed memory between them."""
    strips, parts, shares = list(x.strips()), None, None
    for i, (first, last) in enumerate(strips):
        part = measure(x.take(first, last))
        if parts is None or shares is None:
            parts, shares = part.new_empty(len(strips), *part.shape), part.new_empty(len(strips))
        parts[i], shares[i] = part, (last - first) / x.height  # filled in where it is: a copy from the CPU would wait for a GPU
        del part
    assert parts is not None and shares is not None  # there is a strip at least
    return merge(groups, parts, shares)


def measure(x: Tensor) -> Tensor:
    """Mean and biased variance of each channel of x (b, c, h, w): (2, b, c), float32."""
    x = x.float()
    mean = x.mean((2, 3), keepdim=True)
    return torch.stack([mean[:, :, 0, 0], (x - mean).square_().mean((2, 3))])


def merge(groups: int, parts: Tensor, shares: Tensor) -> Moments:
    """Moments of the union of parts (n, 2, b, c), each a share of the rows, and of the channels of a group:
    var = sum of share_i (var_i + (mean_i - mean)^2)."""
    means, variances = parts.unflatten(3, (groups, -1)).unbind(1)  # (n, b, groups, each)
    weights = (shares / means.shape[3])[:, None, None, None]
    mean = (weights * means).sum((0, 3))
    return Moments(mean, (weights * (variances + (means - mean[:, :, None]) ** 2)).sum((0, 3)))


def normalize(layer: nn.GroupNorm, x: Tensor, moments: Moments) -> Tensor:
    """Group normalisation of x by statistics that are not its own, float32 as in the kernel."""
    each = layer.num_channels // layer.num_groups
    rstd = (moments.var + layer.eps).rsqrt()
    mean, rstd = (value.repeat_interleave(each, dim=1) for value in (moments.mean, rstd))  # (b, c)
    scale = layer.weight.float() * rstd
    shift = layer.bias.float() - mean * scale
    return torch.addcmul(shift[:, :, None, None], x.float(), scale[:, :, None, None])
