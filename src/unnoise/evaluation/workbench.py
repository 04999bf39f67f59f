"""The sampler workbench: every solver on every spacing, at equal numbers of evaluations, against one reference from the same noise.

    asked = bench(mixture_subject("sd"))                    or model_subject(model, ["a red apple"])
    report = compare(asked)                                 or, row by row: rows(asked, reference(asked.subject))

An evaluation is one question asked of the denoiser, so guidance counts as one. How many steps a budget pays for is found by running the
solver on one number, not by a formula: a second-order solver asks twice but on its last step, others ask more to start.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unnoise.diffusion import sampling
from unnoise.diffusion.grids import GRIDS, MIN_LOGSNR, grid
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import Denoiser, Plan, Run
from unnoise.diffusion.schedules import Schedule
from unnoise.diffusion.solvers import SOLVERS
from unnoise.errors import ArgumentError, UnknownName, UnnoiseError
from unnoise.evaluation import mixture
from unnoise.evaluation.mixture import Mixture
from unnoise.evaluation.verdicts import Pair, Report, Row
from unnoise.pipeline.job import resolve
from unnoise.pipeline.model import Model
from unnoise.pipeline.request import Request

BUDGETS = (4, 8, 12, 16, 20, 30, 50)
NUMBERS = 10_000  # that are drawn from the mixture at once
REFERENCE = 400  # evaluations of a reference that has to be computed
STARTERS = 6  # solvers that may become it
PROBE = Mixture((1.0,), (0.0,), (0.5,))
ONE = torch.ones(1, 1, dtype=torch.float64)
LIMIT = 10_000  # questions of a probe
PURE = -40.0  # a logsnr at which nothing but noise is left, for those that fall to -inf


@dataclass(frozen=True)
class Truth:
    """What is known of a closed form."""

    x: Tensor  # the end of the probability-flow ODE
    last_step: float  # the relative error of one exact answer at the cleanest trained time: what the step onto the data alone costs
    floor: float  # the expected Wasserstein-1 distance of as many perfect draws


@dataclass(frozen=True)
class Subject:
    """What is sampled: a denoiser, its process, and how a trajectory begins, with the same noise for every plan."""

    name: str
    process: str
    schedule: Schedule
    denoiser: Denoiser
    begin: Callable[[Plan], Run]
    truth: Truth | None = None


def mixture_subject(process: str = "sd", *, seed: int = 0, numbers: int = NUMBERS) -> Subject:
    """`mixture.TWO` on a process of `mixture.PROCESSES`, from the exact quantiles at its noisy end. Raises UnknownName."""
    return _closed_form(mixture.process(process), f"process {process}", seed, numbers)


def _closed_form(schedule: Schedule, process: str, seed: int, numbers: int) -> Subject:
    Streams([seed])  # refuses what is no seed before anything runs
    data, shares = mixture.TWO, mixture.shares(numbers)
    exact, denoiser = data.at(schedule, schedule.end, shares)[None], data.denoiser(schedule)
    whole = sampling.plan(schedule, times=[schedule.start, schedule.end])
    # a grid that starts later begins with the same noise at its own level, as a user's picture does
    noise = data.at(schedule, schedule.start, shares)[None] / sampling.initial(ONE, whole)

    def begin(plan: Plan) -> Run:
        return Run(sampling.initial(noise, plan), plan, Streams([seed]))

    first = torch.tensor([schedule.first], dtype=torch.float64)
    (last_step, *_) = distances(denoiser(data.at(schedule, schedule.first, shares)[None], first), exact)
    return Subject("a mixture of two Gaussians", process, schedule, denoiser, begin, Truth(exact, last_step, data.floor(numbers)))


def model_subject(model: Model, prompts: Sequence[str], *, seed: int = 0, pictures: int = 2) -> Subject:
    """A model on its own guidance scale and size, `pictures` of each prompt. Raises ArgumentError for prompts that cannot be drawn."""
    job = resolve(Request(prompt=tuple(prompts), num_images_per_prompt=pictures, seed=seed), model.spec)
    ask = model.start(job).cond

    def begin(plan: Plan) -> Run:
        noise = Streams(job.seeds)
        drawn = noise.draw(torch.empty(model.parts.shape(job), device=model.device))
        return Run(sampling.initial(drawn, plan), plan, noise, ask)

    drawn = f"{pictures} picture{'s' if pictures > 1 else ''} each"
    name = f"{model.spec.name}: {', '.join(map(repr, prompts))}, {drawn}, guidance {job.guidance_scale:g}"
    return Subject(name, f"schedule {model.spec.schedule.kind}", model.schedule, model.denoiser, begin)


@dataclass(frozen=True)
class Bench:
    """What is compared with what."""

    subject: Subject
    pairs: tuple[Pair, ...]
    budgets: tuple[int, ...]
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs) * len(self.budgets)


def bench(
    subject: Subject, samplers: Sequence[str] | None = None, spacings: Sequence[str] | None = None, budgets: Sequence[int] = BUDGETS
) -> Bench:
    """Every sampler and spacing by default. Raises UnknownName; ArgumentError for a budget that is none, noise that cannot be compared.

    A sampler that adds noise is compared by distribution, for which a few pictures do not do. On a model it is left out; by name, refused.
    """
    names = _known("sampler", samplers, SOLVERS)
    noisy = tuple(name for name in names if SOLVERS[name].stochastic) if subject.truth is None else ()
    if noisy and samplers is not None:
        raise ArgumentError(
            f"got sampler {noisy[0]!r}, which adds noise: from a model only deterministic ones are compared; compare it on the mixture"
        )
    if not budgets or not all(isinstance(budget, int) and budget >= 1 for budget in budgets):
        raise ArgumentError(f"got budgets {list(budgets)}: expected numbers of evaluations of at least 1")
    pairs = tuple((sampler, spacing) for sampler in names if sampler not in noisy for spacing in _known("spacing", spacings, GRIDS))
    return Bench(subject, pairs, tuple(sorted(set(budgets))), noisy)


def _known(kind: str, asked: Sequence[str] | None, known: dict[str, Any]) -> list[str]:
    names = list(known) if asked is None else list(dict.fromkeys(asked))
    for name in names:
        if name not in known:
            raise UnknownName(kind, name, known)
    if not names:
        raise ArgumentError(f"got no {kind}: expected at least one of {', '.join(known)}")
    return names


@dataclass(frozen=True)
class Reference:
    """Where the ODE ends. `error`: how far it may be off itself, relative to its root mean square."""

    x: Tensor
    summary: str
    error: float = 0.0


@dataclass
class Watch:
    """A denoiser that counts and times what it is asked, and answers at most `limit` questions."""

    denoiser: Denoiser
    limit: int
    asked: int = 0
    seconds: float = 0.0

    def __call__(self, x: Tensor, *rest: Any) -> Any:
        if self.asked == self.limit:
            raise ArgumentError("asked for more evaluations than its budget")
        began = time.perf_counter()
        answer = self.denoiser(x, *rest)
        if x.device.type != "cpu":
            torch.accelerator.synchronize()  # a GPU answers later than the call returns
        self.asked, self.seconds = self.asked + 1, self.seconds + time.perf_counter() - began
        return answer


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    x: Tensor | None
    steps: int
    evaluations: int
    seconds: float
    overhead: float
    failure: str = ""


@torch.no_grad()
def carry(
    subject: Subject, budget: int, sampler: str, steps: int = 20, spacing: str | None = None, times: Sequence[float] | Tensor | None = None
) -> Outcome:
    """Run a sampler to its end; sampler, steps, spacing and times are those of `sampling.plan`.

    An error becomes the outcome instead of being raised: of hundreds of runs one may fail, and the others go on.
    """
    watch, planned, x, failure = Watch(subject.denoiser, budget), 0, None, ""
    began = time.perf_counter()
    try:
        run = subject.begin(sampling.plan(subject.schedule, sampler, steps, spacing, times))
        planned = run.steps
        x = deque(sampling.stream(run, watch), maxlen=1).pop().x
    except Exception as error:
        failure = str(error) or type(error).__name__
    seconds = time.perf_counter() - began
    return Outcome(x, planned, watch.asked, seconds, seconds - watch.seconds, failure)


@dataclass(frozen=True)
class Costs:
    """How many questions a sampler asks, tried on one number whose denoiser is cheap: the exact one of N(0, 1/4).

    That depends on how many steps there are, and on whether the first starts from pure noise, where some ask once more; not on where else
    they lie. So what was tried on one spacing serves the others. An adaptive solver is not so regular: its real run is held to its budget.
    """

    schedule: Schedule
    tried: dict[tuple[str, int, bool], int] = field(default_factory=dict)

    def most_steps(self, pair: Pair, budget: int) -> int:
        """The most steps that ask at most `budget` questions; 0 where one step asks for more. The cost grows with the steps."""
        return bisect_right(range(1, budget + 1), budget, key=lambda steps: self.of(pair, steps))

    def of(self, pair: Pair, steps: int) -> int:
        """Questions of a run; 0 where it cannot be run, and the real run will say why."""
        try:
            times = grid(self.schedule, pair[1], steps)
        except UnnoiseError:
            return 0
        key = (pair[0], len(times), float(self.schedule.alpha(times[0])) == 0)
        if key not in self.tried:
            self.tried[key] = self._try(pair, steps)
        return self.tried[key]

    def _try(self, pair: Pair, steps: int) -> int:
        subject = Subject("probe", "", self.schedule, PROBE.denoiser(self.schedule), lambda plan: Run(ONE, plan, Streams([0])))
        outcome = carry(subject, LIMIT, sampler=pair[0], steps=steps, spacing=pair[1])
        return 0 if outcome.failure else outcome.evaluations


def rows(asked: Bench, reference: Reference) -> Iterator[Row]:
    """One row after another; leaving the loop stops the comparison."""
    costs = Costs(asked.subject.schedule)
    for pair in asked.pairs:
        for budget in asked.budgets:
            steps = costs.most_steps(pair, budget)
            too_dear = Outcome(None, 0, 0, 0.0, 0.0, f"one step asks for {costs.of(pair, 1)} evaluations")
            outcome = carry(asked.subject, budget, pair[0], steps, pair[1]) if steps else too_dear
            yield _row(pair, budget, outcome, reference)


def _row(pair: Pair, budget: int, outcome: Outcome, reference: Reference) -> Row:
    stochastic = SOLVERS[pair[0]].stochastic
    error, largest, mean = [float("nan")] * 3 if outcome.x is None else distances(outcome.x, reference.x, stochastic)
    return Row(
        sampler=pair[0],
        spacing=pair[1],
        stochastic=stochastic,
        budget=budget,
        steps=outcome.steps,
        evaluations=outcome.evaluations,
        error=error,
        largest=largest,
        mean=mean,
        seconds=outcome.seconds,
        overhead=outcome.overhead,
        failure=outcome.failure,
    )


def distances(x: Tensor, reference: Tensor, stochastic: bool = False) -> list[float]:
    """Relative root mean square, largest and mean absolute difference; of the sorted numbers where noise has mixed them."""
    x, reference = x.double(), reference.double()
    apart = (x.flatten().sort().values - reference.flatten().sort().values) if stochastic else x - reference
    return [_rms(apart) / _rms(reference), float(apart.abs().max()), float(apart.abs().mean())]


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def reference(subject: Subject, evaluations: int = REFERENCE) -> Reference:
    """The exact end where it is known; else the steadier of two solvers at `evaluations`, on a grid that is fine at both ends.

    A solver's steadiness is how little its end moves when it is given half the evaluations, which is also the error that is reported: more
    than the true one, since half the evaluations err more. The two come out of a heat at a quarter of the evaluations, and its starters are
    the steadiest on the closed form, on the same process. Raises ArgumentError where none finishes.
    """
    if truth := subject.truth:
        summary = f"the exact solution; the step from the cleanest trained time onto the data alone misses it by {truth.last_step:.1e}"
        return Reference(truth.x, summary, truth.last_step)
    known = [name for name, solver in SOLVERS.items() if not solver.stochastic and solver.order > 1]
    starters = [name for _, name, _ in _steadiest(_closed_form(subject.schedule, "", 0, 200), known, evaluations)[:STARTERS]]
    finalists = [name for _, name, _ in _steadiest(subject, starters, evaluations // 4)[:2]]
    found = _steadiest(subject, finalists, evaluations)
    if not found:
        raise ArgumentError("got a denoiser on which no reference finishes: expected finite estimates of x_0")
    (error, name, x), *others = found
    apart = "".join(f"; {other}, the next best, ends {_rms(x - end) / _rms(x):.1e} from it" for _, other, end in others)
    return Reference(x, f"{name} at {evaluations} evaluations, which moves by {error:.1e} when they are halved{apart}", error)


def _steadiest(subject: Subject, samplers: Sequence[str], evaluations: int) -> list[tuple[float, str, Tensor]]:
    """How far the end of each sampler moves between half the evaluations and all of them, and the end; smallest first."""
    found, costs = [], Costs(subject.schedule)
    for name in samplers:
        ends = []
        for budget in (evaluations // 2, evaluations):
            steps = max(2, costs.most_steps((name, "logsnr"), budget))
            ends.append(carry(subject, budget, sampler=name, times=fine_times(subject.schedule, steps)).x)
        coarse, fine = ends
        if coarse is not None and fine is not None:
            found.append((_rms(fine - coarse) / _rms(fine), name, fine))
    return sorted(found, key=lambda entry: entry[0])


def fine_times(schedule: Schedule, steps: int) -> Tensor:
    """steps + 1 falling times for a reference, even in sigma / (alpha + sigma) plus logsnr, each over its range, and the data at last.

    A grid even in the first alone is coarse near the data. One even in logsnr begins with a step out of all but pure noise whose length
    does not shrink: its ends converge, and not to the ODE's.
    """
    noisy = max(float(schedule.logsnr(schedule.start)), PURE)
    logsnr = np.linspace(noisy, float(schedule.logsnr(schedule.first)), 20_001)
    share, clipped = 1 / (1 + np.exp(logsnr / 2)), np.maximum(logsnr, MIN_LOGSNR)
    measure = (share[0] - share) / np.ptp(share) + (clipped - clipped[0]) / np.ptp(clipped)
    times = schedule.time(torch.from_numpy(np.interp(np.linspace(0, 2, steps), measure, logsnr)))
    times[0], times[-1] = schedule.start, schedule.first  # not a rounding error beside them
    return torch.cat([times, torch.tensor([schedule.end], dtype=torch.float64)])


def compare(asked: Bench, evaluations: int = REFERENCE) -> Report:
    """Everything at once. Raises what `reference` does."""
    against = reference(asked.subject, evaluations)
    return report(asked, against, list(rows(asked, against)))


def report(asked: Bench, against: Reference, found: Sequence[Row]) -> Report:
    """The rows with what they mean."""
    subject = asked.subject
    place = against.x.device
    device = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    where = f"{device}, {torch.get_num_threads()} threads"
    return Report(
        subject=subject.name,
        process=subject.process,
        reference=against.summary,
        reference_error=against.error,
        device=where,
        budgets=asked.budgets,
        rows=tuple(found),
        left_out=asked.left_out,
        floor=subject.truth.floor if subject.truth else None,
    )
