"""Deterministic solvers with memory: one evaluation a step, and a polynomial through estimates from the past.

In what the polynomial is drawn, and what is exact beside it:

| solver                        | polynomial of   | over                          | exact                    |
|-------------------------------|-----------------|-------------------------------|--------------------------|
| dpmpp_2m, dpmpp_3m, unipc     | x_0             | lam = log(alpha / sigma)      | the linear part, in x_0  |
| deis                          | eps             | lam                           | the linear part, in eps  |
| lms                           | the slope       | u (see Step.position)         | nothing to add           |
| pndm, ipndm                   | the slope       | the step's number             | nothing to add           |

Polynomials in lam have no value at pure noise (lam = -inf), so a step from there is Euler's and is not looked back on. The step onto the
data (lam = inf) returns x_0; only LMS, PNDM and iPNDM, whose u is finite there, go on as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from unnoise.diffusion.coefficients import weights
from unnoise.diffusion.single import dpmpp_2s, heun
from unnoise.diffusion.steps import Level, Past, Solution, Step, combine


def exponential(step: Step, x0: Tensor, known: Sequence[Past], *, eta: float = 0.0, square: float = 1.0) -> Tensor:
    """The exact step for an x_0 that is a polynomial in lam through here and the past (Lu et al. 2022b, eq. 8), without its noise.

    eta: 0 the ODE, 1 the reverse SDE (eq. 17-18). square: see `weights`.
    """
    z = (1 + eta) * step.h
    weight = [step.next.alpha * z * w for w in weights(nodes(step.here, step.h, known), z, square=square)]
    factor = step.next.sigma / step.here.sigma * math.exp(-eta * step.h)
    return combine((factor, step.x), *zip(weight, [x0, *(past.x0 for past in known)], strict=True))


def nodes(here: Level, h: float, past: Sequence[Past]) -> list[float]:
    """Where `here` and the past (newest first) lie in lam, in units of the step h from here."""
    return [0.0, *((one.level.lam - here.lam) / h for one in past)]


Weigh = Callable[[list[float], float], tuple[list[float], list[float]]]


def corrected(step: Step, x0: Tensor, order: int, weigh: Weigh) -> Tensor:
    """The state here, had the last step known the estimate x_0 at its end; what noise it drew stays.

    weigh: (nodes, h) of the last step -> its weights of x_0 in units of alpha, those of the corrector (the end comes last) and those that
    the predictor had.
    """
    last, *older = step.known[:order]
    h = step.here.lam - last.level.lam
    corrector, predictor = weigh(nodes(last.level, h, older), h)
    change = [step.here.alpha * (new - old) for new, old in zip(corrector, [*predictor, 0.0], strict=True)]
    values = [last.x0, *(one.x0 for one in older), x0]
    return combine((1.0, step.x), *zip(change, values, strict=True))


def dpmpp_2m(step: Step, *, clock: Literal["logsnr", "sigma"] = "logsnr") -> Solution:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): x_0 extrapolated from the last two estimates, linear in log(alpha / sigma).

    clock: "sigma" is linear in log(sigma) instead, which on a flow is what Stable Diffusion 3's own code does.
    """
    x0 = yield step.x, step.here
    known = step.known if clock == "logsnr" else step.past[-1:]
    if not known or step.next.sigma == 0:
        return step.toward(x0)
    before, here, there = (_clock(level, clock) for level in (known[0].level, step.here, step.next))
    return step.toward(_extrapolated(x0, known[0].x0, (there - here) / (here - before)))


def _clock(level: Level, clock: str) -> float:
    return level.lam if clock == "logsnr" else -math.log(level.sigma)


def _extrapolated(x0: Tensor, before: Tensor, ratio: float) -> Tensor:
    """x_0 half a step ahead; `ratio` is this step over the last one."""
    return combine((1 + ratio / 2, x0), (-ratio / 2, before))


def dpmpp_3m(step: Step, *, coefficients: Literal["exact", "released"] = "exact") -> Solution:
    """DPM-Solver++(3M): the exact step for the parabola through three estimates (Lu et al. 2022b, appendix B.3).

    Its first step is DPM-Solver++(2S), for a start of first order would cap the order of all at 2. coefficients: "released" starts with
    Euler's step and gives the parabola's square term half its weight, as the authors' code, k-diffusion and diffusers do: order 2.
    """
    known, exact = step.known[:2], coefficients == "exact"
    if exact and not known and step.here.alpha > 0:
        return (yield from dpmpp_2s(step))
    x0 = yield step.x, step.here
    if not known or step.next.sigma == 0:
        return step.toward(x0)
    if len(known) == 1 and not exact:
        return step.toward(_extrapolated(x0, known[0].x0, step.h / (step.here.lam - known[0].level.lam)))
    return exponential(step, x0, known, square=1.0 if exact else 0.5)


def unipc(step: Step, *, order: Literal[1, 2, 3] = 2) -> Solution:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2, with B(h) = e^h - 1): a predictor and, for free, a corrector.

    The estimate at the predicted point corrects the step that led there: what the predictor weighed by its polynomial is weighed again by
    one that also goes through the new estimate. So order p converges with p + 1.
    """
    x0 = yield step.x, step.here
    if step.known:
        step.x = corrected(step, x0, order, _unipc_weights)
    known = step.known[: order - 1]
    if step.next.sigma == 0 or math.isinf(step.h):
        return step.toward(x0)
    weight = [step.next.alpha * w for w in _predictor(nodes(step.here, step.h, known), step.h)]
    values = [x0, *(past.x0 for past in known)]
    return combine((step.next.sigma / step.here.sigma, step.x), *zip(weight, values, strict=True))


def _predictor(at: Sequence[float], h: float) -> list[float]:
    """Weights of x_0 in units of alpha: order 1 Euler's, order 2 DPM-Solver++(2M)'s, order 3 exact."""
    whole = -math.expm1(-h)
    if len(at) == 1:
        return [whole]
    if len(at) == 2:
        return [whole * (1 - 1 / (2 * at[1])), whole / (2 * at[1])]
    return [h * w for w in weights(at, h)]


def _unipc_weights(at: list[float], h: float) -> tuple[list[float], list[float]]:
    """For `corrected`. Order 1 corrects by the mean of both ends, higher ones exactly."""
    exact = [h * w for w in weights([*at, 1.0], h)]
    return (exact if len(at) > 1 else [-math.expm1(-h) / 2] * 2), _predictor(at, h)


def deis(step: Step, *, order: Literal[1, 2, 3] = 3) -> Solution:
    """tAB-DEIS (Zhang & Chen 2023, eq. 15) with polynomials in log(sigma / alpha), as diffusers has it: Adams-Bashforth in eps."""
    x0 = yield step.x, step.here
    known = step.known[: order - 1]
    if not known or step.next.sigma == 0:
        return step.toward(x0)
    values = [step.eps(x0), *(past.level.eps(past.x, past.x0) for past in known)]
    weight = [-step.next.sigma * step.h * w for w in weights(nodes(step.here, step.h, known), -step.h)]
    return combine((step.next.alpha / step.here.alpha, step.x), *zip(weight, values, strict=True))


def slopes(step: Step, x0: Tensor, order: int) -> list[Tensor]:
    """The slope here, and as many older ones, newest first, as the order asks for."""
    older = [step.slope(past.x, past.x0, past.level) for past in reversed(step.past[max(0, len(step.past) - order + 1) :])]
    return [step.slope(step.x, x0, step.here), *older][:order]


def lms(step: Step, *, order: Literal[1, 2, 3, 4] = 4) -> Solution:
    """The linear multistep method (Katherine Crowson, k-diffusion): Adams-Bashforth for unequal steps, the polynomial's exact integral."""
    x0 = yield step.x, step.here
    found = slopes(step, x0, order)
    (_, u), (_, u_next) = step.position(step.here), step.position(step.next)
    older = [step.position(past.level)[1] for past in reversed(step.past)][: len(found) - 1]
    weight = weights([0.0, *((one - u) / (u_next - u) for one in older)])
    return step.along(combine(*zip(weight, found, strict=True)))


ADAMS_BASHFORTH = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def pndm(step: Step) -> Solution:
    """PNDM's linear multistep form, PLMS (Liu et al. 2022, eq. 12; CompVis): Adams-Bashforth with the weights of equal steps.

    Its first step is Heun's. Order 4 needs steps that are equal in the slope's own time; on any other grid the order is 2.
    """
    if not step.past:
        return (yield from heun(step))
    x0 = yield step.x, step.here
    return _adams_bashforth(step, x0, 4)


def ipndm(step: Step, *, order: Literal[1, 2, 3, 4] = 4) -> Solution:
    """iPNDM (Zhang & Chen 2023, section 3.3): PNDM that starts with lower orders instead of more evaluations."""
    x0 = yield step.x, step.here
    return _adams_bashforth(step, x0, order)


def _adams_bashforth(step: Step, x0: Tensor, order: int) -> Tensor:
    found = slopes(step, x0, order)
    return step.along(combine(*zip(ADAMS_BASHFORTH[len(found)], found, strict=True)))
