"""What `solvers.py` found: who won, as Markdown, as figures to keep, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schedulers import DATA, FIRST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUDGETS = (5, 10, 20, 40, 80, 160)
PROCESSES = {"sd": "Stable Diffusion's table", "flow": "flow, shift 1", "flow_shift3": "flow, shift 3"}
ENDS = {DATA: "onto the data", FIRST: "onto the cleanest level"}
OPTION = ", order {}"  # in the name of a sampler that is not run with its default
THEIRS, BEST, ONE = "diffusers, best at this N", "ours, best pair at this N", "ours, one pair for all N"
COLOURS = {BEST: "#d55e00", ONE: "#0072b2", "ours, one pair for N up to 20": "#009e73"}  # Okabe & Ito: for the colour-blind too


@dataclass(frozen=True)
class Row:
    """One method at one budget. The errors are NaN where its state is."""

    name: str
    budget: int
    evaluations: int
    end: str
    largest: float
    w1: float


@dataclass(frozen=True)
class Race:
    """Both sides of one process, mixture, end and measure."""

    process: str
    mixture: str
    end: str
    metric: str
    ours: list[Row]
    theirs: list[Row]

    @property
    def title(self) -> str:
        measure = "largest error" if self.metric == "largest" else "W1"
        return f"{PROCESSES[self.process]}, {ENDS[self.end]}, {self.mixture}: {measure}"

    def error(self, row: Row) -> float:
        return getattr(row, self.metric)

    def best(self, rows: list[Row]) -> dict[int, Row]:
        return {n: min((row for row in rows if row.budget == n), key=self.error) for n in BUDGETS}

    def pairs(self) -> dict[str, dict[int, Row]]:
        """Ours with default options that can be run at every budget."""
        found: dict[str, dict[int, Row]] = {}
        for row in self.ours:
            if OPTION.format("") in row.name:
                continue
            found.setdefault(row.name, {})[row.budget] = row
        return {name: rows for name, rows in found.items() if len(rows) == len(BUDGETS)}

    def one_pair(self, budgets: Sequence[int] = BUDGETS) -> dict[int, Row]:
        """The lowest mean of log errors."""
        return min(self.pairs().values(), key=lambda rows: sum(math.log(self.error(rows[n])) for n in budgets))

    def safest(self) -> dict[int, Row]:
        """Of which the worst ratio to diffusers' best is smallest."""
        rival = self.best(self.theirs)
        return min(self.pairs().values(), key=lambda rows: max(self.error(rows[n]) / self.error(rival[n]) for n in BUDGETS))

    def lines(self) -> dict[str, dict[int, Row]]:
        return {
            "diffusers, best at this N": self.best(self.theirs),
            "ours, best pair at this N": self.best(self.ours),
            "ours, one pair for all N": self.one_pair(),
            "ours, one pair for N up to 20": self.one_pair(BUDGETS[:3]),
            "ours, the pair that loses least": self.safest(),
        }

    def ratios(self, rows: dict[int, Row]) -> list[float]:
        """Ours over diffusers': at most 1 is what is wanted."""
        rival = self.best(self.theirs)
        return [self.error(rows[n]) / self.error(rival[n]) for n in BUDGETS]


def markdown(races: list[Race], failed: list[dict[str, str]], about: dict[str, str]) -> str:
    head = ", ".join(f"{name} {version}" for name, version in about.items())
    lines = ["# Solvers: error at equal evaluations", "", f"Made by `python benchmarks/solvers.py --write` ({head}).", ""]
    lines += [
        "Where one line has several methods, each stands below its error. Ratios: ours over diffusers' best; at most 1 is better.",
        "",
    ]
    for race in races:
        lines += [f"## {race.title}", "", *table(race), ""]
    return "\n".join([*lines, *_failed(failed)]) + "\n"


def table(race: Race) -> list[str]:
    lines = ["| evaluations | " + " | ".join(map(str, BUDGETS)) + " |", "|---|" + "---|" * len(BUDGETS)]
    for kind, rows in race.lines().items():
        names = {row.name for row in rows.values()}
        label = f"{kind}: {names.pop()}" if len(names) == 1 else kind
        cells = [_short(race.error(rows[n])) + (f"<br>{rows[n].name}" if names else "") for n in BUDGETS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
        if kind != THEIRS:
            lines.append("| … ratio | " + " | ".join(_verdict(ratio) for ratio in race.ratios(rows)) + " |")
    return lines


def _short(error: float) -> str:
    return f"{error:.3f}" if error >= 0.1 else f"{error:.4f}" if error >= 0.01 else f"{error:.1e}"


def _verdict(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio <= 1 else f"**{ratio:.2f} loses**"


def _failed(failed: list[dict[str, str]]) -> list[str]:
    lines = ["## Where diffusers returns NaN or raises", "", "On Stable Diffusion's table, easy, and ours at the same settings.", ""]
    lines += ["| scheduler | steps | diffusers | ours |", "|---|---|---|---|"]
    return lines + ["| " + " | ".join(row.values()) + " |" for row in failed]


def figures(races: list[Race], failed: list[dict[str, str]], about: dict[str, str]) -> dict[str, Any]:
    """Every method's errors in the order of the budgets; null where it cannot be run."""
    found = {}
    for race in races:
        lines = {label: [_figure(race, rows[n]) for n in BUDGETS] for label, rows in race.lines().items()}
        sides = {"ours": _errors(race, race.ours), "diffusers": _errors(race, race.theirs)}
        found[race.title] = {**lines, "ratio of the best": [round(ratio, 4) for ratio in race.ratios(race.best(race.ours))], **sides}
    return {"about": about, "evaluations": BUDGETS, "races": found, "diffusers fails": failed}


def _figure(race: Race, row: Row) -> str:
    return f"{race.error(row):.3g} {row.name} ({row.evaluations})"


def _errors(race: Race, rows: list[Row]) -> dict[str, str]:
    """On one line each."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.budget] = race.error(row)
    return {name: " ".join(f"{at[n]:.3g}" if n in at else "-" for n in BUDGETS) for name, at in found.items()}


def draw(races: list[Race], picture: Path) -> None:
    from matplotlib.figure import Figure

    shown = {(race.process, race.end): race for race in races if (race.mixture, race.metric) == ("easy", "largest")}
    panels = [(("sd", DATA), "Stable Diffusion's table, onto the data"), (("sd", FIRST), "to its cleanest level")]
    panels.append((("flow_shift3", DATA), "flow, shift 3, onto the data"))
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _panel(axes, shown[key])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("evaluations of the denoiser")
    figure.axes[0].set_ylabel("largest error of 200 quantiles")
    figure.suptitle("Two Gaussians, exact denoiser: our samplers and diffusers' schedulers at equal evaluations", fontsize=11)
    figure.savefig(picture, dpi=110)


def _panel(axes: Axes, race: Race) -> None:
    from matplotlib.ticker import NullLocator

    axes.set(xscale="log", yscale="log")
    for n, name in enumerate(sorted({row.name for row in race.theirs})):
        rows = [row for row in race.theirs if row.name == name]
        label = "diffusers, each scheduler and setting" if n == 0 else None
        axes.plot([row.budget for row in rows], [race.error(row) for row in rows], color="0.8", linewidth=0.7, zorder=1, label=label)
    lines = race.lines()
    _line(axes, race, lines[THEIRS], color="0.35", marker="s", linewidth=1.6, zorder=3, label=THEIRS)
    for label, colour in COLOURS.items():
        name = label if label == BEST else f"{label.split(', ')[0]}, {lines[label][5].name} ({label.split(' pair ')[1]})"
        _line(axes, race, lines[label], color=colour, marker="o", linewidth=2.2 if label == BEST else 1.4, zorder=4, label=name)
    axes.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(top=2, bottom=10 ** math.floor(math.log10(min(race.error(row) for row in lines[BEST].values()))))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=7.5, framealpha=0.9)


def _line(axes: Axes, race: Race, rows: dict[int, Row], **style: Any) -> None:
    axes.plot(BUDGETS, [race.error(rows[n]) for n in BUDGETS], markersize=4, **style)
