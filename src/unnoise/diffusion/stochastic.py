"""Solvers of the reverse-time SDE beside the ancestral ones: exponential integrators, ER-SDE, SA-Solver, predictor and corrector.

All noise comes from `step.noise`, one stream an image. The step onto the data adds none, and returns x_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor

from unnoise.diffusion.ancestral import added, posterior_mean, spread
from unnoise.diffusion.coefficients import lagrange, moment, weights
from unnoise.diffusion.multistep import corrected, exponential, nodes
from unnoise.diffusion.options import Amount, Count, Positive, Share
from unnoise.diffusion.steps import Level, Solution, Step, combine

# Exponential integrators of the reverse SDE: dx with (1 + eta) times the ODE's pull towards x_0, and sqrt(2 eta) of noise in lam


def decay(step: Step, eta: float) -> tuple[float, float]:
    """Over a step: the factor of x, and the deviation of the noise (Lu et al. 2022b, eq. 17-18; eta 1 is the SDE)."""
    if math.isinf(step.h):
        return (step.next.sigma / step.here.sigma if eta == 0 else 0.0), (step.next.sigma if eta > 0 else 0.0)
    factor = step.next.sigma / step.here.sigma * math.exp(-eta * step.h)
    return factor, step.next.sigma * math.sqrt(-math.expm1(-2 * eta * step.h))


def _first_order(step: Step, x0: Tensor, eta: float, s_noise: float) -> Tensor:
    factor, noise = decay(step, eta)
    return _noisy(step, combine((factor, step.x), (step.next.alpha - factor * step.here.alpha, x0)), s_noise * noise)


def _noisy(step: Step, mean: Tensor, deviation: float) -> Tensor:
    return combine((1.0, mean), (deviation, step.noise.draw(mean))) if deviation > 0 else mean


def dpmpp_2m_sde(step: Step, *, eta: Amount = 1.0, s_noise: Amount = 1.0, correction: Literal["midpoint", "heun"] = "midpoint") -> Solution:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, eq. 19; k-diffusion's eta). correction: how the difference of estimates is weighed.

    "midpoint" gives it half the weight of x_0 itself, as the paper; "heun" the exact integral of a straight line.
    """
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    if not step.known:
        return _first_order(step, x0, eta, s_noise)
    factor, noise = decay(step, eta)
    z, before = (1 + eta) * step.h, nodes(step.here, step.h, step.known[:1])[1]
    line = -math.expm1(-z) / 2 if correction == "midpoint" else z * moment(1, z)
    terms = (step.next.alpha * (-math.expm1(-z) - line / before), x0), (step.next.alpha * line / before, step.known[0].x0)
    return _noisy(step, combine((factor, step.x), *terms), s_noise * noise)


def dpmpp_3m_sde(step: Step, *, eta: Amount = 1.0, s_noise: Amount = 1.0, coefficients: Literal["exact", "released"] = "exact") -> Solution:
    """SDE-DPM-Solver++(3M) (Katherine Crowson, k-diffusion): the exact integral of the parabola through three estimates.

    coefficients: "released" gives its square term half the weight, as k-diffusion does.
    """
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    return _adams(step, x0, 3, eta, s_noise, 1.0 if coefficients == "exact" else 0.5)


def _adams(step: Step, x0: Tensor, order: int, eta: float, s_noise: float = 1.0, square: float = 1.0) -> Tensor:
    """The exact stochastic step for the polynomial in lam through the last estimates."""
    if math.isinf(step.h):
        return _first_order(step, x0, eta, s_noise)
    mean = exponential(step, x0, step.known[: order - 1], eta=eta, square=square)
    return _noisy(step, mean, s_noise * decay(step, eta)[1])


def sa_solver(step: Step, *, order: Literal[1, 2, 3] = 3, tau: Amount = 1.0, low: Share = 0.0, high: Share = 1.0) -> Solution:
    """SA-Solver (Xue et al. 2023, algorithm 1): a stochastic Adams predictor, and a corrector for free as in UniPC.

    tau: the share of noise, 0 the ODE and 1 the SDE, where low <= sigma / (alpha + sigma) <= high, else 0. The predictor goes through the
    last `order` estimates; the corrector replaces its polynomial by one that also goes through the newest, and keeps its noise.
    """
    x0 = yield step.x, step.here
    if step.known:
        weigh = partial(_adams_moulton, _eta(step.known[0].level, tau, low, high))
        step.x = corrected(step, x0, order, weigh)
    if step.next.sigma == 0:
        return step.toward(x0)
    return _adams(step, x0, order, _eta(step.here, tau, low, high))


def _eta(level: Level, tau: float, low: float, high: float) -> float:
    return tau**2 if low <= level.sigma / (level.alpha + level.sigma) <= high else 0.0


def _adams_moulton(eta: float, at: list[float], h: float) -> tuple[list[float], list[float]]:
    """For `corrected`: both polynomials integrated exactly."""
    z = (1 + eta) * h
    return [z * w for w in weights([*at, 1.0], z)], [z * w for w in weights(at, z)]


def er_sde(step: Step, *, order: Literal[1, 2, 3] = 3, s_noise: Amount = 1.0) -> Solution:
    """ER-SDE-Solver (Cui et al. 2023, eq. 20 and "ER SDE 5"): how fast noise is renewed is a free function phi of u = sigma / alpha.

        y_s = r y_t + x_0(s) - r x_0(t) + phi(s) int_s^t x_0'(u) / phi(u) du + sqrt(s² - r² t²) n,    r = phi(s) / phi(t),  y = x / alpha

    x_0(u) is the polynomial through the last `order` estimates. (Released code takes its first difference for the slope at t.)
    """
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    if math.isinf(step.h):
        return _first_order(step, x0, 1.0, s_noise)
    t, s, known = step.here.ratio, step.next.ratio, step.known[: order - 1]
    r = er_phi(s) / er_phi(t)
    at = [0.0, *((past.level.ratio - t) / (s - t) for past in known)]
    weight = [step.next.alpha * w for w in _er_weights(at, t, s)]
    mean = combine((step.next.alpha / step.here.alpha * r, step.x), *zip(weight, [x0, *(past.x0 for past in known)], strict=True))
    return _noisy(step, mean, s_noise * step.next.alpha * math.sqrt(max(0.0, s**2 - (r * t) ** 2)))


def er_phi(u: Any) -> Any:
    return u * (np.exp(u**0.3) + 10)


POINTS, GAUSS = np.polynomial.legendre.leggauss(16)


def _er_weights(at: Sequence[float], t: float, s: float) -> list[float]:
    """Weight of each estimate: its polynomial L(v), v = 0 at t and 1 at s, in the bracket of `er_sde`; the integral is taken over log u."""
    half = math.log(t / s) / 2
    u = math.sqrt(t * s) * np.exp(POINTS * half)
    v, measure = (u - t) / (s - t), er_phi(s) * GAUSS * half * u / er_phi(u) / (s - t)  # du = u dlog(u), L'(u) = L'(v) / (s - t)
    polynomials = [np.array(lagrange(at, j)) for j in range(len(at))]
    powers = np.arange(1, len(at))
    slopes = [(powers * p[1:]) @ (v ** (powers[:, None] - 1)) @ measure for p in polynomials]
    r = er_phi(s) / er_phi(t)
    return [float(p.sum() - r * p[0] + slope) for p, slope in zip(polynomials, slopes, strict=True)]


def pc(
    step: Step,
    *,
    predictor: Literal["reverse_diffusion", "ancestral", "euler_maruyama"] = "reverse_diffusion",
    corrector_steps: Count = 1,
    snr: Positive = 0.16,
    norm: Literal["row", "batch"] = "row",
    variance: Literal["posterior", "beta"] = "posterior",
) -> Solution:
    """Predictor and corrector (Song et al. 2021b, algorithms 2-5): Langevin steps at a level, then a step of the reverse SDE to the next.

    variance: of the "ancestral" predictor; the authors take "posterior" for VE and "beta" for VP. norm: "batch" averages the norms of the
    Langevin step over the batch, as the authors' code does, which makes an image depend on the others in its batch. From pure noise
    "reverse_diffusion" doubles the variance, which later steps forget; "ancestral" is exact there.
    """
    for _ in range(corrector_steps if step.here.alpha > 0 else 0):  # from pure noise a Langevin step has length 0
        x0 = yield step.x, step.here
        step.x = _langevin(step, x0, snr, norm)
    x0 = yield step.x, step.here
    if step.next.sigma == 0:
        return step.toward(x0)
    if predictor == "ancestral":
        return _noisy(step, posterior_mean(step, x0), float(spread(step, variance)))
    a, beta = step.here.alpha / step.next.alpha, added(step.here, step.next)
    grown = 2 - a if predictor == "reverse_diffusion" else 1 + (1 - a**2) / 2
    return _noisy(step, combine((grown, step.x), (beta, _score(step, x0))), math.sqrt(beta))


def _score(step: Step, x0: Tensor) -> Tensor:
    return step.eps(x0) / -step.here.sigma


def _langevin(step: Step, x0: Tensor, snr: float, norm: str) -> Tensor:
    """One step of Langevin dynamics; `snr` is the ratio of its signal to its noise (Song et al. 2021b, algorithms 4 and 5)."""
    score, noise = _score(step, x0), step.noise.draw(x0)
    ratio = _norms(noise, norm) / _norms(score, norm)
    size = 2 * (step.here.alpha / step.next.alpha * snr * ratio) ** 2
    return step.x + size * score + (2 * size).sqrt() * noise


def _norms(x: Tensor, norm: str) -> Tensor:
    found = x.reshape(len(x), -1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))  # an image may have no score at all
    return found if norm == "row" else found.mean()
