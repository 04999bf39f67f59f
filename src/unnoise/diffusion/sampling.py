"""The driver. A `Run` is one trajectory: it says which point it wants denoised next, and takes the answer.

`advance` answers the questions of many runs, at different steps and with different solvers, by one batched call of the denoiser.
`stream` and `sample` are the same with one run. Whoever iterates over the states shows progress, takes previews, or stops by leaving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unnoise.diffusion.grids import default, grid
from unnoise.diffusion.noise import Noise, Streams
from unnoise.diffusion.schedules import Discrete, Schedule
from unnoise.diffusion.solvers import solver
from unnoise.diffusion.steps import Level, Past, Solution, Step
from unnoise.errors import ArgumentError, NonFiniteError, UnnoiseError


class Estimate(NamedTuple):
    """A denoiser's answer: x_0, and the learned variance in -1..1 where the network has one."""

    x0: Tensor
    variance: Tensor | None = None
    push: Tensor | None = None  # of a classifier, and x_0 has sigma²/alpha of it: the gradient of log p(label | x), scaled


class Rows(Protocol):
    """Conditions with one row an image: those of several runs stack."""

    @staticmethod
    def stack(conds: Sequence[Any], /) -> Any: ...


Denoiser = Callable[..., Tensor | Estimate]  # (x, t) or (x, t, cond): x (b, ...), t (b,) float64 -> x_0


@dataclass(frozen=True)
class State:
    """Where a run stands after a step."""

    step: int  # steps taken
    steps: int
    t: float
    x: Tensor
    x0: Tensor  # the newest estimate of the picture


ALL_NOISE = 0.01  # a process that starts with less than this of the data starts from all but pure noise: see Step.position
KEPT = 4  # finished steps that a solver may look back on; more would hold every estimate of a thousand steps in memory


@dataclass(frozen=True)
class Plan:
    """How to get from the first time to the last: immutable, shared freely between runs and threads."""

    schedule: Schedule
    levels: tuple[Level, ...]
    step: Callable[[Step], Solution]
    straight: bool


def plan(
    schedule: Schedule,
    sampler: str = "dpmpp_2m",
    steps: int = 20,
    spacing: str | None = None,
    times: Sequence[float] | Tensor | None = None,
    spacing_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """Fix the times and the solver. `times`, falling, are used as they are; else `spacing`, its options and `steps` make them.

    Raises UnknownName for a sampler, spacing or option that does not exist, ArgumentError for impossible steps or times.
    """
    step = solver(sampler).with_options(options)
    spacing = default_spacing(schedule, sampler) if spacing is None else spacing
    grid_times = grid(schedule, spacing, steps, **(spacing_options or {})) if times is None else torch.as_tensor(times, dtype=torch.float64)
    if grid_times.ndim != 1 or len(grid_times) < 2 or not bool((grid_times[1:] < grid_times[:-1]).all()):
        raise ArgumentError("times must be at least two numbers, each below the one before it")
    if not schedule.end <= float(grid_times[-1]) < float(grid_times[0]) <= schedule.start:
        got = f"times from {float(grid_times[0])} to {float(grid_times[-1])}"
        raise ArgumentError(f"got {got}: this schedule's run from {schedule.start} at most to {schedule.end} at least")
    straight = float(schedule.alpha(schedule.start)) < ALL_NOISE
    scales = (grid_times, schedule.alpha(grid_times), schedule.sigma(grid_times))
    return Plan(schedule, tuple(map(Level, *(values.tolist() for values in scales))), step, straight)


def default_spacing(schedule: Schedule, sampler: str) -> str:
    """The schedule's own; but a consistency function is wasted on its cleanest levels, which the even spacings go to."""
    return "trailing" if solver(sampler).order == 0 else default(schedule)


def initial(noise: Tensor, plan: Plan) -> Tensor:
    """The state at the first time from unit-variance noise. A variance-preserving process keeps all of it: sigma there is almost 1."""
    first = plan.levels[0]
    return noise if isinstance(plan.schedule, Discrete) else first.sigma * noise


class Run:
    """One trajectory of b images. Ask `x` and `t`, one time an image; give `answer`; until `done`. `past`: steps taken before its first."""

    def __init__(self, x: Tensor, plan: Plan, noise: Noise, cond: Rows | None = None, past: Sequence[Past] = ()):
        self.plan, self.noise, self.cond = plan, noise, cond
        self.index = 0
        self.state = x  # at the start of the current step
        self._past = list(past)
        self._begin()

    @property
    def steps(self) -> int:
        return len(self.plan.levels) - 1

    @property
    def done(self) -> bool:
        return self.index == self.steps

    def _begin(self) -> None:
        here, there = self.plan.levels[self.index : self.index + 2]
        place = (self.state, here, there, self.index, self.steps)
        self._step = Step(*place, self.noise, self.plan.schedule, self.plan.straight, self._past)
        self._solution = self.plan.step(self._step)
        self.x, self.t = self._question(next(self._solution))
        self._first: Tensor | None = None

    @staticmethod
    def _question(asked: tuple[Tensor, Level | Sequence[Level]]) -> tuple[Tensor, list[float]]:
        x, levels = asked
        return x, [levels.t] * len(x) if isinstance(levels, Level) else [one.t for one in levels]

    def answer(self, estimate: Tensor | Estimate) -> State | None:
        """Take the estimate at (x, t). Gives the state when it completed a step. Raises NonFiniteError."""
        x0, self._step.variance, self._step.push = estimate if isinstance(estimate, Estimate) else Estimate(estimate)
        if self._first is None:
            self._first = x0
        try:
            self.x, self.t = self._question(self._solution.send(x0))
            return None
        except StopIteration as stop:
            return self._finish(stop.value, x0)

    def _finish(self, x: Tensor, x0: Tensor) -> State:
        assert self._first is not None  # a solver asks at least once
        self._past = [*self._past, Past(self._step.here, self._step.x, self._first)][-KEPT:]
        self.state = x
        self.index += 1
        if not (math.isfinite(float(x.sum(dtype=torch.float32))) or bool(torch.isfinite(x).all())):  # the sum says it in half the time
            raise NonFiniteError(f"denoiser: the latents are not finite after step {self.index} of {self.steps}")
        state = State(self.index, self.steps, self._step.next.t, x, x0)
        if not self.done:
            self._begin()
        return state


def advance(runs: Sequence[Run], denoiser: Denoiser) -> list[State | UnnoiseError | None]:
    """One call of the denoiser that answers the question of every run; gives the state of each that completed a step.

    A run that cannot go on (NonFiniteError, a learned variance that is not there) gets its error in the list, not raised, so that the
    others go on; it must not be asked again.

    All runs must be unfinished and have images of one shape, dtype and device. The denoiser is given t there too, but for Apple's GPUs,
    which have no float64: there it stays on the CPU.
    """
    x = torch.cat([run.x for run in runs])
    counts = [len(run.x) for run in runs]
    times = [t for run in runs for t in run.t]
    t = torch.tensor(times, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
    conds = [run.cond for run in runs]
    first = conds[0]
    answer = denoiser(x, t) if first is None else denoiser(x, t, first.stack(conds))
    estimate = answer if isinstance(answer, Estimate) else Estimate(answer)
    parts = ([None] * len(runs) if value is None else value.split(counts) for value in estimate)
    return [_answer(run, Estimate(*part)) for run, *part in zip(runs, *parts, strict=True)]


def _answer(run: Run, estimate: Estimate) -> State | UnnoiseError | None:
    try:
        return run.answer(estimate)
    except UnnoiseError as error:
        return error


def stream(run: Run, denoiser: Denoiser) -> Iterator[State]:
    """The states of one run, step by step. Raises NonFiniteError."""
    while not run.done:
        state = advance([run], denoiser)[0]
        if isinstance(state, UnnoiseError):
            raise state
        if state is not None:
            yield state


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    x: Tensor,
    *,
    schedule: Schedule,
    sampler: str = "dpmpp_2m",
    steps: int = 20,
    spacing: str | None = None,
    times: Sequence[float] | Tensor | None = None,
    spacing_options: Mapping[str, Any] | None = None,
    seed: int | Noise = 0,
    cond: Rows | None = None,
    **options: Any,
) -> Tensor:
    """Carry x from the first time to the last.

    denoiser: any callable (x, t) -> x_0, with cond as a third argument where one is given. x (b, ...): the state at the first time.
    seed: image i of the batch draws its noise from seed + i, after the one noise that x may have been made of; or a Noise of your own,
    used from where it stands. options: the sampler's, such as eta; spacing_options: the spacing's, such as {"ending": "first"}.
    """
    noise = Streams(range(seed, seed + len(x))) if isinstance(seed, int) else seed
    if isinstance(seed, int):
        noise.draw(x)  # dropped: a step that drew it again would add the very noise that is in x
    run = Run(x, plan(schedule, sampler, steps, spacing, times, spacing_options, **options), noise, cond)
    for state in stream(run, denoiser):
        x = state.x
    return x
