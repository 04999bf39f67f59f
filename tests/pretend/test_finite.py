"""A state that is not finite is refused and named by its step, although a device is asked once, at the last step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretend.device import WHERE, PretendDevice
from unnoise.diffusion import schedules
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import Run, State, advance, plan
from unnoise.errors import NonFiniteError

STEPS, PLAN = 5, plan(schedules.flow(shift=3.0), "euler", 5)


def run(where: torch.device | str, seed: int = 0) -> Run:
    return Run(torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).to(where), PLAN, Streams((seed,)))


class Breaks:
    """A denoiser whose answer for one row is NaN, or infinite, at one call, and fine at every other."""

    times_on_cpu = True

    def __init__(self, row: int, call: int, value: float):
        self.row, self.call, self.value, self.calls = row, call, value, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        rows = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        return torch.where(rows == self.row, self.value, x / 2) if self.calls == self.call else x / 2


def answers(runs: list[Run], denoiser: Breaks) -> list[list[State | Exception | None]]:
    """All steps' answers; a run that failed is not asked again."""
    steps = []
    while going := [one for one in runs if not one.done]:
        steps.append(advance(going, denoiser))
        runs = [one for one, answer in zip(going, steps[-1], strict=True) if not isinstance(answer, Exception)]
    return steps


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("call", range(1, STEPS + 1))
def test_the_step_is_named_at_the_end(value: float, call: int):
    with PretendDevice() as device:
        runs = [run(WHERE, seed) for seed in range(3)]
        steps = answers(runs, Breaks(1, call, value))
        assert len(steps) == STEPS and all(isinstance(answer, State) for step in steps[:-1] for answer in step)
        first, wrong, last = steps[-1]
        assert isinstance(wrong, NonFiniteError) and f"not finite after step {call} of {STEPS}" in str(wrong)
        assert isinstance(first, State) and isinstance(last, State)
        assert len(device.reads) == 3  # one a run, at its end
        with device.silent():
            alone = answers([run("cpu", 2)], Breaks(1, call, value))[-1][0]
            assert isinstance(alone, State) and torch.equal(last.x.cpu(), alone.x)


@pytest.mark.parametrize("call", [1, 3, STEPS])
def test_the_cpu_refuses_at_once(call: int):
    steps = answers([run("cpu", seed) for seed in range(2)], Breaks(0, call, torch.nan))
    wrong = steps[call - 1][0]
    assert isinstance(wrong, NonFiniteError) and f"not finite after step {call} of {STEPS}" in str(wrong)
    assert len(steps) == STEPS and len(steps[-1]) == (2 if call == STEPS else 1)


def test_no_number_is_read_before_the_end():
    with PretendDevice() as device:
        one, denoiser = run(WHERE), Breaks(0, 2, torch.nan)
        for _ in range(STEPS - 1):
            advance([one], denoiser)
        assert device.reads == []
        assert isinstance(advance([one], denoiser)[0], NonFiniteError)


def test_a_run_that_was_saved_still_names_the_step():
    with PretendDevice() as device:
        one = run(WHERE)
        for _ in range(3):
            advance([one], Breaks(0, 1, torch.nan))
        snapshot = one.snapshot()
        assert device.reads == []
        resumed, answer = Run.resumed(snapshot, PLAN, Streams((0,))), None
        while not resumed.done:
            (answer,) = advance([resumed], Breaks(0, 9, torch.nan))
        assert isinstance(answer, NonFiniteError) and "not finite after step" in str(answer)
