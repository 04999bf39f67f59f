"""Weights of multistep formulas: integrals of a polynomial through past values against an exponential, exact to rounding.

Over a step scaled to v in [0, 1], with L_j the Lagrange polynomial that is 1 at node j and 0 at the others,

    w_j = int_0^1 exp(-z (1 - v)) L_j(v) dv

z = 0 gives Adams-Bashforth and LMS, z = h the exponential integrators in x_0 (DPM-Solver++, UniPC), z = (1 + eta) h their stochastic forms
(SA-Solver), z = -h those in eps (DEIS in log rho). Nodes: 0 is here, negative ones lie in the past, 1 is the next level (a corrector).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def weights(nodes: Sequence[float], z: float = 0.0, *, square: float = 1.0) -> list[float]:
    """One weight a node, in their order. `square` multiplies the integral of v²: 1/2 is a mistake that released code has (dpmpp_3m)."""
    moments = [moment(n, z) * (square if n == 2 else 1) for n in range(len(nodes))]
    return [sum(c * m for c, m in zip(lagrange(nodes, j), moments, strict=True)) for j in range(len(nodes))]


def lagrange(nodes: Sequence[float], j: int) -> list[float]:
    """Coefficients, constant first, of the polynomial that is 1 at node j and 0 at the others."""
    coefficients = [1.0]
    for node in (*nodes[:j], *nodes[j + 1 :]):
        scale = 1 / (nodes[j] - node)
        times_v, times_node = [0.0, *coefficients], [*coefficients, 0.0]
        coefficients = [scale * (a - node * b) for a, b in zip(times_v, times_node, strict=True)]
    return coefficients


def moment(n: int, z: float) -> float:
    """int_0^1 exp(-z (1 - v)) v^n dv = n! phi_{n+1}(-z): by its series near 0, where the recursion loses every digit."""
    if abs(z) < 1:
        term, total = 1 / (n + 1), 0.0
        for j in range(1, 20):  # terms n! (-z)^j / (n + 1 + j)!; 20 of them are below 1e-18
            total += term
            term *= -z / (n + 1 + j)
        return total
    value = -math.expm1(-z) / z
    for k in range(1, n + 1):
        value = (1 - k * value) / z
    return value
