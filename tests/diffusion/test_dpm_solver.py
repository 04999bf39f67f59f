"""DPM-Solver's orders by the place of a step, and its steps by their error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, ENDS, NoNoise, even_times, walk
from unnoise.diffusion.sampling import Run, plan, stream
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import ArgumentError, NonFiniteError

SHARES = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
DTYPES = (torch.float32, torch.float64)


def distances(schedule: Schedule, sampler: str, times: Tensor, **options: object) -> Tensor:
    """From the exact path, at 20 quantiles."""
    first, last = (EASY.at(schedule, float(t), SHARES) for t in (times[0], times[-1]))
    return (walk(EASY, schedule, sampler, first, times=times, **options) - last).abs()


def order_of(sampler: str, **options: object) -> float:
    coarse, fine = (distances(ENDS["vp"], sampler, even_times(ENDS["vp"], steps), **options).max().item() for steps in (160, 320))
    return math.log2(coarse / fine)


@pytest.mark.parametrize("rest, order", [(0, 2), (1, 2), (2, 3), (3, 3)])
def test_one_last_step_of_first_order_caps_the_order(rest: int, order: int):
    assert order_of("dpm_fast", rest=rest) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("rest", [0, 1, 2, 3])
def test_evaluations_of_dpm_fast(rest: int):
    """3 (n - 1) + rest to any level that has noise; onto the data the last step is Euler's."""
    for low, expected in ((0.1, 3 * 3 + rest), (0.0, 3 * 2 + [2, 3, 3, 3][rest] + 1)):
        asked = 0

        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            return 0.5 * x

        times = [80.0, 10.0, 2.0, 0.5, low]
        for _ in stream(Run(torch.ones(1, 1), plan(ENDS["ve"], "dpm_fast", times=times, rest=rest), NoNoise()), denoiser):
            pass
        assert asked == expected


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", ENDS.values(), ids=ENDS)
def test_dpm_adaptive_keeps_its_tolerance(schedule: Schedule, order: int):
    """In one interval of the grid. The median path; those that start between the two modes magnify what each step is allowed."""
    for rtol in (1e-2, 1e-3, 1e-4):
        errors = distances(schedule, "dpm_adaptive", even_times(schedule, 1), order=order, rtol=rtol, atol=rtol)
        assert rtol / 10 < errors.median().item() < 2 * rtol
        assert errors.max().item() < 50 * rtol


def test_an_image_has_its_own_steps():
    """Bit for bit the same alone and beside others that need more steps, in float32, and whether it waits for them or they for it."""
    schedule = ENDS["vp"]
    x = torch.randn(5, 7) * torch.tensor([0.1, 1.0, 2.0, 3.0, 5.0])[:, None]
    prepared = plan(schedule, "dpm_adaptive", times=even_times(schedule, 3), rtol=1e-4, atol=1e-4)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        """Row by row, so that a batch cannot round differently."""
        return torch.stack([(row * (1 - at / 2000)).sin() for row, at in zip(x, t.tolist(), strict=True)])

    def end(x: Tensor) -> Tensor:
        return [state.x for state in stream(Run(x, prepared, NoNoise()), denoiser)][-1]

    together = end(x)
    for row in range(5):
        assert torch.equal(together[row : row + 1], end(x[row : row + 1]))


def test_what_no_step_can_reach_ends_all_the_same():
    """A tolerance below rounding is given up on at the smallest step, and an estimate that is not a number is reported, not looped over."""
    schedule = ENDS["flow"]
    near = torch.tensor([0.5, 0.4999999], dtype=torch.float64)
    run = Run(torch.ones(1, 4), plan(schedule, "dpm_adaptive", times=near, rtol=1e-30, atol=1e-30), NoNoise())
    assert bool(torch.isfinite([state.x for state in stream(run, EASY.denoiser(schedule))][-1]).all())
    run = Run(torch.ones(1, 4), plan(schedule, "dpm_adaptive", times=[0.9, 0.1]), NoNoise())
    with pytest.raises(NonFiniteError):
        list(stream(run, lambda x, t: torch.full_like(x, math.nan)))


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_float32_stays_float32(sampler: str):
    prepared = plan(ENDS["flow"], sampler, 4)
    single, double = (list(stream(Run(torch.ones(2, 3, dtype=d), prepared, NoNoise()), lambda x, t: 0.5 * x))[-1].x for d in DTYPES)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@pytest.mark.parametrize("r", [1 / 3, 1 / 2, 1.0])
def test_dpmpp_sde_looks_anywhere_in_its_step(r: float):
    """Without noise it is DPM-Solver++(2S), of order 2 for any r."""
    assert order_of("dpmpp_sde", eta=0.0, r=r) == pytest.approx(2, abs=0.1)


def test_what_r_may_be():
    with pytest.raises(ArgumentError, match=r"r 0\.0"):
        plan(ENDS["vp"], "dpmpp_sde", r=0.0)
