"""A picture's noise depends on its seed and on nothing else."""

from __future__ import annotations

import pytest
import torch

from unnoise.diffusion.noise import MAX_SEED, Recorded, Streams
from unnoise.errors import ArgumentError


def draws(seeds: list[int], n: int = 3, shape: tuple[int, ...] = (2, 4)) -> torch.Tensor:
    """(n, seeds, *shape)"""
    streams = Streams(seeds)
    return torch.stack([streams.draw(torch.empty(len(seeds), *shape)) for _ in range(n)])


def test_the_same_seed_gives_the_same_noise_in_any_batch_at_any_place():
    alone = draws([7])[:, 0]
    for seeds in ([7], [7, 1], [1, 7], [3, 4, 7, 5]):
        assert torch.equal(draws(seeds)[:, seeds.index(7)], alone)


def test_it_is_the_generator_of_that_seed():
    """Drawn on the CPU in float32 from torch's generator, so that a picture can be made again elsewhere."""
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(draws([7])[0, 0], torch.randn(2, 4, generator=generator))
    assert torch.equal(draws([7])[1, 0], torch.randn(2, 4, generator=generator))


def test_the_dtype_asked_for_does_not_change_the_numbers():
    low = Streams([7]).draw(torch.empty(1, 5, dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, Streams([7]).draw(torch.empty(1, 5)).bfloat16())
    high = Streams([7]).draw(torch.empty(1, 5, dtype=torch.float64))
    assert high.dtype == torch.float64 and torch.equal(high, Streams([7]).draw(torch.empty(1, 5)).double())


def test_other_seeds_and_later_draws_are_other_noise():
    rows = draws([0, 1, 2, MAX_SEED], n=3, shape=(64,)).flatten(0, 1)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    # correlations of 64 normal numbers: six standard errors of 1/8
    assert float((torch.corrcoef(rows) - torch.eye(len(rows))).abs().max()) < 0.75


def test_it_is_standard_normal():
    x = draws([3], n=1, shape=(100_000,)).flatten()
    n = len(x)
    assert abs(float(x.mean())) < 5 / n**0.5 and abs(float(x.var()) - 1) < 5 * (2 / n) ** 0.5  # five standard errors


def test_the_global_stream_is_neither_used_nor_moved():
    before = torch.random.get_rng_state()
    draws([1, 2])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.5, True, "7", None])
def test_refused_seeds(seed: object):
    with pytest.raises(ArgumentError, match=r"got seed .*expected a whole number from 0 to 9223372036854775807"):
        Streams([0, seed])  # type: ignore[list-item]


def test_one_stream_is_not_spread_over_several_images():
    with pytest.raises(ArgumentError, match="got 1 seeds for 4 images"):
        Streams([0]).draw(torch.empty(4, 2))


def test_recorded_noise_comes_back_in_order():
    noises = [torch.randn(2, 3) for _ in range(2)]
    recorded = Recorded(noises)
    assert all(torch.equal(recorded.draw(torch.empty(2, 3)), noise) for noise in noises)
    with pytest.raises(ArgumentError, match="none left"):
        recorded.draw(torch.empty(2, 3))
    with pytest.raises(ArgumentError, match=r"one of shape \(2, 3\), expected shape \(1, 3\)"):
        Recorded(noises).draw(torch.empty(1, 3))
