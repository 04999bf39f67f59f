"""Strips of rows against the whole: convolutions, group norms, residual blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.networks.blocks import ResidualBlock, Style
from unnoise.networks.tiling import Moments, activated, held, measure, merge, normalize, residual, strip_height


def plain(groups: int, x: Tensor) -> Moments:
    values = x.double().reshape(len(x), groups, -1)
    return Moments(values.mean(2).float(), values.var(2, correction=0).float())


@pytest.mark.parametrize(("height", "step"), [(1, 4), (8, 4), (9, 4), (31, 7), (5, 1)])
def test_strips_divide_the_height(height: int, step: int) -> None:
    strips = list(held(torch.zeros(1, 1, height, 2), step).strips())
    assert [i for first, last in strips for i in range(first, last)] == list(range(height))
    assert max(last - first for first, last in strips) <= step


@pytest.mark.parametrize("step", [1, 2, 3, 6, 12])
@torch.no_grad()
def test_layers_in_a_row_reach_as_far_as_they_must(step: int) -> None:
    """Same size, twice, half with padding at the corner: computed strip by strip when the last one is held, nothing in between."""
    x = torch.randn(2, 3, 12, 5)
    same, half = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, stride=2)
    layers = (same, lambda x: F.interpolate(x, scale_factor=2), lambda x: half(F.pad(x, (0, 1, 0, 1))))
    whole = layers[2](layers[1](layers[0](x)))
    rows = held(x, step).then(layers[0], reach=1).then(layers[1], cells=(1, 2)).then(layers[2], reach=1, cells=(2, 1))
    assert (rows.height, rows.step) == (12, step)
    torch.testing.assert_close(rows.hold().all(), whole)


@torch.no_grad()
def test_rows_may_be_written_over_what_they_are_computed_from() -> None:
    x, conv = torch.randn(1, 2, 9, 4), nn.Conv2d(2, 2, 3, padding=1)
    whole = conv(x)
    over = held(x, 2).then(conv, reach=1).hold(x)
    assert over.all().data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, whole)


@pytest.mark.parametrize("width", [8, 16])
@torch.no_grad()
def test_residual_block(width: int) -> None:
    block, x = ResidualBlock(Style(4), 8, width), torch.randn(2, 8, 11, 6)
    x[:, :, 5:] *= 30  # no strip has the statistics of the whole
    before = x.clone()
    torch.testing.assert_close(residual(block, held(x, 3)).all(), block(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("height", "width", "tile", "rows"), [(8, 8, 0, 0), (8, 8, 8, 0), (8, 8, 4, 2), (9, 30, 4, 1), (20, 10, 5, 2)])
def test_strips_are_as_large_as_a_tile(height: int, width: int, tile: int, rows: int) -> None:
    assert strip_height(height, width, tile) == rows


def test_merged_moments_are_those_of_the_union() -> None:
    """Uneven parts, far from zero, where a difference of squares would lose all digits."""
    x = 1e3 + torch.randn(3, 6, 12, 5)
    x[:, :, 7:] += 5
    parts = torch.stack([measure(x[:, :, :7]), measure(x[:, :, 7:8]), measure(x[:, :, 8:])])
    merged, exact = merge(2, parts, torch.tensor([7, 1, 4]) / 12), plain(2, x)
    torch.testing.assert_close(merged.mean, exact.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(merged.var, exact.var, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_normalize_is_group_norm(dtype: torch.dtype, off: float) -> None:
    norm = nn.GroupNorm(2, 6, eps=1e-6).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 + 2 * torch.randn(3, 6, 5, 4)).to(dtype)
    torch.testing.assert_close(normalize(norm, x, plain(2, x)), norm(x).float(), rtol=off, atol=off)
    mine = activated(norm, held(x, 2)).hold().all()
    assert mine.dtype == dtype
    torch.testing.assert_close(mine, F.silu(norm(x)), rtol=off, atol=off)
    wrong = Moments(torch.zeros(3, 2), torch.ones(3, 2))
    assert not torch.allclose(normalize(norm, x, wrong), norm(x).float(), atol=0.1)
