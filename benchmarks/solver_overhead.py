"""What a step of a solver costs beside the network, ours and diffusers': milliseconds on one CPU thread.

    python benchmarks/solver_overhead.py [--repeats 31] [--write]

A 4x64x64 latent in float32, 50 steps on Stable Diffusion's table, a network that returns a fixed tensor and whose own time is subtracted.
Ours: the whole driver (question, answer, check for finiteness), the plan made beforehand. diffusers: scale_model_input and step, after
set_timesteps. Processor time of the one thread, not the wall clock's, and the methods take turns, every repeat starting with another one:
so that a machine with other work to do gives the same answer. Medians, and the fastest.

Then 64 images with different solvers at once through `sampling.advance`, against the same 64 one after another. With a network that does
nothing a single image stays in the core's cache from step to step, which 64 cannot; behind a real one neither does, so the network also
goes through 4 MiB of its own in a second measurement (that time is subtracted too).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import unnoise
from unnoise import schedules
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import Plan, Run, advance, plan, stream
from unnoise.diffusion.solvers import SOLVERS

warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # numpy 2 inside diffusers

ROOT = Path(__file__).resolve().parent.parent
STEPS, ROWS, TARGET = 50, 64, 0.2
CACHE = 2**20  # numbers, 4 MiB: more than a core's own cache
SHAPE = (1, 4, 64, 64)
SD = schedules.vp("scaled_linear")
TABLE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {  # of our multistep solvers
    "lms": ("LMSDiscrete", {}),
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "ipndm": ("IPNDM", {}),
    "deis": ("DEISMultistep", {"solver_order": 3}),
    "dpmpp_2m": ("DPMSolverMultistep", {}),
    "dpmpp_3m": ("DPMSolverMultistep", {"solver_order": 3}),
    "unipc": ("UniPCMultistep", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m_sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "sa_solver": ("SASolver", {}),
    "ddim": ("DDIM", {"clip_sample": False}),  # of one step, for comparison
    "euler": ("EulerDiscrete", {}),
}
Trial = Callable[[], float]  # milliseconds a step


class Fixed:
    """A network that answers with a tensor made beforehand, and knows how long that took. `memory`: what it goes through first."""

    def __init__(self, answer: Tensor, memory: Tensor | None = None):
        self.answer, self.memory, self.seconds = answer, memory, 0.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        began = time.thread_time()
        if self.memory is not None:
            self.memory.add_(1)
        answer = self.answer[: len(x)]
        self.seconds += time.thread_time() - began
        return answer


def ours(fixed: Plan, x: Tensor, answer: Tensor, memory: Tensor | None = None) -> Trial:
    def trial() -> float:
        network, run = Fixed(answer, memory), Run(x, fixed, Streams([0]))
        began = time.thread_time()
        for _ in stream(run, network):
            pass
        return (time.thread_time() - began - network.seconds) * 1000 / STEPS

    return trial


def theirs(kind: str, settings: dict[str, Any], x: Tensor, answer: Tensor) -> Trial:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**({} if kind == "IPNDM" else TABLE), **settings)

    def trial() -> float:
        scheduler.set_timesteps(STEPS)
        state = x
        began = time.thread_time()
        for t in scheduler.timesteps:
            scheduler.scale_model_input(state, t)
            state = scheduler.step(answer, t, state).prev_sample
        return (time.thread_time() - began) * 1000 / STEPS

    return trial


def together(plans: list[Plan], xs: list[Tensor], answer: Tensor, memory: Tensor | None) -> Trial:
    """Milliseconds an image and step."""

    def trial() -> float:
        network, runs = Fixed(answer, memory), [Run(x, fixed, Streams([i])) for i, (x, fixed) in enumerate(zip(xs, plans, strict=True))]
        began = time.thread_time()
        while going := [run for run in runs if not run.done]:
            advance(going, network)
        return (time.thread_time() - began - network.seconds) * 1000 / STEPS / ROWS

    return trial


def alone(plans: list[Plan], xs: list[Tensor], answer: Tensor, memory: Tensor | None) -> Trial:
    trials = [ours(fixed, x, answer[i : i + 1], memory) for i, (x, fixed) in enumerate(zip(xs, plans, strict=True))]
    return lambda: sum(trial() for trial in trials) / ROWS


def interleaved(trials: dict[str, Trial], repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in trials}
    names = list(trials)
    for trial in trials.values():
        trial()
    for repeat in range(repeats):
        start = repeat % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(trials[name]())
    return found


def figure(found: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(found), 4), "fastest": round(min(found), 4)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"about": _about(), "milliseconds a step beyond the network": steps(asked.repeats), "64 images at once": rows(asked.repeats)}
    if asked.write:
        (ROOT / "benchmarks" / "results" / "solver_overhead.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def steps(repeats: int) -> dict[str, Any]:
    x, answer = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    trials: dict[str, Trial] = {}
    for name, (kind, settings) in PEERS.items():
        trials[name] = ours(plan(SD, name, STEPS), x, answer)
        trials[f"diffusers {name}"] = theirs(kind, settings, x, answer)
    found = interleaved(trials, repeats)
    figures: dict[str, Any] = {}
    print(f"{'ms a step, median (fastest)':28} {'ours':>16} {'diffusers':>16}   ratio")
    for name in PEERS:
        mine, rival = figure(found[name]), figure(found[f"diffusers {name}"])
        ratio, draws = mine["median"] / rival["median"], ", draws noise" if SOLVERS[name].stochastic else ""
        figures[name] = {"ours": mine, "diffusers": rival, "ratio": round(ratio, 3), "within 0.2 ms": mine["median"] <= TARGET}
        cells = [f"{side['median']:7.3f} ({side['fastest']:.3f})" for side in (mine, rival)]
        print(f"{name + draws:28} {cells[0]:>16} {cells[1]:>16}   {ratio:.2f}{'' if mine['median'] <= TARGET else '  above the target'}")
    return figures


def rows(repeats: int) -> dict[str, Any]:
    """Every image its own solver, in turn; all with one evaluation a step, so that both sides answer as many questions."""
    names = [name for name in PEERS if SOLVERS[name].cost(STEPS) == STEPS]
    noise = torch.Generator().manual_seed(2)
    xs, answer = list(torch.randn(ROWS, *SHAPE, generator=noise)), torch.randn(ROWS, *SHAPE[1:], generator=noise)
    plans = [plan(SD, names[i % len(names)], STEPS) for i in range(ROWS)]
    figures: dict[str, Any] = {"solvers": names}
    print(f"{ROWS} images, {len(names)} solvers, ms an image and step, median (fastest):")
    for label, memory in {"": None, ", behind a network that fills the cache": torch.zeros(CACHE)}.items():
        both = {"at once": together(plans, xs, answer, memory), "one after another": alone(plans, xs, answer, memory)}
        found = {f"{name}{label}": figure(times) for name, times in interleaved(both, max(5, repeats // 4)).items()}
        for name, times in found.items():
            print(f"{name:60} {times['median']:7.3f} ({times['fastest']:.3f})")
        once, after = (times["median"] for times in found.values())
        figures |= {**found, f"ratio{label}": round(once / after, 3)}
        print(f"{'ratio':60} {once / after:7.2f}")
    return figures


def _about() -> dict[str, Any]:
    versions = {"unnoise": unnoise.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "processor": _processor(), "load": round(os.getloadavg()[0], 1)}
    return {**machine, "python": platform.python_version(), "threads": 1, **versions}


def _processor() -> str:
    """As Linux names it."""
    info = Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return named[0] if named else platform.processor()


if __name__ == "__main__":
    main()
