"""The examples of CONTRIBUTING.md do what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import house
import unnoise
from unnoise.diffusion.solvers import SOLVERS, Solution, Solver, Step
from unnoise.networks.layers import TimestepMLP

GUIDE = (house.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(title: str) -> list[str]:
    section = GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_solver_has_the_order_that_its_row_declares(monkeypatch):
    names: dict[str, Any] = {"Step": Step, "Solution": Solution, "Solver": Solver}
    function, row = blocks("Add a solver")
    exec(function, names)
    midpoint = eval(row, names)
    monkeypatch.setitem(SOLVERS, midpoint.name, midpoint)
    schedule = unnoise.schedules.flow()

    def mean(x: Tensor, t: Tensor) -> Tensor:  # of x_0 given x, where x_0 is -1 or 1 with equal chance
        return (schedule.alpha(t) / schedule.sigma(t) ** 2).unsqueeze(1).mul(x).tanh()

    def end(sampler: str, steps: int) -> Tensor:
        times = torch.linspace(0.9, 0.3, steps + 1, dtype=torch.float64)
        return unnoise.sample(mean, torch.full((1, 1), 0.4, dtype=torch.float64), schedule=schedule, sampler=sampler, times=times)

    exact = end("heun", 1000)  # another method, with steps so small that it counts as the truth

    def error(steps: int) -> float:
        return float((end("midpoint", steps) - exact).abs())

    orders = [float(torch.tensor(error(n) / error(2 * n)).log2()) for n in (40, 80)]
    assert all(abs(order - midpoint.order) < 0.12 for order in orders), orders


def test_the_network_keeps_the_shape():
    names: dict[str, Any] = {"dataclass": dataclass, "nn": nn, "TimestepMLP": TimestepMLP, "__name__": __name__}
    (code,) = blocks("Add a network")
    exec("from __future__ import annotations\n" + code, names)
    network = names["Tiny"](names["TinyConfig"](width=8))
    assert network(torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])).shape == (2, 3, 8, 8)


def test_the_layout_is_the_real_one():
    source = (house.ROOT / "src/unnoise/checkpoints/layouts/ddpm.py").read_text(encoding="utf-8")
    parts = [part.strip() for block in blocks("Add a checkpoint layout") for part in block.split("\n\n\n")]
    assert len(parts) == 3 and [part for part in parts if part not in source] == []
