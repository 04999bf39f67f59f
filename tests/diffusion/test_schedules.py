"""Schedules against published tables and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion.oracle import PROCESSES
from unnoise.diffusion import schedules
from unnoise.diffusion.schedules import ContinuousVP, Discrete, Flow, Schedule
from unnoise.errors import ArgumentError, UnknownName

TABLES = {name: s for name, s in PROCESSES.items() if isinstance(s, Discrete)}
VARIANCE_PRESERVING = {**TABLES, "continuous_vp": PROCESSES["continuous_vp"]}
every_process = pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)


def close(mine: object, expected: object, relative: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(mine, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64), rtol=relative, atol=0
    )


# alpha_bar at indices of published tables, from a product of 1 - beta in 50 digits; the digits given bound the tolerance
PUBLISHED = {
    "ddpm": (
        schedules.vp("linear"),
        {0: 0.9999, 249: 0.5240853738253606, 499: 0.07858724288177824, 749: 0.003350550438936774, 999: 4.035829765375676e-05},
        1e-12,
    ),
    "stable diffusion": (
        schedules.vp("scaled_linear"),
        {0: 0.99915, 249: 0.6754324137251241, 499: 0.2776696504564676, 749: 0.05662349159826972, 999: 0.004660098513077238},
        1e-12,
    ),
    "latent diffusion": (
        schedules.vp("scaled_linear", beta_start=0.0015, beta_end=0.0195),
        {0: 0.9985, 499: 0.1158444908103479, 999: 1.423039751920179e-04},
        1e-12,
    ),
    "cosine": (
        schedules.vp("cosine"),
        {0: 0.9999587157751780, 249: 0.8470121613269050, 499: 0.4938435904406382, 749: 0.1442721023857360, 998: 2.428766907e-06},
        1e-9,
    ),
    "zero terminal snr": (
        schedules.vp("scaled_linear", zero_terminal_snr=True),
        {0: 0.99915, 249: 0.654189007, 499: 0.242359167, 749: 0.0331714828, 998: 1.96788806e-07},
        2e-9,
    ),
}


@pytest.mark.parametrize("schedule, published, relative", PUBLISHED.values(), ids=PUBLISHED)
def test_published_tables(schedule: Discrete, published: dict[int, float], relative: float):
    index = torch.tensor(list(published))
    expected = torch.tensor(list(published.values()), dtype=torch.float64)
    close(schedule.alpha_bar[index], expected, relative)
    every = torch.arange(1000)
    assert torch.equal(schedule.alpha(every), schedule.alpha_bar.sqrt())  # a whole time is the table's own entry, to the bit
    assert torch.equal(schedule.sigma(every), (1 - schedule.alpha_bar).sqrt())
    assert schedule.timestep(index.double()).tolist() == index.tolist()


def test_published_noise_levels():
    """sigma / alpha, as EDM and k-diffusion write the same tables."""
    for name, levels in {
        "ddpm": {0: 0.0100005, 249: 0.9529355, 499: 3.4241366, 749: 17.2469830, 999: 157.4072808},
        "sd": {0: 0.0291671582, 249: 0.6932048996, 499: 1.6128861943, 749: 4.0817293637, 999: 14.6146412293},
    }.items():
        t = torch.tensor(list(levels), dtype=torch.float64)
        close(PROCESSES[name].sigma(t) / PROCESSES[name].alpha(t), list(levels.values()), 1e-7)


def test_published_betas():
    bar = schedules.vp("scaled_linear").alpha_bar
    betas = 1 - bar[1:] / bar[:-1]
    close(betas[[248, 498, 748, 998]], [2.419837596228e-03, 4.803792980551e-03, 7.997180448475e-03, 0.012], 1e-10)
    bar = schedules.vp("cosine").alpha_bar
    close(1 - bar[998] / bar[997], 0.7499993929, 1e-9)
    close(bar[999] / bar[998], 0.001, 1e-12)  # the last beta is capped at 0.999: without the cap alpha_bar would be 0
    close(bar[999], 2.428766907e-09, 1e-9)


def test_posterior_variance_of_ddpm():
    """beta tilde at index 1 is 5.4531876613e-05, whose log fixes the clipping of learned variances."""
    bar = schedules.vp().alpha_bar
    posterior = (1 - bar[0]) / (1 - bar[1]) * (1 - bar[1] / bar[0])
    close(posterior, 5.4531876613e-05, 1e-9)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_its_first_step():
    schedule, plain = schedules.vp("scaled_linear", zero_terminal_snr=True), schedules.vp("scaled_linear")
    assert schedule.alpha(999).item() == 0 and schedule.sigma(999).item() == 1
    assert schedule.logsnr(999).item() == -math.inf
    close(schedule.alpha_bar[0], plain.alpha_bar[0], 1e-14)
    # algorithm 1 of Lin et al. is affine in sqrt(alpha_bar): equal ratios of differences
    new, old = schedule.alpha_bar.sqrt(), plain.alpha_bar.sqrt()
    close((new[1:] - new[:-1]) / (old[1:] - old[:-1]), (new[0] / (old[0] - old[-1])).expand(999), 1e-9)


@every_process
def test_the_clean_end_is_the_data(schedule: Schedule):
    assert schedule.alpha(schedule.end).item() == 1 and schedule.sigma(schedule.end).item() == 0
    assert schedule.logsnr(schedule.end).item() == math.inf
    assert schedule.time(math.inf).item() == schedule.end
    assert schedule.end < schedule.first < schedule.start


def inside(schedule: Schedule, n: int = 4001) -> torch.Tensor:
    """Times from the noisy end to just above the clean one; in a table also on every index and between them."""
    gap = (schedule.start - schedule.end) * 1e-3
    times = torch.linspace(schedule.start, schedule.end + gap, n, dtype=torch.float64)
    if isinstance(schedule, Discrete):
        times = torch.cat([times, torch.arange(1000, dtype=torch.float64), torch.arange(1000) - 0.37])
    return times


@every_process
def test_time_inverts_logsnr_on_indices_and_between(schedule: Schedule):
    t = inside(schedule)
    # near t = -1 alpha_bar is 1 - 1e-7 and rounds at 1e-16; relative to the step of one index that is 1e-9
    torch.testing.assert_close(schedule.time(schedule.logsnr(t)), t, rtol=1e-9, atol=1e-8)
    assert schedule.time(schedule.logsnr(schedule.start)).item() == pytest.approx(schedule.start, abs=1e-9)
    assert schedule.time(schedule.logsnr(schedule.first)).item() == pytest.approx(schedule.first, abs=1e-9)


@every_process
def test_logsnr_falls_and_is_what_it_says(schedule: Schedule):
    t = inside(schedule).sort().values.unique()
    logsnr = schedule.logsnr(t)
    assert bool((logsnr[1:] < logsnr[:-1]).all())
    known = torch.isfinite(logsnr)
    expected = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
    torch.testing.assert_close(logsnr[known], expected[known], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING.values(), ids=VARIANCE_PRESERVING)
def test_variance_is_preserved(schedule: Schedule):
    t = inside(schedule)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize("schedule", TABLES.values(), ids=TABLES)
def test_a_table_is_even_in_logsnr_between_its_indices(schedule: Discrete):
    """As k-diffusion interpolates; alpha_bar itself is used only beside infinite ends."""
    low = torch.arange(0, 998, dtype=torch.float64)
    middle = (schedule.logsnr(low) + schedule.logsnr(low + 1)) / 2
    torch.testing.assert_close(schedule.logsnr(low + 0.5), middle, rtol=1e-10, atol=1e-10)
    half = (1 + schedule.alpha_bar[0]) / 2
    torch.testing.assert_close(schedule.alpha(-0.5) ** 2, half, rtol=1e-14, atol=0)


@every_process
def test_shapes_and_dtype(schedule: Schedule):
    t = torch.tensor([[schedule.start, schedule.first]], dtype=torch.float32)
    for value in (schedule.alpha(t), schedule.sigma(t), schedule.logsnr(t), schedule.time(schedule.logsnr(t)), schedule.timestep(t)):
        assert value.dtype == torch.float64 and value.shape == (1, 2)
    assert schedule.alpha(schedule.start).shape == ()


def test_continuous_vp_closed_form():
    """alpha = exp(-t² (beta_max - beta_min)/4 - t beta_min/2); at t = 1 that is exp(-5.025)."""
    schedule = ContinuousVP()
    close(schedule.alpha(1.0), math.exp(-5.025), 1e-14)
    close(schedule.sigma(1.0), math.sqrt(1 - math.exp(-10.05)), 1e-14)
    close(schedule.alpha(0.5), math.exp(-0.25 * 0.25 * 19.9 - 0.025), 1e-14)
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.alpha(t).log().sum(), t)
    close(slope, -(0.1 + 19.9 * t.detach()) / 2, 1e-12)  # d log alpha / dt = -beta(t)/2, the definition
    close(ContinuousVP(2.0, 2.0).time(ContinuousVP(2.0, 2.0).logsnr(0.3)), 0.3, 1e-12)  # constant beta: no quadratic term
    assert schedule.timestep(1.0).item() == 999


def test_the_discrete_linear_table_is_the_continuous_process():
    """beta_i = beta(t)/1000 (Song et al. 2021, appendix C): logsnr agrees up to the sum's own step of 1/1000."""
    table, sde = schedules.vp(), ContinuousVP()
    index = torch.arange(99, 1000, 100, dtype=torch.float64)
    torch.testing.assert_close(table.logsnr(index), sde.logsnr((index + 1) / 1000), rtol=0.03, atol=0.02)


def test_edm():
    schedule = schedules.edm(0.002, 80)
    t = torch.tensor([0.002, 1.0, 80.0])
    close(schedule.sigma(t), t.double())
    close(schedule.alpha(t), [1.0, 1.0, 1.0])
    close(schedule.timestep(t)[2], math.log(80) / 4)  # c_noise
    assert schedule.timestep(1.0).item() == 0
    assert (schedule.start, schedule.first, schedule.end) == (80, 0.002, 0)


# Stable Diffusion 3's 28 steps with shift 3: the plain list 1, 27/28, .. 1/28 shifted once
SD3 = {0: 1.0, 1: 0.98780488, 14: 0.75, 27: 0.1}


def test_flow_shift_of_stable_diffusion_3():
    schedule = schedules.flow(3.0)
    t = torch.linspace(1, 0, 29, dtype=torch.float64)
    close(schedule.sigma(t)[list(SD3)], list(SD3.values()), 1e-8)
    torch.testing.assert_close(schedule.alpha(t), 1 - schedule.sigma(t), rtol=0, atol=1e-15)
    close(schedule.timestep(0.5), 750)  # the network is told the shifted level, times 1000


def test_the_released_shift_is_applied_twice_at_the_low_end():
    """diffusers and Stability run linspace(1, shift(1/1000)) through the shift again: their list is ours at those times."""
    schedule = schedules.flow(3.0)
    low = schedule.sigma(0.001).item()
    assert low == pytest.approx(0.00299401, abs=1e-8)
    released = schedule.sigma(torch.linspace(1, low, 28, dtype=torch.float64))
    close(released[[1, 2, 13, 26, 27]], [0.98738063, 0.97410777, 0.7646771, 0.11090573, 0.00892857], 1e-6)


def test_flow_shift_composes_and_one_is_none():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedules.flow().sigma(t), t, rtol=0, atol=0)
    twice = Flow(2.0).sigma(Flow(1.5).sigma(t))
    torch.testing.assert_close(twice, Flow(3.0).sigma(t), rtol=1e-14, atol=1e-15)


REFUSED = {
    "a beta of 0": (lambda: schedules.vp(torch.tensor([0.0, 0.1])), "betas must be"),
    "a beta above 1": (lambda: schedules.vp(torch.tensor([0.5, 1.1])), "betas must be"),
    "a beta of 1 before the end": (lambda: schedules.vp(torch.tensor([0.1, 1.0, 0.1])), "only the last may be 1"),
    "nan": (lambda: schedules.vp(torch.tensor([0.1, math.nan])), "betas must be"),
    "one beta": (lambda: schedules.vp(torch.tensor([0.1])), "betas must be"),
    "two dimensions": (lambda: schedules.vp(torch.full((2, 2), 0.1)), "betas must be"),
    "a tensor and its end": (lambda: schedules.vp(torch.tensor([0.1, 0.2]), beta_end=0.3), "leave beta_start and beta_end out"),
    "ends of cosine": (lambda: schedules.vp("cosine", beta_end=0.5), "cosine"),
    "a negative end": (lambda: schedules.vp("linear", beta_start=-0.1), "betas must be"),
    "no steps": (lambda: schedules.vp(steps=0), "got steps 0"),
    "sigma_min 0": (lambda: schedules.edm(0.0, 80), "expected 0 < sigma_min < sigma_max"),
    "sigmas swapped": (lambda: schedules.edm(80, 0.002), "expected 0 < sigma_min < sigma_max"),
    "shift 0": (lambda: schedules.flow(0.0), "got shift 0.0"),
    "shift nan": (lambda: schedules.flow(math.nan), "got shift nan"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refused(make, message: str):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'scaled_linear'"):
        schedules.vp("scaled_linaer")  # type: ignore[arg-type]


def test_a_last_beta_of_one_is_pure_noise():
    assert schedules.vp(torch.tensor([0.5, 1.0])).alpha(1.0).item() == 0
