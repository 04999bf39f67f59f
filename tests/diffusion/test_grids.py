"""Time grids against the published lists, and the promises that every grid makes on every process."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from diffusion.oracle import PROCESSES
from unnoise.diffusion import schedules
from unnoise.diffusion.grids import GRIDS, beta_quantile, default, grid
from unnoise.diffusion.schedules import Discrete, Schedule
from unnoise.errors import ArgumentError, UnknownName

SD = PROCESSES["sd"]
STEPS = (1, 2, 3, 7, 20, 50, 999, 1000)


def times(spacing: str, steps: int, schedule: Schedule = SD, **arguments: object) -> list[float]:
    """Without the last, the data."""
    *rest, last = grid(schedule, spacing, steps, **arguments).tolist()  # type: ignore[arg-type]
    assert last == (schedule.end if arguments.get("ending", "clean") == "clean" else schedule.first)
    return rest


# The lists that DDIM and diffusers walk (Lin et al. 2023, table 2)


def test_leading_of_fifty():
    assert times("leading", 50) == list(range(980, -1, -20))
    assert times("leading", 50, offset=1) == list(range(981, 0, -20))


def test_linspace_of_fifty():
    found = times("linspace", 50)
    assert found[:5] == [999, 979, 958, 938, 917] and found[-4:] == [61, 41, 20, 0]


def test_trailing_of_fifty():
    assert times("trailing", 50) == list(range(999, 0, -20))


def test_steps_that_do_not_divide_the_table():
    """leading starts low (a stride of 33: 29 * 33 = 957); linspace and trailing start at the end whatever the number."""
    assert {name: times(name, 30)[0] for name in ("leading", "linspace", "trailing")} == {"leading": 957, "linspace": 999, "trailing": 999}
    assert times("trailing", 30)[:4] == [999, 966, 932, 899]
    assert times("leading", 160)[0] == 954 and times("leading", 300)[0] == 897


def test_four_steps():
    assert times("leading", 4) == [750, 500, 250, 0]
    assert times("linspace", 4) == [999, 666, 333, 0]
    assert times("trailing", 4) == [999, 749, 499, 249]


EDM_18 = [80, 57.5859847, 40.7855738, 28.3745846, 19.352453, 12.9100824, 8.40093531, 5.31519452, 3.25682152, 1.92333984]
EDM_18 += [1.08817064, 0.585348123, 0.296442284, 0.139516469, 0.0599473112, 0.0229345184, 0.00752801996, 0.002]
SD_10 = [14.61464123, 9.10292813, 5.47839199, 3.16860307, 1.74941705, 0.91407227, 0.44691821, 0.2013983, 0.08191024, 0.02916716]


def test_karras_of_edm():
    """Karras et al. 2022, eq. 5, N = 18."""
    found = torch.tensor(times("karras", 18, schedules.edm()), dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(EDM_18, dtype=torch.float64), rtol=1e-8, atol=0)


def test_karras_of_stable_diffusion():
    t = torch.tensor(times("karras", 10), dtype=torch.float64)
    torch.testing.assert_close(SD.sigma(t) / SD.alpha(t), torch.tensor(SD_10, dtype=torch.float64), rtol=1e-7, atol=0)


def test_karras_keeps_a_very_noisy_end():
    """VE processes of larger images reach sigma 1348 (Song et al. 2021); alpha is 1 throughout, so nothing is clipped."""
    sigmas = torch.tensor(times("karras", 12, schedules.edm(0.01, 1348)), dtype=torch.float64)
    roots = torch.linspace(1348 ** (1 / 7), 0.01 ** (1 / 7), 12, dtype=torch.float64)
    torch.testing.assert_close(sigmas, roots**7, rtol=1e-10, atol=0)


def test_logsnr_is_even():
    t = grid(SD, "logsnr", 11)[:-1]
    torch.testing.assert_close(SD.logsnr(t), torch.linspace(SD.logsnr(999).item(), SD.logsnr(0).item(), 11, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cosine", "zero_snr"])
def test_even_grids_start_at_the_end_and_go_on_from_the_clip(name: str):
    """Where the last index is all but pure noise (sigma/alpha 20291, or infinite) the spacing starts at lambda = -5.1."""
    schedule = PROCESSES[name]
    t = grid(schedule, "logsnr", 11)[:-1]
    assert t[0] == 999
    expected = torch.linspace(-10.2, schedule.logsnr(0).item(), 11, dtype=torch.float64)
    torch.testing.assert_close(schedule.logsnr(t[1:]), expected[1:])


def test_flow_is_even_in_the_share_of_noise():
    assert times("flow", 4, PROCESSES["flow"]) == [1, 0.75, 0.5, 0.25]
    shifted = grid(PROCESSES["flow_shift3"], "flow", 4)
    torch.testing.assert_close(PROCESSES["flow_shift3"].sigma(shifted), torch.tensor([1, 0.9, 0.75, 0.5, 0], dtype=torch.float64))
    ve = schedules.edm()
    t = grid(ve, "flow", 5)
    torch.testing.assert_close(t / (1 + t), 80 / 81 * torch.linspace(1, 0, 6, dtype=torch.float64))


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_the_network_is_asked_about_no_cleaner_level_than_it_was_trained_on(schedule: Schedule):
    for spacing in GRIDS:
        asked = grid(schedule, spacing, 1000)[:-1]
        assert float(asked[-1]) >= schedule.first, spacing


# Promises


@pytest.mark.parametrize("ending", ["clean", "first"])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_every_grid_falls_to_its_ending(schedule: Schedule, spacing: str, ending: str):
    for steps in STEPS:
        if (spacing, steps, ending) == ("leading", 1, "first"):
            continue  # one time, and no step: refused below
        t = grid(schedule, spacing, steps, ending=ending)  # type: ignore[arg-type]
        assert t.dtype == torch.float64 and 2 <= len(t) <= steps + 1
        assert t[-1] == (schedule.end if ending == "clean" else schedule.first)
        assert float(t[0]) <= schedule.start
        # no time twice, not even but for rounding: the noise level falls by more than that each step
        logsnr = schedule.logsnr(t)
        assert bool((logsnr[1:] - logsnr[:-1] > 1e-6).all()), steps
        if len(t) < steps + 1:  # what is left out stood twice (beta rounds to indices), or lay outside the process (SVD's table)
            assert ending == "first" or spacing in ("leading", "flow", "beta", "ays_svd", "lcm", "tcd")


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_one_step_goes_from_the_noisy_end_to_the_data(schedule: Schedule, spacing: str):
    start = schedule.first if spacing == "leading" else schedule.start  # DDIM's stride of 1000 leaves index 0 alone
    assert grid(schedule, spacing, 1).tolist() == [start, schedule.end]


@pytest.mark.parametrize("spacing", GRIDS)
def test_the_whole_table(spacing: str):
    """A thousand steps of the classic spacings are the table, index by index."""
    t = grid(SD, spacing, 1000)
    if spacing in ("leading", "linspace", "trailing"):
        assert t.tolist() == list(range(999, -2, -1))
        assert grid(SD, spacing, 1000, ending="first").tolist() == list(range(999, -1, -1))
    assert len(grid(SD, "leading", 1000, offset=1)) == 1000  # 1000 is no index: 999 would stand twice


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
def test_the_first_index_is_not_missed_by_a_rounding_error(spacing: str):
    """These grids come to index 0 through logarithms; a second 0 beside 1e-14 made steps of nothing (NaN of third-order solvers)."""
    for schedule in PROCESSES.values():
        for steps in STEPS[1:]:
            t = grid(schedule, spacing, steps, ending="first")
            assert len(t) == steps and float(t[-2] - t[-1]) > 1e-7 * schedule.start


def test_defaults():
    assert {name: default(schedule) for name, schedule in PROCESSES.items()} == {
        name: "karras" if name == "edm" else "flow" for name in PROCESSES
    }
    for schedule in PROCESSES.values():
        assert torch.equal(grid(schedule, None, 7), grid(schedule, default(schedule), 7))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "20", None])
def test_steps_that_are_no_number_of_steps(steps: object):
    with pytest.raises(ArgumentError, match="expected a whole number of at least 1"):
        grid(SD, "trailing", steps)  # type: ignore[arg-type]


def test_a_table_has_only_so_many_steps():
    with pytest.raises(ArgumentError, match="this model's table has 1000"):
        grid(SD, "karras", 1001)
    with pytest.raises(ArgumentError, match="table has 10"):
        grid(schedules.vp(steps=10), "trailing", 11)
    assert len(grid(schedules.vp(steps=10), "trailing", 10)) == 11
    assert len(grid(PROCESSES["flow"], "flow", 2000)) == 2001  # a continuous process has as many as one likes


def test_wrong_names_and_offsets():
    with pytest.raises(UnknownName, match="did you mean 'karras'"):
        grid(SD, "karas", 10)
    with pytest.raises(UnknownName, match="unknown ending 'clear'"):
        grid(SD, "trailing", 10, ending="clear")  # type: ignore[arg-type]
    for offset in (-1, math.nan):
        with pytest.raises(ArgumentError, match="offset"):
            grid(SD, "leading", 10, offset=offset)  # type: ignore[arg-type]


def test_small_tables():
    """The classic spacings in a table of any size; the time is always the table's own index."""
    small = schedules.vp(steps=10)
    assert isinstance(small, Discrete)
    assert grid(small, "leading", 3).tolist() == [6, 3, 0, -1]
    assert grid(small, "trailing", 4).tolist() == [9, 6, 4, 2, -1]  # 6.5 and 1.5 go to the even neighbour, as numpy rounds in diffusers


@pytest.mark.parametrize("schedule", PROCESSES.values(), ids=PROCESSES)
def test_a_grid_without_a_step_is_refused(schedule: Schedule):
    with pytest.raises(ArgumentError, match="got 1 steps, spacing 'leading' and ending 'first', which hold one time: ask for more"):
        grid(schedule, "leading", 1, ending="first")


# The newer spacings


def test_beta_of_one_half_has_a_closed_form():
    """Beta(1/2, 1/2) is the arcsine distribution: F(x) = 2/pi asin(sqrt(x)); Beta(1, 1) is the uniform one, Beta(2, 1) has F = x²."""
    share = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)
    torch.testing.assert_close(beta_quantile(share, 0.5, 0.5), torch.sin(share * math.pi / 2) ** 2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(beta_quantile(share, 1.0, 1.0), share, rtol=1e-12, atol=0)
    torch.testing.assert_close(beta_quantile(share, 2.0, 1.0), share.sqrt(), rtol=1e-12, atol=0)


def test_beta_is_dense_at_both_ends():
    found = times("beta", 20)
    steps = [a - b for a, b in pairwise(found)]
    assert found[0] == 999 and max(steps) == pytest.approx(steps[9], abs=1) and steps[0] < 20 and steps[-1] < 30
    assert times("beta", 20, a=1.0, b=1.0) == pytest.approx([999 * (1 - i / 20) for i in range(20)], abs=0.5)  # uniform


SD3_28 = [1, 0.98738063, 0.97410777, 0.96012931, 0.94538745, 0.92981791, 0.91334895, 0.89590032, 0.87738194, 0.85769231, 0.83671668]
SD3_28 += [0.81432482, 0.79036827, 0.7646771, 0.73705584, 0.70727848, 0.67508233, 0.64016018, 0.60215054, 0.560625, 0.51507208]
SD3_28 += [0.46487603, 0.40928882, 0.34739264, 0.27804878, 0.19982699, 0.11090573, 0.00892857]


def test_sd3_shifts_twice_at_the_clean_end():
    """Stability's get_sigmas and diffusers agree: the last sigma is shift(shift(1/1000)), not shift(1/1000) = .00299."""
    schedule = PROCESSES["flow_shift3"]
    found = schedule.sigma(torch.tensor(times("sd3", 28, schedule), dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(SD3_28, dtype=torch.float64), rtol=0, atol=5e-9)


def test_exponential_is_even_in_the_logarithm_of_the_noise_level():
    """On VP and VE that is sigma/alpha, and so the grid is `logsnr`; on a flow it is sigma, whose noisy end is finite."""
    assert times("exponential", 12) == pytest.approx(times("logsnr", 12), abs=1e-9)
    flow = PROCESSES["flow"]
    sigma = flow.sigma(torch.tensor(times("exponential", 9, flow), dtype=torch.float64))
    torch.testing.assert_close(sigma, torch.logspace(0, -3, 9, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_power_of_the_exponential():
    """k-diffusion's polyexponential: ramp^rho in log sigma."""
    edm = schedules.edm(0.03, 14.6)
    ramp = torch.linspace(1, 0, 10, dtype=torch.float64) ** 0.7
    expected = (ramp * math.log(14.6 / 0.03) + math.log(0.03)).exp()
    torch.testing.assert_close(torch.tensor(times("exponential", 10, edm, rho=0.7), dtype=torch.float64), expected, rtol=1e-12, atol=0)


AYS_TIMES = {  # the timesteps that the authors print beside their sigmas
    "ays": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
    "ays_sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
}


@pytest.mark.parametrize("spacing", AYS_TIMES)
def test_align_your_steps(spacing: str):
    """Their sigmas, put into Stable Diffusion's table, give their timesteps; other numbers of steps interpolate in log sigma."""
    assert [round(t) for t in times(spacing, 10)] == pytest.approx(AYS_TIMES[spacing], abs=1)
    twenty = torch.tensor(times(spacing, 20), dtype=torch.float64)
    ratio = SD.sigma(twenty) / SD.alpha(twenty)
    torch.testing.assert_close(ratio[1:-1:2], (ratio[:-2:2] * ratio[2::2]).sqrt(), rtol=1e-3, atol=0)  # the first is the table's own end


def test_align_your_steps_of_a_very_noisy_table_on_a_short_process():
    """SVD's starts at 700: what lies beyond this process's noisy end is one time, and stands once."""
    found = times("ays_svd", 10)
    assert found[0] == 999 and len(found) < 10 and found[1] < 999


def test_karras_with_another_rho():
    found = torch.tensor(times("karras", 5, schedules.edm(), rho=1.0), dtype=torch.float64)
    torch.testing.assert_close(found, torch.linspace(80, 0.002, 5, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "spacing, options, message",
    [
        ("karras", {"rhu": 7}, "unknown option of spacing 'karras' 'rhu': did you mean 'rho'"),
        ("karras", {"rho": 0}, "got rho 0 as option of spacing 'karras': expected a number above 0"),
        ("beta", {"a": math.nan}, "got a nan as option of spacing 'beta': expected a number above 0"),
        ("leading", {"offset": 1.5}, "got offset 1.5 as option of spacing 'leading': expected a whole number from 0 to 1000"),
        ("flow", {"offset": 1}, "unknown option of spacing 'flow' 'offset'"),
        ("flow", {"ending": "clear"}, "unknown ending 'clear': did you mean 'clean'"),
    ],
)
def test_wrong_options_are_refused(spacing: str, options: dict, message: str):
    with pytest.raises(ArgumentError if "got" in message else UnknownName, match=message):
        grid(SD, spacing, 5, **options)


def test_offsets_of_the_classic_spacings_stop_at_the_end():
    assert times("trailing", 4, offset=1) == [999, 750, 500, 250] and times("linspace", 4, offset=3) == [999, 669, 336, 3]
