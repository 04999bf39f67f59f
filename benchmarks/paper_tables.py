"""What two papers' tables say, and our figures beside them: in Markdown, as verdicts, as plots. `paper_shapes.py` makes the figures."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
Figures = dict[str, dict[str, float]]  # name of a run -> its distance and error in each view, its score

STEPS = (10, 20, 50, 100, 1000)
SCALES = (1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 4.0, 6.0)
GUIDED_STEPS = 50
PAPER_DDIM = {  # FID, CIFAR-10: Song et al. 2021, table 1
    "eta 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "large variance": (367.43, 133.37, 32.72, 9.99, 3.17),
}
PAPER_SCALES = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 3.0, 4.0, 5.0)  # w + 1
PAPER_FID = (1.80, 1.55, 2.04, 3.03, 4.3, 5.74, 7.19, 8.62, 10.08, 11.41, 12.6, 21.03, 24.83, 26.22)  # ImageNet 64x64, p_uncond 0.1
PAPER_IS = (53.71, 66.11, 78.91, 92.8, 106.2, 119.3, 131.1, 141.8, 151.6, 161.0, 170.1, 225.5, 250.4, 260.2)


def ddim_name(sampler: str, steps: int) -> str:
    return f"{sampler}, {steps} steps"


def guidance_name(scale: float) -> str:
    """Scale 1 is the very run of the other table."""
    return ddim_name("eta 0", GUIDED_STEPS) if scale == 1 else f"guidance {scale:g}"


def verdicts(figures: Figures, view: str) -> dict[str, bool]:
    """What the papers' tables show, asked of ours. Level, and a dip, are judged by two standard errors of the difference."""
    at = {(label, steps): figures[ddim_name(label, steps)] for label in PAPER_DDIM for steps in STEPS}
    row = [figures[guidance_name(scale)] for scale in SCALES]
    best = min(row, key=lambda figure: figure[view])
    few = {steps: [at[label, steps][view] for label in PAPER_DDIM] for steps in (10, 20, 50)}
    many = [at[label, 1000] for label in PAPER_DDIM]
    return {
        "eta 0 is best at 10, 20 and 50 steps": all(values[0] == min(values) for values in few.values()),
        "more noise is worse at 10 and 20 steps": all(few[n] == sorted(few[n]) for n in (10, 20)),
        "the large variance is worse than eta 1 by a factor of 3 at 10 steps": few[10][3] > 3 * few[10][2],
        "the large variance is best at 1000 steps": many[3][view] == min(figure[view] for figure in many),
        "the large variance is better than or level with eta 0 at 1000 steps": not apart(many[0], many[3], view),
        "it is better, by more than two standard errors": apart(many[3], many[0], view),
        "the distance dips with guidance": apart(best, row[0], view),
        "and then rises": all(a[view] < b[view] for a, b in pairwise(row[row.index(best) :])),
        "the score rises with every scale": all(a["score"] < b["score"] for a, b in pairwise(row)),
    }


def apart(low: dict[str, float], high: dict[str, float], view: str) -> bool:
    """Whether `low` is the lower by more than two standard errors of the difference."""
    return high[view] - low[view] > 2 * math.hypot(low[f"{view} error"], high[f"{view} error"])


VIEWS = {"features": "classifier's features", "pixels": "pixels"}


def tables(figures: Figures) -> str:
    """Both, in Markdown; the papers' figures stand below ours."""
    lines = _head("distance in", ("sampler", *(f"{steps} steps" for steps in STEPS)))
    for view, shown in VIEWS.items():
        for label in PAPER_DDIM:
            row = [figures[ddim_name(label, steps)] for steps in STEPS]
            lines.append(f"| {shown} | {label} | " + " | ".join(f"{f[view]:.2f} ± {f[f'{view} error']:.2f}" for f in row) + " |")
    lines += [f"| FID of the paper | {label} | " + " | ".join(f"{fid:g}" for fid in paper) + " |" for label, paper in PAPER_DDIM.items()]
    lines += ["", *_head("guidance scale", tuple(f"{scale:g}" for scale in SCALES))]
    row = [figures[guidance_name(scale)] for scale in SCALES]
    for view, shown in VIEWS.items():
        lines.append(f"| {shown} | " + " | ".join(f"{f[view]:.2f} ± {f[f'{view} error']:.2f}" for f in row) + " |")
    lines.append("| score | " + " | ".join(f"{f['score']:.2f}" for f in row) + " |")
    for name, paper in (("FID of the paper", PAPER_FID), ("IS of the paper", PAPER_IS)):
        known = {scale: f"{value:g}" for scale, value in zip(PAPER_SCALES, paper, strict=True)}
        lines.append(f"| {name} | " + " | ".join(known.get(scale, "") for scale in SCALES) + " |")
    return "\n".join(lines)


def _head(first: str, rest: tuple[str, ...]) -> list[str]:
    return [f"| {first} | " + " | ".join(rest) + " |", "|---|" + "---|" * len(rest)]


COLOURS = {"eta 0": "#1f5fa8", "eta 0.5": "#4fa3a5", "eta 1": "#e0a030", "large variance": "#c0392b"}
UNIT = "Fréchet distance, % of the data's variance"


def plot_ddim(figures: Figures, floor: dict[str, float]) -> None:
    """Distance against steps in both views; the paper's own curves beside them."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for label, colour in COLOURS.items():
        row = [figures[ddim_name(label, steps)] for steps in STEPS]
        for panel, view in zip(panels, VIEWS, strict=False):
            panel.errorbar(STEPS, [f[view] for f in row], [f[f"{view} error"] for f in row], color=colour, marker="o", ms=4, label=label)
        panels[2].plot(STEPS, PAPER_DDIM[label], color=colour, marker="o", ms=4)
    for panel, (view, shown) in zip(panels, VIEWS.items(), strict=False):
        panel.axhline(floor[view], color="grey", ls=":", label="two halves of the data")
        panel.set(title=f"here: digits, {shown}", ylabel=UNIT)
    panels[2].set(title="Song et al. 2021, table 1: CIFAR-10", ylabel="FID")
    for panel in panels:
        panel.set(xscale="log", yscale="log", xlabel="steps")
        panel.set_xticks(STEPS, [str(steps) for steps in STEPS])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.2)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, "paper-ddim.png")


def plot_guidance(figures: Figures, real_score: float) -> None:
    """Distance above, score below, against the guidance scale; the paper's own at the right."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(2, 2, figsize=(9, 5.2), layout="constrained", sharex=True)
    row = [figures[guidance_name(scale)] for scale in SCALES]
    for (view, shown), colour in zip(VIEWS.items(), COLOURS.values(), strict=False):
        axes[0, 0].errorbar(SCALES, [f[view] for f in row], [f[f"{view} error"] for f in row], color=colour, marker="o", ms=4, label=shown)
    axes[1, 0].plot(SCALES, [f["score"] for f in row], color=COLOURS["large variance"], marker="o", ms=4)
    axes[1, 0].axhline(real_score, color="grey", ls=":", label="the data")
    axes[0, 1].plot(PAPER_SCALES, PAPER_FID, color=COLOURS["eta 0"], marker="o", ms=4)
    axes[1, 1].plot(PAPER_SCALES, PAPER_IS, color=COLOURS["large variance"], marker="o", ms=4)
    axes[0, 0].set(title="here: 14x14 digits", ylabel="Fréchet distance, %", yscale="log")
    axes[0, 1].set(title="Ho & Salimans 2022, table 1: ImageNet", ylabel="FID", yscale="log")
    axes[1, 0].set(xlabel="guidance scale", ylabel="score, of 10", xscale="log")
    axes[1, 1].set(xlabel="guidance scale (w + 1)", ylabel="inception score")
    axes[1, 1].set_xticks([1, 1.5, 2, 3, 4, 6], ["1", "1.5", "2", "3", "4", "6"])
    axes[1, 1].xaxis.minorticks_off()
    for panel in axes.flat:
        panel.grid(alpha=0.2)
    for panel in axes[:, 0]:
        panel.legend(frameon=False, fontsize=8)
    for panel in axes[0]:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.minorticks_off()
    save(figure, "paper-guidance.png")


def plot_digits(runs: dict[str, Tensor]) -> None:
    """What the figures judge: a column a class, a row a seed, the same seeds in every panel."""
    from matplotlib import pyplot as plt

    shown = {
        "10 steps, eta 0": ddim_name("eta 0", 10),
        "10 steps, large variance": ddim_name("large variance", 10),
        f"{GUIDED_STEPS} steps, guidance 1": guidance_name(1.0),
        f"{GUIDED_STEPS} steps, guidance 4": guidance_name(4.0),
    }
    figure, axes = plt.subplots(2, 2, figsize=(7, 4.2), layout="constrained")
    for panel, (title, name) in zip(axes.flat, shown.items(), strict=True):
        side = runs[name].shape[-1]
        rows = runs[name][:50].view(5, 10, side, side)
        panel.imshow(rows.permute(0, 2, 1, 3).reshape(5 * side, 10 * side), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        panel.set_title(title, fontsize=9)
        panel.axis("off")
    save(figure, "paper-digits.png")


def save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=100)
