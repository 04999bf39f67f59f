"""The comparison of solvers as a picture. matplotlib comes with the extra `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unnoise.errors import MissingExtra
from unnoise.evaluation.verdicts import Pair, Report, Row, curves, pareto, ranking, recommend

COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6a3f")  # Okabe & Ito: told apart by the colour-blind too
CHOSEN = "#d55e00"


def require() -> None:
    """Raise MissingExtra now rather than after an hour of measuring."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra("matplotlib", "evaluate") from None


def plot(report: Report, picture: Path) -> None:
    """Error against evaluations on logarithmic axes. The recommended pair and the best samplers have names, all others are grey.

    Raises MissingExtra without matplotlib.
    """
    require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    _draw_curves(axes, report)
    _draw_front(axes, pareto(report.rows))
    if report.reference_error > 0:
        axes.axhline(
            report.reference_error, color="black", linewidth=1, linestyle=":", zorder=1, label="below this, differences say nothing"
        )
    _dress(axes, report)
    figure.savefig(picture, dpi=130)


def _draw_curves(axes: Any, report: Report) -> None:
    found, every = recommend(report), curves(report)
    for rows in every.values():
        axes.plot(*_points(rows), color="0.85", linewidth=0.8, zorder=1)
    if found:
        chosen = (found.sampler, found.spacing)
        label = f"{_name(chosen)}  (recommended)"
        axes.plot(*_points(every[chosen]), color=CHOSEN, linewidth=2.8, marker="o", markersize=5, zorder=4, label=label)
    others = [rows for rows in ranking(report) if found is None or rows[0].sampler != found.sampler]
    for rows, colour in zip(others, COLOURS, strict=False):  # more could not be told apart
        axes.plot(*_points(rows), color=colour, linewidth=1.4, marker="o", markersize=3, zorder=3, label=_name(rows[0].pair))


def _points(rows: list[Row]) -> tuple[list[int], list[float]]:
    """Evaluations and errors: the coordinates of a curve."""
    return [row.evaluations for row in rows], [row.error for row in rows]


def _draw_front(axes: Any, front: list[Row]) -> None:
    """A staircase: what is reached for so many evaluations or fewer."""
    axes.step(*_points(front), where="post", color="black", linewidth=1, linestyle="--", zorder=5, label="Pareto front")


def _name(pair: Pair) -> str:
    return f"{pair[0]} on {pair[1]}"


def _dress(axes: Any, report: Report) -> None:
    from matplotlib.ticker import NullLocator

    axes.set(xlabel="evaluations of the denoiser", ylabel="error, relative to the reference", title=f"{report.subject}\n{report.process}")
    axes.title.set_fontsize(10)
    axes.set_xticks(report.budgets, [str(budget) for budget in report.budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0.9 * report.budgets[0], 1.1 * report.budgets[-1])
    shown = [row.error for row in report.rows if row.comparable]
    axes.set_ylim(top=min(max(shown, default=1.0), 3.0))  # a solver that blows up must not squeeze the rest together
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=8, frameon=True, framealpha=0.9)
