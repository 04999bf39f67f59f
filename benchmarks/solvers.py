"""Error against evaluations, our samplers beside diffusers' schedulers, on data whose best denoiser and exact ODE solution are known.

    python benchmarks/solvers.py [--write]

easy: 0.4 N(-1, 0.5²) + 0.6 N(1, 0.5²); hard: standard deviations of 0.2, where a point near the watershed may fall to the wrong side, so
that only the distance of distributions W1 means something. 200 quantiles are carried from the exact ones at a method's first level, and the
error is their largest distance from the exact ones at its last. A budget of N evaluations buys each method as many steps as cost at most
N. Methods that end on the data (sigma 0) and on the cleanest level of the table race apart: the step between the two costs 2.24e-3 on
Stable Diffusion's easy case, whatever came before, in every method that answers with the last estimate.

Ours: every deterministic sampler on every spacing with default options; at a single N also with other orders, as diffusers' schedulers
race. Grids that begin late (leading) skip part of the way, so they do not race; diffusers' do, in its favour. diffusers: see schedulers.py.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diffusers
import schedulers
import solvers_report as report
import torch
from schedulers import DATA, FIRST, Peer, flow_peers, sd_peers, walk
from solvers_report import BUDGETS, OPTION, Race, Row
from torch import Tensor

import unnoise
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.predictions import prediction
from unnoise.diffusion.sampling import Run, advance, plan, sample
from unnoise.diffusion.schedules import Schedule
from unnoise.diffusion.solvers import SOLVERS
from unnoise.errors import UnnoiseError
from unnoise.evaluation.mixture import TWO, Mixture, process, shares

ROOT = Path(__file__).resolve().parent.parent
SHARES = shares(200)
MIXTURES = {"easy": TWO, "hard": Mixture((0.4, 0.6), (-1.0, 1.0), (0.2, 0.2))}
RACES = (("sd", DATA), ("sd", FIRST), ("flow", DATA), ("flow_shift3", DATA))  # diffusers' other flows end at a level that depends on N
METRICS = {"easy": ("largest", "w1"), "hard": ("w1",)}
ORDERS = [("unipc", 3), ("deis", 2)]  # other than by default; diffusers' schedulers race with theirs
FAILING = (1, 2, 3, 5, 15, 20, 40, 100)  # steps


def _row(name: str, budget: int, evaluations: int, end: str, error: Tensor) -> Row:
    return Row(name, budget, evaluations, end, float(error.max()), float(error.mean()))


# Ours: every run of a race advances in one batch


def ours(schedule: Schedule, mixture: Mixture, end: str) -> list[Row]:
    names = [(name, 0) for name, solver in SOLVERS.items() if not solver.stochastic] + ORDERS
    left = {(s, g, n): _steps(s[0], n, end) for s in names for g in GRIDS for n in BUDGETS}
    left = {key: steps for key, steps in left.items() if steps}
    found = []
    while left:  # an adaptive solver, or a step that no grid left out, may ask for more than thought: it tries again with a step fewer
        runs = {key: run for key, steps in left.items() if (run := _run(schedule, mixture, (*key[:2], steps), end))}
        asked = _finish(runs, mixture, schedule)
        for key, run in runs.items():
            if run.done and asked[key] <= key[2]:
                error = (run.state[0] - _exact(mixture, schedule, run)).abs()
                name = f"{key[0][0]}{OPTION.format(key[0][1]) if key[0][1] else ''} on {key[1]}"
                found.append(_row(name, key[2], asked[key], end, error))
        left = {key: left[key] - 1 for key in runs if asked[key] > key[2] and left[key] > 1}
    return found


def _steps(sampler: str, budget: int, end: str) -> int:
    """The most that may fit. A grid that already ends on the cleanest level leaves one out."""
    return max((n for n in range(1, budget + 1) if SOLVERS[sampler].cost(n) <= budget), default=0) + (end == FIRST)


def _run(schedule: Schedule, mixture: Mixture, pair: tuple[tuple[str, int], str, int], end: str) -> Run | None:
    (sampler, order), spacing, steps = pair
    options: dict[str, Any] = {"order": order} if order else {}
    fixed = plan(schedule, sampler, steps, spacing, spacing_options={"ending": end} if spacing != "leading" else None, **options)
    first = fixed.levels[0]
    if first.t < schedule.start:
        return None
    return Run(_quantiles(mixture, first.alpha, first.sigma)[None], fixed, Streams([0]))  # one image of 200 numbers


def _finish(runs: dict[Any, Run], mixture: Mixture, schedule: Schedule) -> dict[Any, int]:
    """Answer all of them until each is done or over its budget; the questions of each. Raises where one fails: none may."""
    asked, going, denoiser = dict.fromkeys(runs, 0), list(runs), mixture.denoiser(schedule)
    while going:
        for key, state in zip(going, advance([runs[key] for key in going], denoiser), strict=True):
            if isinstance(state, UnnoiseError):
                raise RuntimeError(f"{key}: {state}")
            asked[key] += 1
        going = [key for key in going if not runs[key].done and asked[key] <= key[2]]
    return asked


def _exact(mixture: Mixture, schedule: Schedule, run: Run) -> Tensor:
    last = run.plan.levels[-1]
    return _quantiles(mixture, last.alpha, last.sigma)


def _quantiles(mixture: Mixture, alpha: float, sigma: float) -> Tensor:
    return schedulers.quantile(mixture, SHARES, alpha, sigma)


# diffusers'


def theirs(peers: Iterable[Peer], mixture: Mixture) -> list[Row]:
    """What fails, by an error of its own or NaN, does not race; see `failures`."""
    found = []
    for peer in peers:
        for budget in BUDGETS:
            try:
                ended = walk(peer, peer.most_steps(budget), mixture, SHARES)
            except Exception:
                continue
            if bool(torch.isfinite(ended.error).all()):
                found.append(_row(peer.name, budget, ended.evaluations, ended.end, ended.error))
    return found


def failures(peers: Iterable[Peer]) -> list[dict[str, str]]:
    """Settings at which diffusers returns NaN or raises, and ours there."""
    found = []
    for peer in peers:
        wrong: dict[str, list[int]] = {}
        for steps in FAILING:
            if said := _failure(peer, steps):
                wrong.setdefault(said, []).append(steps)
        for said, at in wrong.items():
            found.append({"scheduler": peer.name, "steps": ", ".join(map(str, at)), "diffusers": said, "ours": _ours_there(peer, at)})
    return found


def _failure(peer: Peer, steps: int) -> str:
    try:
        return "" if bool(torch.isfinite(walk(peer, steps, TWO, SHARES).error).all()) else "NaN"
    except Exception as error:
        return type(error).__name__


def _ours_there(peer: Peer, steps: Sequence[int]) -> str:
    """The same sampler on the same spacing; a network of eps like theirs where alpha_bar ends at 0."""
    sampler, spacing, options = peer.ours
    zero_snr = peer.settings.get("rescale_betas_zero_snr", False)
    schedule = process("zero_snr" if zero_snr else "sd")
    last = FIRST if "final_sigmas_type" in peer.settings else DATA
    exact = TWO.denoiser(schedule)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return prediction("eps").x0((x - alpha * exact(x, t)) / sigma, x, alpha, sigma)

    errors = []
    for n in steps:
        fixed = plan(schedule, sampler, n, spacing, spacing_options={"ending": last}, **options)
        first, end = fixed.levels[0], fixed.levels[-1]
        x = _quantiles(TWO, first.alpha, first.sigma)[None]
        try:
            x = sample(denoiser, x, schedule=schedule, sampler=sampler, times=[level.t for level in fixed.levels], **options)
        except UnnoiseError as error:
            return f"refused: {type(error).__name__}"
        errors.append(float((x[0] - _quantiles(TWO, end.alpha, end.sigma)).abs().max()))
    return f"{sampler} on {spacing}: finite, errors {', '.join(f'{error:.1e}' for error in errors)}"


# Both


def races(mixture: str) -> list[Race]:
    torch.set_num_threads(1)
    data = MIXTURES[mixture]
    peers = {"sd": theirs(sd_peers(), data), "flow": theirs(flow_peers(1.0, "flow"), data)}
    peers["flow_shift3"] = theirs(flow_peers(3.0, "flow_shift3"), data)
    found = []
    for name, end in RACES:
        mine, rivals = ours(process(name), data, end), [row for row in peers[name] if row.end == end]
        found += [Race(name, mixture, end, metric, mine, rivals) for metric in METRICS[mixture]]
        print(f"{mixture}, {name}, {end}: {len(mine)} runs of ours, {len(rivals)} of diffusers", flush=True)
    return found


def all_failures() -> list[dict[str, str]]:
    torch.set_num_threads(1)
    zero_snr = {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return failures([Peer("DDIM, zero terminal SNR, eps", "DDIM", zero_snr, ours=("ddim", "trailing", {})), *sd_peers()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures, the tables and the picture")
    asked = parser.parse_args()
    with ProcessPoolExecutor(len(MIXTURES) + 1, mp_context=get_context("spawn")) as pool:
        failing, parts = pool.submit(all_failures), pool.map(races, MIXTURES)
        found, failed = [race for part in parts for race in part], failing.result()
    versions = {"unnoise": unnoise.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    about = {"python": platform.python_version(), **versions}
    text = report.markdown(found, failed, about)
    print(text)
    if asked.write:
        results = ROOT / "benchmarks" / "results"
        (results / "solvers.md").write_text(text, encoding="utf-8")
        (results / "solvers.json").write_text(json.dumps(report.figures(found, failed, about), indent=1) + "\n", encoding="utf-8")
        report.draw(found, ROOT / "docs" / "images" / "solvers-mixture.png")


if __name__ == "__main__":
    main()
