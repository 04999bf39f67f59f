"""What a comparison of solvers found, and what follows from it: rows, the Pareto front, the recommended pair, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Any

NEAR = 1.1  # errors within a tenth of each other are called equal
DIGITS = 1e-12  # below this, rounding is compared

Pair = tuple[str, str]  # sampler, spacing


@dataclass(frozen=True)
class Row:
    """One run: a sampler on a spacing, with as many steps as its budget of evaluations pays for.

    error: root mean square of the difference from the reference, over the reference's own root mean square. largest, mean: of the absolute
    difference, in units of the data. For a stochastic sampler the numbers are sorted first, so that distributions are compared and `mean`
    is the Wasserstein-1 distance. seconds: the whole run; overhead: what of it was spent outside the denoiser. All three errors are NaN
    where `failure` says why there is no result.
    """

    sampler: str
    spacing: str
    stochastic: bool
    budget: int
    steps: int
    evaluations: int  # questions that the denoiser was asked
    error: float
    largest: float
    mean: float
    seconds: float
    overhead: float
    failure: str = ""

    @property
    def pair(self) -> Pair:
        return self.sampler, self.spacing

    @property
    def comparable(self) -> bool:
        """Whether the error can be set against another row's, point by point."""
        return not self.failure and not self.stochastic


@dataclass(frozen=True)
class Report:
    """A comparison. reference_error: of the reference itself; row errors below it say nothing. floor: the W1 of as many perfect draws."""

    subject: str
    process: str
    reference: str
    reference_error: float
    device: str
    budgets: tuple[int, ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]  # samplers that were not compared: they add noise, and the reference is that of the ODE
    floor: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """A pair, the geometric mean of its errors, and at how many budgets it is within a tenth (and the reference's error) of the best."""

    sampler: str
    spacing: str
    error: float
    near_best: int
    steady: bool  # whether more evaluations never made it worse


def pareto(rows: Iterable[Row]) -> list[Row]:
    """The comparable rows than which no other has a smaller error for as few evaluations; by evaluations."""
    front: list[Row] = []
    for row in sorted((row for row in rows if row.comparable), key=lambda row: (row.evaluations, row.error)):
        if not front or row.error < front[-1].error:
            front.append(row)
    return front


def best(rows: Iterable[Row], budget: int, count: int = 3) -> list[Row]:
    """The comparable rows of a budget with the smallest errors."""
    return sorted((row for row in rows if row.comparable and row.budget == budget), key=lambda row: row.error)[:count]


def recommend(report: Report) -> Recommendation | None:
    """The pair with the smallest geometric mean of its errors over all budgets; None where no deterministic one finished at all of them.

    A pair that failed at a budget is out. So is, while any other is left, one that surprises: more evaluations raised its error by more
    than a tenth. No error is known better than the reference: a smaller one counts as the reference's, and a growth by less is none.
    """
    whole = {pair: rows for pair, rows in curves(report).items() if len(rows) == len(report.budgets)}
    if not whole:
        return None
    least = max(report.reference_error, DIGITS)
    steady = {pair: rows for pair, rows in whole.items() if _steady(rows, least)}
    pair, rows = min((steady or whole).items(), key=lambda item: _geometric(item[1], least))
    near = sum(row.error <= NEAR * best(report.rows, row.budget, 1)[0].error + least for row in rows)
    return Recommendation(*pair, _geometric(rows, least), near, _steady(rows, least))


def noisy(report: Report) -> list[Row]:
    """Of each sampler that adds noise and each budget the row with the smallest Wasserstein-1 distance, by name and budget."""
    finished = sorted(
        (row for row in report.rows if row.stochastic and not row.failure), key=lambda row: (row.sampler, row.budget, row.mean)
    )
    return [next(rows) for _, rows in groupby(finished, key=lambda row: (row.sampler, row.budget))]


def ranking(report: Report) -> list[list[Row]]:
    """Every sampler's rows on the spacing that suits it, one a budget; best sampler first. Those that failed somewhere come last."""

    def rank(rows: list[Row]) -> tuple[int, float]:
        return -len(rows), _geometric(rows, report.reference_error)

    found: dict[str, list[Row]] = {}
    for rows in sorted(curves(report).values(), key=rank):
        found.setdefault(rows[0].sampler, rows)
    return list(found.values())


def curves(report: Report) -> dict[Pair, list[Row]]:
    """The comparable rows of each pair, by budget."""
    found: dict[Pair, list[Row]] = {}
    for row in sorted((row for row in report.rows if row.comparable), key=lambda row: row.budget):
        found.setdefault(row.pair, []).append(row)
    return found


def _geometric(rows: Sequence[Row], least: float) -> float:
    return math.exp(sum(math.log(max(row.error, least, DIGITS)) for row in rows) / len(rows))


def _steady(rows: Sequence[Row], least: float) -> bool:
    return all(after.error <= NEAR * before.error + least for before, after in pairwise(rows))


def as_json(report: Report) -> dict[str, Any]:
    """Everything, as JSON holds it: None for the numbers of a row that failed."""
    rows = [{key: None if value != value else value for key, value in asdict(row).items()} for row in report.rows]
    front = [{"sampler": row.sampler, "spacing": row.spacing, "budget": row.budget} for row in pareto(report.rows)]
    found = recommend(report)
    return {**asdict(report), "rows": rows, "pareto": front, "recommended": asdict(found) if found else None}


def verdict(report: Report) -> str:
    """The recommendation in one line."""
    found = recommend(report)
    if found is None:
        return "no recommendation: no deterministic sampler finished at every budget"
    surprise = "" if found.steady else "; more evaluations sometimes made it worse"
    return (
        f"recommended: {found.sampler} on {found.spacing}, geometric mean error {found.error:.2e}, "
        f"within a tenth of the best at {found.near_best} of {len(report.budgets)} budgets{surprise}"
    )


def notes(report: Report) -> list[str]:
    """What a reader must know before the numbers."""
    lines = [f"{report.subject}, {report.process}, on {report.device}", f"reference: {report.reference}"]
    if report.left_out:
        names = ", ".join(report.left_out)
        lines.append(f"left out, because they add noise and the reference is the ODE's: {names}; the mixture compares their distributions")
    return lines


def markdown(report: Report) -> str:
    """The comparison as a page."""
    parts = [f"# Solvers on {report.subject}", "\n".join(f"- {line}" for line in [*notes(report), verdict(report)])]
    parts += [f"## Every sampler on the spacing that suits it\n\n{ERRORS}", _sampler_table(report)]
    parts += ["## The best of each budget", _budget_table(report)]
    if noisy(report):
        parts += ["## Samplers that add noise", _noise_intro(report), _noise_table(report)]
    if failures := _failures(report.rows):
        parts += ["## Without a result", "\n".join(f"- {line}" for line in failures)]
    return "\n\n".join(parts) + "\n"


ERRORS = (
    "The error is the root mean square of the difference from the reference, over the reference's own. A column is a budget of evaluations "
    "of the denoiser; guidance counts as one."
)


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _sampler_table(report: Report) -> str:
    rows = []
    for curve in ranking(report):
        errors = {row.budget: f"{row.error:.2e}" for row in curve}
        finest = curve[-1]
        own = f"{1e3 * finest.overhead / finest.evaluations:.2f}"
        rows.append([*(f"`{name}`" for name in finest.pair), *(errors.get(budget, "–") for budget in report.budgets), own])
    return table(["sampler", "spacing", *report.budgets, "own ms an evaluation"], rows)


def _budget_table(report: Report) -> str:
    rows = [
        [row.budget, f"`{row.sampler}`", f"`{row.spacing}`", row.steps, row.evaluations, f"{row.error:.2e}", f"{row.largest:.2e}"]
        for budget in report.budgets
        for row in best(report.rows, budget)
    ]
    return table(["budget", "sampler", "spacing", "steps", "evaluations", "error", "largest"], rows)


def _noise_intro(report: Report) -> str:
    return (
        "The Wasserstein-1 distance between what was drawn and the data, on the best spacing. As many perfect draws have "
        f"{report.floor:.2e}; figures near it say only that the sampler is good. Samplers for distilled models are at home on those."
    )


def _noise_table(report: Report) -> str:
    rows = []
    for sampler, found in groupby(noisy(report), key=lambda row: row.sampler):
        least = {row.budget: row for row in found}
        cells = [f"{least[budget].mean:.2e} {least[budget].spacing}" if budget in least else "–" for budget in report.budgets]
        rows.append([f"`{sampler}`", *cells])
    return table(["sampler", *report.budgets], rows)


def _failures(rows: Iterable[Row]) -> list[str]:
    """One line for each pair and reason."""
    failed = sorted((row for row in rows if row.failure), key=lambda row: (*row.pair, row.failure, row.budget))
    groups = groupby(failed, key=lambda row: (*row.pair, row.failure))
    return [
        f"`{sampler}` on `{spacing}` at {', '.join(str(row.budget) for row in found)}: {why}" for (sampler, spacing, why), found in groups
    ]
