"""The likelihood against closed forms: Gaussians, whose path under the ODE is known; mixtures; and the one law that any density obeys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion.oracle import EASY, PROCESSES, Mixture
from unnoise.diffusion.likelihood import Likelihood, log_likelihood
from unnoise.diffusion.noise import Recorded, Streams
from unnoise.diffusion.sampling import Estimate, sample
from unnoise.diffusion.schedules import Schedule, edm
from unnoise.errors import ArgumentError, NonFiniteError, UnknownName

VP, EDM, FLOW = (PROCESSES[name] for name in ("ddpm", "edm", "flow"))
PURE = {name: PROCESSES[name] for name in ("zero_snr", "flow", "flow_shift3")}  # alpha is 0 at the noisy end
MEAN, SD = torch.tensor([0.3, -1.0, 0.5, 0.0]).double(), torch.tensor([0.5, 1.2, 0.1, 1.0]).double()
TURN = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
COVARIANCE = TURN @ (SD**2).diag() @ TURN.T

Denoise = Callable[[Tensor, Tensor], Tensor]


def points(rows: int = 5, d: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(rows, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scales(schedule: Schedule, t: float | Tensor) -> tuple[Tensor, Tensor]:
    return schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]


def diagonal(schedule: Schedule, mean: Tensor = MEAN, sd: Tensor = SD) -> Denoise:
    """E[x_0 | x_t] of N(mean, diag sd²)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, b = scales(schedule, t)
        return mean + a * sd**2 / (a**2 * sd**2 + b**2) * (x - a * mean)

    return denoise


def correlated(schedule: Schedule) -> Denoise:
    """The same of N(MEAN, COVARIANCE), whose Jacobian is not diagonal."""
    inside = diagonal(schedule, MEAN @ TURN, SD)
    return lambda x, t: inside(x @ TURN, t) @ TURN.T


def gaussian(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    return (-(((x - mean) / sd) ** 2) / 2 - (sd * math.sqrt(2 * math.pi)).log()).sum(-1)


def expected(schedule: Schedule, x: Tensor, mean: Tensor = MEAN, sd: Tensor = SD) -> Tensor:
    """The model's own density. The ODE keeps (x - a m) / sqrt(V), V = a² s² + b², so its Jacobian is known; the prior has b_T² for V_T."""
    (a, b), (a_end, b_end) = scales(schedule, schedule.first), scales(schedule, schedule.start)
    growth = ((a_end**2 * sd**2 + b_end**2) / (a**2 * sd**2 + b**2)).sqrt()
    latents = a_end * mean + growth * (x - a * mean)
    return gaussian(latents, torch.zeros(()), b_end.expand(len(sd))) + growth.log().sum(-1)


def density(mixture: Mixture, schedule: Schedule, x: Tensor, t: float) -> Tensor:
    """log of the marginal at t, element by element."""
    w, m, s = (torch.tensor(values, dtype=torch.float64) for values in (mixture.weights, mixture.means, mixture.sds))
    a, b = scales(schedule, t)
    sd = (a**2 * s**2 + b**2).sqrt()
    return torch.logsumexp(w.log() - ((x[..., None] - a * m) / sd) ** 2 / 2 - (sd * math.sqrt(2 * math.pi)).log(), -1)


def exact(denoise: Denoise, x: Tensor, schedule: Schedule, **options: object) -> Likelihood:
    return log_likelihood(denoise, x, schedule=schedule, trace="exact", **({"tolerance": 1e-9} | options))  # type: ignore[arg-type]


# Against closed forms


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("d", [1, 4])
def test_a_gaussian(schedule: Schedule, d: int):
    x, mean, sd = points(d=d), MEAN[:d], SD[:d]
    found = exact(diagonal(schedule, mean, sd), x, schedule)
    torch.testing.assert_close(found.log_density, expected(schedule, x, mean, sd), rtol=0, atol=1e-6)


def test_the_prior_is_the_noise_alone():
    """Data of mean 3 that sigma_max 5 does not drown: the density is not the data's, and lacks what the wrong prior costs."""
    schedule = edm(sigma_max=5.0)
    x, mean, sd = points() + 3, torch.full((4,), 3.0).double(), torch.ones(4).double()
    found = exact(diagonal(schedule, mean, sd), x, schedule).log_density
    torch.testing.assert_close(found, expected(schedule, x, mean, sd), rtol=0, atol=1e-6)
    # KL(N(3, 1 + 5²) || N(0, 5²)) a dimension is what it lacks in the mean: .18 nats
    assert bool((found - gaussian(x, mean, sd)).abs().max() > 0.1)


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_correlated_numbers(schedule: Schedule):
    x = points()
    found = exact(correlated(schedule), x, schedule)
    torch.testing.assert_close(found.log_density, expected(schedule, x @ TURN, MEAN @ TURN, SD), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", PURE.values(), ids=PURE)
def test_a_mixture_from_pure_noise(schedule: Schedule):
    """Where no data is left at the noisy end, the model is the data at the cleanest trained time."""
    x = torch.linspace(-2.5, 2.5, 12, dtype=torch.float64).view(6, 2)
    found = exact(EASY.denoiser(schedule), x, schedule)
    torch.testing.assert_close(found.log_density, density(EASY, schedule, x, schedule.first).sum(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW, PROCESSES["sd"]], ids=["vp", "ve", "flow", "sd"])
def test_any_denoiser_makes_a_density(schedule: Schedule):
    """An invertible map of a density is a density: it sums to 1, also where the denoiser is that of no data at all."""

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        a, b = scales(schedule, t)
        return EASY.denoiser(schedule)(x, t) + 0.3 * b / (a + b) * torch.sin(2 * x / (a + b))

    x = torch.linspace(-8, 8, 401, dtype=torch.float64)[:, None]
    found = exact(wrong, x, schedule, steps=50)
    assert float((found.log_density - density(EASY, schedule, x[:, 0], schedule.first)).abs().max()) > 0.5
    assert float(torch.trapezoid(found.log_density.exp(), x[:, 0])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW], ids=["vp", "ve", "flow"])
def test_the_latents_lie_where_the_path_ends(schedule: Schedule):
    x = torch.tensor([[-1.4], [-0.2], [0.1], [1.7]], dtype=torch.float64)
    a, b = schedule.alpha(schedule.first), schedule.sigma(schedule.first)
    found = exact(EASY.denoiser(schedule), x, schedule).latents
    torch.testing.assert_close(found, EASY.at(schedule, schedule.start, EASY.cdf(x, a, b)), rtol=1e-7, atol=1e-7)


# The trace


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW], ids=["vp", "ve", "flow"])
def test_random_signs_are_exact_where_the_jacobian_is_diagonal(schedule: Schedule):
    x = points()
    found = log_likelihood(diagonal(schedule), x, schedule=schedule, tolerance=1e-9)
    torch.testing.assert_close(found.log_density, expected(schedule, x), rtol=0, atol=1e-6)


def test_random_signs_are_right_in_the_mean():
    """One image under 4000 seeds; five standard errors. The paths do not depend on the signs, so the log density is unbiased too."""
    x = points(1).expand(4000, 4)
    found = log_likelihood(correlated(FLOW), x, schedule=FLOW, steps=40).log_density
    truth = expected(FLOW, x[:1] @ TURN, MEAN @ TURN, SD).item()
    assert float(found.std()) > 0.1
    assert float(found.mean()) == pytest.approx(truth, abs=5 * float(found.std()) / 4000**0.5)


def test_recorded_signs_are_used():
    """e·Je by hand: with e a vector of signs and J linear in x, the estimate is the exact one with the diagonal of e e^T J."""
    x, signs = points(), torch.where(points(seed=8) < 0, -1.0, 1.0).double()
    found = log_likelihood(correlated(FLOW), x, schedule=FLOW, seed=Recorded([signs * 3]), steps=200).log_density
    # the ODE's own integral, of e·(dJ)e: J of dy/du has the eigenvectors TURN, and log growth for its integrals
    (a, b), (a_end, b_end) = scales(FLOW, FLOW.first), scales(FLOW, FLOW.start)
    growth = ((a_end**2 * SD**2 + b_end**2) / (a**2 * SD**2 + b**2)).sqrt().log()
    estimate = ((signs @ TURN) ** 2 * growth).sum(1)
    truth = expected(FLOW, x @ TURN, MEAN @ TURN, SD)
    torch.testing.assert_close(found, truth - growth.sum() + estimate, rtol=0, atol=1e-6)


def test_an_image_is_not_measured_along_the_noise_it_was_made_of():
    """Seed 7 makes a picture of its first draw; the same draw's signs would depend on the picture and bias the estimate."""
    made_of = Streams([7]).draw(torch.empty(1, 64)).double()
    mixed = lambda x, t: x.roll(1, 1) * 0.5  # noqa: E731
    by_seed, again, by_noise = (
        log_likelihood(mixed, made_of, schedule=FLOW, seed=seed, steps=4).log_density for seed in (7, 7, Recorded([made_of]))
    )
    assert torch.equal(by_seed, again) and not torch.equal(by_seed, by_noise)


# The integrator


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW, PROCESSES["zero_snr"]], ids=["vp", "ve", "flow", "zero_snr"])
def test_equal_steps_converge_at_the_fifth_order(schedule: Schedule):
    x, mean, sd = points(d=1), MEAN[:1], SD[:1]
    errors = [exact(diagonal(schedule, mean, sd), x, schedule, steps=n).log_density - expected(schedule, x, mean, sd) for n in (40, 80)]
    coarse, fine = (error.abs().max() for error in errors)
    assert float(torch.log2(coarse / fine)) == pytest.approx(5, abs=0.3)


def test_a_smaller_tolerance_is_a_smaller_error_and_more_evaluations():
    x, tolerances = MEAN + SD * points(), (1e-3, 1e-5, 1e-7, 1e-9)
    found = [exact(diagonal(EDM), x, EDM, tolerance=tolerance) for tolerance in tolerances]
    errors = [float((one.log_density - expected(EDM, x)).abs().max()) for one in found]
    # tens of steps in 4 dimensions; an error of y is worth up to 2 / .1 of its size in the narrowest
    assert all(error < 100 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    counts = [one.evaluations for one in found]
    assert counts == sorted(set(counts))


def test_evaluations_are_counted():
    calls = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return 0.5 * x

    found = log_likelihood(denoise, points(), schedule=FLOW, steps=10)
    assert found.evaluations == len(calls) == 6 * 10 + 1
    assert float(calls[0][0]) == FLOW.first and float(calls[-1][0]) == FLOW.start


def test_float32_is_good_to_its_precision():
    x = (MEAN + SD * points()).float().double()
    for schedule in (VP, EDM, FLOW):
        found = log_likelihood(lambda x, t, s=schedule: diagonal(s)(x.double(), t).float(), x.float(), schedule=schedule)
        assert found.latents.dtype == torch.float32 and found.log_density.dtype == torch.float64
        torch.testing.assert_close(found.log_density, expected(schedule, x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"steps": 15}, {"trace": "exact"}], ids=["tolerance", "steps", "exact"])
def test_no_image_depends_on_its_batch(options: dict):
    x, denoise = points(7, 3), EASY.denoiser(EDM)
    together = log_likelihood(denoise, x, schedule=EDM, seed=40, **options)
    for i in range(7):
        alone = log_likelihood(denoise, x[i : i + 1], schedule=EDM, seed=40 + i, **options)
        assert torch.equal(alone.log_density, together.log_density[i : i + 1])
        assert torch.equal(alone.latents, together.latents[i : i + 1])


def test_conditions_stay_beside_their_images():
    """The condition is the row's mean; rows arrive at different times, and each has its own all the way."""
    x, means = points(3), torch.tensor([[-1.0], [0.0], [2.0]]).double()
    mixed = log_likelihood(lambda x, t, cond: cond + diagonal(FLOW)(x - scales(FLOW, t)[0] * cond, t), x, schedule=FLOW, cond=means)  # type: ignore[arg-type]
    for i in range(3):
        alone = log_likelihood(diagonal(FLOW, MEAN + means[i]), x[i : i + 1], schedule=FLOW, seed=i)
        torch.testing.assert_close(mixed.log_density[i : i + 1], alone.log_density, rtol=0, atol=1e-4)


def test_an_answer_with_a_learned_variance():
    x = points()
    plain = log_likelihood(diagonal(FLOW), x, schedule=FLOW)
    with_variance = log_likelihood(lambda x, t: Estimate(diagonal(FLOW)(x, t), torch.zeros_like(x)), x, schedule=FLOW)
    assert torch.equal(plain.log_density, with_variance.log_density)


def test_it_works_where_gradients_are_off_and_leaves_none_behind():
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = points().requires_grad_()
    with torch.no_grad():
        off = log_likelihood(lambda x, t: scale * x, x, schedule=FLOW)
    on = log_likelihood(lambda x, t: scale * x, x, schedule=FLOW)
    assert torch.equal(on.log_density, off.log_density) and torch.equal(on.latents, off.latents)
    assert not on.log_density.requires_grad and not on.latents.requires_grad and scale.grad is None and x.grad is None


# Units


def test_bits_per_dimension():
    """White noise over one of 256 equal intervals of [-1, 1] is 8 bits a number, and as much in [0, 1]."""
    for width in (2.0, 1.0):
        uniform = Likelihood(torch.tensor([-12 * math.log(width)]).double(), torch.zeros(1, 3, 2, 2), 0)
        torch.testing.assert_close(uniform.bits_per_dim(width / 256), torch.tensor([8.0]).double())
    natural = Likelihood(torch.tensor([-12 * math.log(2) * 1.5]).double(), torch.zeros(1, 3, 2, 2), 0)
    assert float(natural.bits_per_dim()) == pytest.approx(1.5 + 7)  # the paper's offset
    assert float(natural.bits_per_dim(spacing=1.0)) == pytest.approx(1.5)


def test_a_worse_model_needs_more_bits():
    """Samples of the model itself have its entropy as mean; those of a model with another spread cost the divergence between them."""
    noise = points(2000, 1)
    x = sample(diagonal(FLOW, MEAN[:1], SD[:1]), noise, schedule=FLOW, sampler="heun", steps=50)
    right, wrong = (log_likelihood(diagonal(FLOW, MEAN[:1], sd), x, schedule=FLOW).log_density for sd in (SD[:1], 2 * SD[:1]))
    entropy = math.log(0.5 * math.sqrt(2 * math.pi * math.e))
    assert float(-right.mean()) == pytest.approx(entropy, abs=5 * 0.5**0.5 / 2000**0.5)
    assert float((right - wrong).mean()) == pytest.approx(math.log(2) - 0.5 * (1 - 0.25), abs=0.05)


# Refusals


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"x": torch.zeros(3)}, "shape (3,)"),
        ({"x": torch.zeros(0, 3)}, "at least one"),
        ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, "torch.uint8"),
        ({"x": torch.zeros(2, 3, dtype=torch.float16)}, "torch.float16"),
        ({"steps": 0}, "got 0 steps"),
        ({"steps": True}, "got True steps"),
        ({"steps": 2.5}, "got 2.5 steps"),
        ({"tolerance": 0.0}, "got tolerance 0.0"),
        ({"tolerance": float("nan")}, "got tolerance nan"),
        ({"tolerance": 1e-9, "x": torch.zeros(2, 3)}, "precision of torch.float32"),
        ({"seed": -1}, "got seed -1"),
        ({"seed": Streams([0])}, "got 1 seeds for 2 images"),
        ({"seed": Recorded([])}, "none left"),
    ],
)
def test_refusals(arguments: dict, words: str):
    x = arguments.pop("x", torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ArgumentError) as refused:
        log_likelihood(lambda x, t: 0.5 * x, x, schedule=FLOW, **arguments)
    assert words in str(refused.value)


def test_an_unknown_trace():
    with pytest.raises(UnknownName, match="did you mean 'hutchinson'"):
        log_likelihood(lambda x, t: x, points(), schedule=FLOW, trace="hutchison")  # type: ignore[arg-type]


def test_an_answer_of_another_shape():
    with pytest.raises(ArgumentError, match=r"shape \(5, 2\): expected that of x, \(5, 4\)"):
        log_likelihood(lambda x, t: x[:, :2], points(), schedule=FLOW)


def test_an_answer_without_gradient():
    """It would count as a denoiser whose Jacobian is 0, and give a density that is wrong in silence."""
    with pytest.raises(ArgumentError, match="no gradient"):
        log_likelihood(torch.no_grad()(lambda x, t: 0.5 * x), points(), schedule=FLOW)


def test_an_answer_that_is_not_finite():
    with pytest.raises(NonFiniteError, match="not finite at t from"):
        log_likelihood(lambda x, t: x / 0, points(), schedule=FLOW)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_a_spacing_that_is_none(spacing: float):
    with pytest.raises(ArgumentError, match="got spacing"):
        Likelihood(torch.zeros(1), torch.zeros(1, 2), 0).bits_per_dim(spacing)
