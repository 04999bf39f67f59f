"""Weights of multistep formulas against integrals taken numerically, and against the tables of textbooks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unnoise.diffusion.coefficients import lagrange, moment, weights


def integral(function, points: int = 60) -> float:
    """Over [0, 1], by Gauss and Legendre."""
    x, w = np.polynomial.legendre.leggauss(points)
    return float((w * function((x + 1) / 2)).sum() / 2)


@pytest.mark.parametrize("z", [-20.0, -3.0, -1.0, -0.999, -1e-6, 0.0, 1e-12, 0.3, 0.999, 1.0, 2.5, 40.0])
@pytest.mark.parametrize("n", range(5))
def test_moments(n: int, z: float):
    """Both sides of |z| = 1, where the series hands over to the recursion."""
    expected = integral(lambda v: np.exp(-z * (1 - v)) * v**n)
    assert moment(n, z) == pytest.approx(expected, rel=1e-11)


def test_moments_where_steps_are_tiny():
    """A thousand steps, and times that almost touch: the recursion alone would have lost every digit (1e-10 here)."""
    for n in range(4):
        assert moment(n, 1e-10) == pytest.approx(1 / (n + 1), rel=1e-9)


def test_a_lagrange_polynomial_is_one_at_its_node():
    nodes = [0.0, -0.7, -1.9, 1.0]
    for j in range(4):
        assert [sum(c * v**k for k, c in enumerate(lagrange(nodes, j))) for v in nodes] == pytest.approx([float(i == j) for i in range(4)])


@pytest.mark.parametrize(
    "order, table", [(1, [1]), (2, [1.5, -0.5]), (3, [23 / 12, -16 / 12, 5 / 12]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24])]
)
def test_equal_steps_give_adams_bashforth(order: int, table: list[float]):
    assert weights([0.0, -1.0, -2.0, -3.0][:order]) == pytest.approx(table, rel=1e-13)


def test_a_node_at_the_end_gives_adams_moulton():
    assert weights([0.0, -1.0, 1.0]) == pytest.approx([8 / 12, -1 / 12, 5 / 12], rel=1e-13)


@pytest.mark.parametrize("z", [-1.7, 0.0, 0.4, 1.4, 6.0])
def test_polynomials_are_integrated_exactly(z: float):
    nodes = [0.0, -0.4, -2.5]
    cubic = lambda v: 3 - 2 * v + 0.7 * v**2  # noqa: E731
    found = sum(w * cubic(v) for w, v in zip(weights(nodes, z), nodes, strict=True))
    assert found == pytest.approx(integral(lambda v: np.exp(-z * (1 - v)) * cubic(v)), rel=1e-12)


def test_the_released_mistake_is_half_of_the_square_term():
    """What dpm_solver_pytorch, k-diffusion and diffusers weigh with phi_2/h - 1/2 where twice that is right."""
    z, nodes = 0.8, [0.0, -1.0, -2.0]
    square = [lagrange(nodes, j)[2] for j in range(3)]
    phi2 = math.expm1(-z) / z + 1
    expected = [w - c * (0.5 - phi2 / z) / z for w, c in zip(weights(nodes, z), square, strict=True)]
    assert weights(nodes, z, square=0.5) == pytest.approx(expected, rel=1e-12)
