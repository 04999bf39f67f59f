"""The closed form against another one written for the solvers' tests, against itself, and against draws."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion import oracle
from unnoise.errors import ArgumentError, UnknownName
from unnoise.evaluation import mixture
from unnoise.evaluation.mixture import PROCESSES, TWO, Mixture, process, shares

THREE = Mixture((0.2, 0.5, 0.3), (-2.0, 0.5, 3.0), (0.1, 1.0, 0.4))


@pytest.mark.parametrize("name", oracle.PROCESSES)
def test_it_is_the_closed_form_of_the_solvers_tests(name):
    ours, theirs = process(name), oracle.PROCESSES[name]
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
    for part in (0.0, 0.6, 1.0):
        t = ours.start + part * (ours.first - ours.start)
        times = torch.full((len(x),), t, dtype=torch.float64)
        for one, other in ((TWO, oracle.EASY), (THREE, oracle.Mixture(THREE.weights, THREE.means, THREE.sds))):
            torch.testing.assert_close(one.denoiser(ours)(x, times), other.denoiser(theirs)(x, times), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(one.at(ours, t, shares(20)), other.at(theirs, t, shares(20)), rtol=1e-12, atol=1e-12)


def test_every_process_of_the_solvers_tests_is_known():
    assert list(PROCESSES) and set(PROCESSES) == set(oracle.PROCESSES)
    with pytest.raises(UnknownName, match="did you mean 'flow'"):
        process("flwo")


@pytest.mark.parametrize("name", PROCESSES)
def test_the_solution_goes_there_and_back(name):
    schedule = process(name)
    x = THREE.at(schedule, schedule.start, shares(101))
    there = THREE.solve(schedule, x, schedule.start, schedule.first)
    torch.testing.assert_close(THREE.solve(schedule, there, schedule.first, schedule.start), x, rtol=1e-6, atol=1e-6)
    assert bool((there.diff() > 0).all()) and float((there - x).abs().max()) > 0.1


def test_the_denoiser_is_the_mean_of_what_could_have_been_there():
    """Draws: among the pairs (x_0, x_t) with x_t in a narrow bin, the mean x_0 is E[x_0 | x_t]."""
    schedule, t, n = process("ddpm"), 500.0, 300_000
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    kind = torch.multinomial(torch.tensor(THREE.weights), n, replacement=True)
    x0 = torch.tensor(THREE.means)[kind] + torch.tensor(THREE.sds)[kind] * torch.randn(n)
    x = alpha * x0 + sigma * torch.randn(n)
    for centre in (-1.0, 0.0, 1.0):
        inside = x0[(x - centre).abs() < 0.02].double()
        expected = THREE.denoise(torch.tensor([centre], dtype=torch.float64), alpha, sigma)
        assert abs(inside.mean() - expected) < 5 * inside.std() / math.sqrt(len(inside))


def test_the_floor_is_what_perfect_draws_have():
    n, unit = 1000, Mixture((1.0,), (0.0,), (1.0,))
    assert unit.floor(n) == pytest.approx(1.288 / math.sqrt(n), rel=1e-3)  # the known constant of the normal distribution
    exact = TWO.at(process("flow"), 0.0, shares(n))
    kind = torch.rand(200, n) < 0.6
    drawn = torch.where(kind, 1.0, -1.0) + 0.5 * torch.randn(200, n)
    found = (drawn.sort(dim=1).values - exact).abs().mean(dim=1)
    assert abs(found.mean() - TWO.floor(n)) < 5 * found.std() / math.sqrt(200) + 0.02 * TWO.floor(n)


@pytest.mark.parametrize(
    "weights, means, sds, said",
    [
        ((0.5, 0.6), (0.0, 1.0), (1.0, 1.0), "add up to 1"),
        ((1.0,), (0.0, 1.0), (1.0,), "1 weights, 2 means"),
        ((1.0,), (0.0,), (0.0,), "sds above 0"),
        ((), (), (), "above 0"),
    ],
)
def test_what_is_no_mixture_is_refused(weights, means, sds, said):
    with pytest.raises(ArgumentError, match=said):
        Mixture(weights, means, sds)


def test_a_denoiser_of_pictures_of_any_shape():
    schedule = process("edm")
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.5, 5.0], dtype=torch.float64)
    found = TWO.denoiser(schedule)(x, t)
    assert found.shape == x.shape
    alone = mixture.TWO.denoiser(schedule)(x[1:].reshape(-1, 1), t[1:].expand(48))
    torch.testing.assert_close(found[1].reshape(-1, 1), alone, rtol=1e-12, atol=1e-12)
