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
from unnoise.errors import ArgumentError, NonFiniteError


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
    """One trajectory of b images. Ask `x` and `t`, one time an image; give `answer`; until `done`. `past`: steps taken before its first.

    Between two steps a run is its `snapshot`, from which `resumed` goes on bit for bit.
    """

    def __init__(self, x: Tensor, plan: Plan, noise: Noise, cond: Rows | None = None, past: Sequence[Past] = (), index: int = 0):
        self.plan, self.noise, self.cond = plan, noise, cond
        self.index = index
        self.state = x  # at the start of the current step
        self._past = list(past)
        self._failed: Tensor | None = None  # on x's device: the first step after which the state was not finite, 0 if none
        self._begin()

    @property
    def steps(self) -> int:
        return len(self.plan.levels) - 1

    @property
    def done(self) -> bool:
        return self.index == self.steps

    def _begin(self) -> None:
        self._noise_before = self.noise.states() if isinstance(self.noise, Streams) else []  # some solvers draw before they ask
        if self.done:
            return
        here, there = self.plan.levels[self.index : self.index + 2]
        self._step = Step(
            self.state, here, there, self.index, self.steps, self.noise, self.plan.schedule, self.plan.straight, past=self._past
        )
        self._solution = self.plan.step(self._step)
        self.x, self.t = self._question(next(self._solution))
        self._first: Tensor | None = None

    @staticmethod
    def _question(asked: tuple[Tensor, Level | Sequence[Level]]) -> tuple[Tensor, list[float]]:
        x, levels = asked
        return x, [levels.t] * len(x) if isinstance(levels, Level) else [one.t for one in levels]

    def answer(self, estimate: Tensor | Estimate) -> State | None:
        """Take the estimate at (x, t). Gives the state when it completed a step. Raises NonFiniteError, at the last step at the latest."""
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
        self._check(x)
        state = State(self.index, self.steps, self._step.next.t, x, x0)
        self._begin()
        return state

    def _check(self, x: Tensor) -> None:
        """Note whether x is finite. A state that is not is refused at once on a CPU; elsewhere at the end, for asking waits there."""
        if x.device.type == "cpu" and math.isfinite(float(x.sum(dtype=torch.float32))):  # the sum says it in half the time
            return
        failed = torch.where(torch.isfinite(x).all(), 0, self.index)
        self._failed = failed if self._failed is None else torch.where(self._failed > 0, self._failed, failed)
        if (x.device.type == "cpu" or self.done) and (step := int(self._failed)):
            raise NonFiniteError(f"denoiser: the latents are not finite after step {step} of {self.steps}")

    def snapshot(self) -> dict[str, Tensor]:
        """Return what the steps to come depend on beside plan and condition, as tensors that a safetensors file can hold.

        A run within a step is saved as it was at the step's start. Raises ArgumentError for noise that is no `Streams`.
        """
        if not isinstance(self.noise, Streams):
            raise ArgumentError(f"got noise of type {type(self.noise).__name__}: expected Streams, whose state can be saved")
        kept = {"index": torch.tensor(self.index), "state": self.state}
        kept |= {} if self._failed is None else {"failed": self._failed}
        for i, past in enumerate(self._past):
            level = torch.tensor([past.level.t, past.level.alpha, past.level.sigma], dtype=torch.float64)
            kept |= {f"past.{i}.level": level, f"past.{i}.x": past.x, f"past.{i}.x0": past.x0}
        return kept | {f"noise.{i}": state for i, state in enumerate(self._noise_before)}

    @staticmethod
    def resumed(snapshot: Mapping[str, Tensor], plan: Plan, noise: Streams, cond: Rows | None = None) -> Run:
        """Return the run that a snapshot was taken of. noise: streams of the same seeds; they are set to where they stood."""
        noise.restore([snapshot[f"noise.{i}"] for i in range(len(noise.seeds))])
        past = []
        while f"past.{len(past)}.x" in snapshot:
            of = f"past.{len(past)}"
            past.append(Past(Level(*snapshot[f"{of}.level"].tolist()), snapshot[f"{of}.x"], snapshot[f"{of}.x0"]))
        run = Run(snapshot["state"], plan, noise, cond, past, int(snapshot["index"]))
        run._failed = snapshot.get("failed")
        return run


def advance(runs: Sequence[Run], denoiser: Denoiser) -> list[State | Exception | None]:
    """One call of the denoiser that answers the question of every run; gives the state of each that completed a step.

    A run that cannot go on gets its error in the list, not raised, so that the others go on; it must not be asked again. Where the call
    itself fails (out of memory, a condition that the network refuses), the runs are asked in halves, down to the one that is to blame.

    All runs must be unfinished and have images of one shape, dtype and device. The denoiser is given t (b,) there too, but on the CPU if it
    has `times_on_cpu`, and for Apple's GPUs, which have no float64.
    """
    x, t, cond = _questions(runs, denoiser)
    answer = None
    try:
        answer = denoiser(x, t) if cond is None else denoiser(x, t, cond)
    except Exception as error:
        if len(runs) == 1:
            return [error]
    if answer is None:  # behind the handler, so that the error lets go of the tensors that did not fit
        half = len(runs) // 2
        return advance(runs[:half], denoiser) + advance(runs[half:], denoiser)
    estimate = answer if isinstance(answer, Estimate) else Estimate(answer)
    counts = [len(run.x) for run in runs]
    parts = ([None] * len(runs) if value is None else value.split(counts) for value in estimate)
    return [_answer(run, Estimate(*part)) for run, *part in zip(runs, *parts, strict=True)]


def _questions(runs: Sequence[Run], denoiser: Denoiser) -> tuple[Tensor, Tensor, Any]:
    """x, t and the conditions of all runs, one after another."""
    x = torch.cat([run.x for run in runs])
    on_cpu = x.device.type == "mps" or getattr(denoiser, "times_on_cpu", False)
    t = torch.tensor([t for run in runs for t in run.t], dtype=torch.float64, device="cpu" if on_cpu else x.device)
    conds = [run.cond for run in runs]
    return x, t, None if conds[0] is None else conds[0].stack(conds)


def _answer(run: Run, estimate: Estimate) -> State | Exception | None:
    try:
        return run.answer(estimate)
    except Exception as error:  # out of memory too: the neighbours keep their states
        return error


def stream(run: Run, denoiser: Denoiser) -> Iterator[State]:
    """The states of one run, step by step. Raises NonFiniteError."""
    while not run.done:
        state = advance([run], denoiser)[0]
        if isinstance(state, Exception):
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
