"""The samplers that there are: one table, with each solver's order, its cost and its options.

| file           | what                                                                                     |
|----------------|------------------------------------------------------------------------------------------|
| steps.py       | Level, Past and Step: what a solver computes with, and how one is written                 |
| single.py      | deterministic, without memory                                                            |
| dpm_solver.py  | DPM-Solver in eps, one step: of mixed orders, and adaptive                               |
| multistep.py   | deterministic, through estimates of the past                                             |
| ancestral.py   | DDPM, DDIM and all that step below the next level and add noise                          |
| stochastic.py  | the reverse-time SDE: exponential integrators, ER-SDE, SA-Solver, predictor and corrector |
| consistency.py | for consistency functions                                                                |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from unnoise.diffusion import ancestral, consistency, dpm_solver, multistep, options, single, stochastic
from unnoise.diffusion.steps import Level, Past, Solution, Step
from unnoise.errors import UnknownName

__all__ = ["SOLVERS", "Level", "Past", "Solution", "Solver", "Step", "samplers", "solver"]


@dataclass(frozen=True)
class Solver:
    """A row of the table.

    `order`: of the error at a fixed time as steps shrink, once its memory is filled (in distribution where stochastic); 0 for samplers of
    consistency functions, which solve no equation.
    """

    name: str
    step: Callable[..., Solution]
    order: int
    evaluations: int  # of the denoiser, a step; of the step onto the data see `cost`
    stochastic: bool
    summary: str
    extra: int = 0  # evaluations more, once, to start
    last: int = 1  # evaluations of the step onto the data

    @property
    def options(self) -> dict[str, Any]:
        """Its keyword options and their defaults."""
        return options.of(self.step)

    def cost(self, steps: int) -> int:
        """Evaluations of this many steps that end on the data, with the options' defaults; of `rk45` and `dpm_adaptive` the least."""
        return self.last if steps == 1 else (steps - 1) * self.evaluations + self.last + self.extra

    def with_options(self, options_: dict[str, Any]) -> Callable[[Step], Solution]:
        """The step with options set; raises UnknownName for one that it does not have, ArgumentError for a value that is not allowed."""
        for name, value in options_.items():
            if name not in self.options:
                raise UnknownName(f"option of sampler {self.name!r}", name, self.options)
            options.check(f"sampler {self.name!r}", self.step, name, value)
        return partial(self.step, **options_) if options_ else self.step


SOLVERS = {
    row.name: row
    for row in (
        Solver("ddpm", ancestral.ddpm, 1, 1, True, "ancestral sampling; wants many steps"),
        Solver("ddim", ancestral.ddim, 1, 1, False, "deterministic DDPM; eta > 0 adds noise"),
        Solver("euler", single.euler, 1, 1, False, "Euler's method on the probability-flow ODE"),
        Solver("euler_ancestral", ancestral.euler_ancestral, 1, 1, True, "Euler's method with fresh noise: ddim with eta 1"),
        Solver("heun", single.heun, 2, 2, False, "EDM's second-order method, two evaluations a step"),
        Solver("dpm2", single.dpm2, 2, 2, False, "the midpoint method: DPM-Solver-2"),
        Solver("dpm2_ancestral", ancestral.dpm2_ancestral, 2, 2, True, "the midpoint method with fresh noise"),
        Solver("lms", multistep.lms, 4, 1, False, "linear multistep, as k-diffusion has it"),
        Solver("pndm", multistep.pndm, 2, 1, False, "PLMS, Stable Diffusion 1's first sampler", extra=1),
        Solver("ipndm", multistep.ipndm, 2, 1, False, "PNDM with a cheaper start"),
        Solver("deis", multistep.deis, 3, 1, False, "exponential Adams-Bashforth in the noise"),
        Solver("dpmpp_2s", single.dpmpp_2s, 2, 2, False, "DPM-Solver++ without memory, two evaluations a step"),
        Solver("dpmpp_2s_ancestral", ancestral.dpmpp_2s_ancestral, 2, 2, True, "DPM-Solver++(2S) with fresh noise"),
        Solver("dpmpp_2m", multistep.dpmpp_2m, 2, 1, False, "DPM-Solver++ with one step of memory; a good default"),
        Solver("dpmpp_3m", multistep.dpmpp_3m, 3, 1, False, "DPM-Solver++ with two steps of memory, truly third order", extra=1),
        Solver("dpmpp_sde", ancestral.dpmpp_sde, 2, 2, True, "DPM-Solver++ on the SDE, two evaluations a step"),
        Solver("dpmpp_2m_sde", stochastic.dpmpp_2m_sde, 2, 1, True, "DPM-Solver++(2M) on the SDE"),
        Solver("dpmpp_3m_sde", stochastic.dpmpp_3m_sde, 2, 1, True, "DPM-Solver++(3M) on the SDE"),
        Solver("unipc", multistep.unipc, 3, 1, False, "predictor and free corrector; order p converges with p + 1"),
        Solver("er_sde", stochastic.er_sde, 2, 1, True, "a reverse SDE with less noise than DDPM's"),
        Solver("sa_solver", stochastic.sa_solver, 2, 1, True, "stochastic Adams with a free corrector"),
        Solver("rk4", single.rk4, 4, 4, False, "the classical Runge-Kutta method, four evaluations a step"),
        Solver("rk45", single.rk45, 5, 7, False, "adaptive Runge-Kutta to a tolerance, between the times of the grid"),
        Solver("dpm_fast", dpm_solver.dpm_fast, 3, 3, False, "DPM-Solver without memory, three evaluations a step; eta > 0 adds noise"),
        Solver("dpm_adaptive", dpm_solver.dpm_adaptive, 3, 3, False, "DPM-Solver-23 to a tolerance, between the times of the grid"),
        Solver("pc", stochastic.pc, 1, 2, True, "score SDE's predictor and Langevin corrector", last=2),
        Solver("lcm", consistency.lcm, 0, 1, True, "for latent consistency models, one to eight steps"),
        Solver("tcd", consistency.tcd, 0, 1, True, "for trajectory consistency models, one to twenty steps"),
        Solver("consistency", consistency.consistency, 0, 1, True, "for consistency models, one or two steps"),
    )
}


def solver(name: str) -> Solver:
    """By name; raises UnknownName."""
    if name not in SOLVERS:
        raise UnknownName("sampler", name, SOLVERS)
    return SOLVERS[name]


def samplers() -> list[Solver]:
    """Every sampler there is."""
    return list(SOLVERS.values())
