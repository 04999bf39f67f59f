"""The workbench against what is known: the exact ends of a closed form, hand-counted evaluations, planted rows."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unnoise.diffusion import sampling, schedules
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.sampling import Run
from unnoise.diffusion.solvers import SOLVERS
from unnoise.errors import ArgumentError, MissingExtra, UnknownName
from unnoise.evaluation import mixture, plots, workbench
from unnoise.evaluation.verdicts import Report, Row, as_json, best, curves, markdown, pareto, ranking, recommend, table, verdict
from unnoise.evaluation.workbench import Costs, Subject, bench, carry, compare, mixture_subject

SMALL = 200


@pytest.fixture(scope="module")
def small() -> Report:
    """Two solvers of known orders and one that adds noise, on the closed form."""
    return compare(bench(mixture_subject("flow", numbers=SMALL), ["euler", "heun", "ddpm"], ["flow"], [8, 16, 32, 64]))


def rows_of(report: Report, sampler: str) -> list[Row]:
    return [row for row in report.rows if row.sampler == sampler]


# What is measured


def test_the_errors_are_those_of_the_library_against_the_exact_solution(small):
    """Again by hand: x_T's quantiles, `unnoise.sample`, the data's quantiles."""
    schedule, shares = schedules.flow(), mixture.shares(SMALL)
    start = mixture.TWO.at(schedule, 1.0, shares)[None]
    exact = mixture.TWO.at(schedule, 0.0, shares)[None]
    for row in rows_of(small, "heun"):
        x = sampling.sample(mixture.TWO.denoiser(schedule), start, schedule=schedule, sampler="heun", steps=row.steps, spacing="flow")
        apart = (x - exact).abs()
        assert row.error == pytest.approx(math.sqrt(apart.square().mean() / exact.square().mean()), rel=1e-9)
        assert (row.largest, row.mean) == pytest.approx((float(apart.max()), float(apart.mean())), rel=1e-9)


def test_evaluations_are_the_questions_that_were_asked(small):
    assert [(row.steps, row.evaluations) for row in rows_of(small, "euler")] == [(n, n) for n in (8, 16, 32, 64)]
    # Heun asks twice, on the step onto the data once: n steps are 2n - 1 questions
    assert [(row.steps, row.evaluations) for row in rows_of(small, "heun")] == [(n // 2, n - 1) for n in (8, 16, 32, 64)]


def test_errors_fall_with_the_order(small):
    euler, heun = ([row.error for row in rows_of(small, name)] for name in ("euler", "heun"))
    assert euler[-2] / euler[-1] == pytest.approx(2, rel=0.1) and heun[-2] / heun[-1] > 3.5


def test_noise_is_compared_by_distribution(small):
    """Sorted, an ancestral sampler's error falls towards the floor of perfect draws; point by point it would stay near the data's own."""
    noisy = rows_of(small, "ddpm")
    assert all(row.stochastic and not row.comparable for row in noisy)
    assert noisy[-1].mean < noisy[0].mean and small.floor is not None
    assert noisy[-1].mean < 5 * small.floor
    x, far = torch.randn(1, 500), torch.randn(1, 500)
    assert workbench.distances(x, x.flip(1), stochastic=True) == [0, 0, 0] and workbench.distances(x, x.flip(1))[0] > 0.5
    assert workbench.distances(x + 1, x)[1:] == pytest.approx([1, 1], rel=1e-5) and workbench.distances(x, far)[0] > 1


def test_time_inside_and_outside_the_denoiser():
    import time

    def slow(x, t):
        time.sleep(0.01)
        return torch.zeros_like(x)

    schedule = schedules.flow()
    subject = Subject("slow", "", schedule, slow, lambda plan: Run(torch.ones(1, 4), plan, Streams([0])))
    outcome = carry(subject, 5, sampler="euler", steps=5)
    assert outcome.evaluations == 5 and 0.05 <= outcome.seconds and 0 < outcome.overhead <= outcome.seconds - 0.05


@pytest.mark.parametrize("name", SOLVERS)
def test_a_budget_buys_the_most_steps_that_it_can(name):
    """By asking the real solver on the real subject, for every sampler there is."""
    subject = mixture_subject("flow", numbers=5)
    costs = Costs(subject.schedule)
    for budget in (4, 13):
        steps = costs.most_steps((name, "flow"), budget)
        if steps:
            outcome = carry(subject, budget, sampler=name, spacing="flow", steps=steps)
            assert outcome.evaluations <= budget and (not outcome.failure or "budget" in outcome.failure)
        assert steps == budget or costs.of((name, "flow"), steps + 1) > budget


@pytest.mark.slow
@pytest.mark.parametrize("process", ["flow", "zero_snr"])
def test_what_was_tried_on_one_spacing_holds_on_the_others(process):
    shared, adaptive = Costs(mixture.process(process)), {"rk45", "dpm_adaptive"}
    for name in set(SOLVERS) - adaptive:
        for spacing in GRIDS:
            assert shared.of((name, spacing), 3) == Costs(shared.schedule).of((name, spacing), 3), (name, spacing)


@pytest.mark.slow
def test_every_sampler_and_spacing_is_a_row():
    report = compare(bench(mixture_subject("edm", numbers=50), budgets=[6]))
    assert [(row.sampler, row.spacing) for row in report.rows] == [(sampler, spacing) for sampler in SOLVERS for spacing in GRIDS]
    assert all(math.isfinite(row.error) != bool(row.failure) for row in report.rows)
    assert report.left_out == ()


def test_a_later_start_has_the_same_noise_at_its_own_level():
    subject = mixture_subject("edm", numbers=50)
    whole = subject.begin(sampling.plan(subject.schedule, times=[80.0, 0.0])).x
    later = subject.begin(sampling.plan(subject.schedule, times=[40.0, 0.0])).x
    torch.testing.assert_close(whole[0], mixture.TWO.at(subject.schedule, 80.0, mixture.shares(50)))
    torch.testing.assert_close(later, whole / 2)


# Failures are rows


def broken(denoiser) -> Subject:
    schedule = schedules.flow()
    exact = mixture_subject("flow", numbers=4).truth
    return Subject("broken", "", schedule, denoiser, lambda plan: Run(torch.ones(1, 4), plan, Streams([0])), exact)


def raising(x, t):
    raise ZeroDivisionError("nothing to divide by")


@pytest.mark.parametrize(
    "denoiser, said", [(lambda x, t: x * float("nan"), "not finite after step 1"), (raising, "nothing to divide by")], ids=["nan", "raises"]
)
def test_a_run_that_fails_is_a_row_with_its_reason(denoiser, said):
    report = compare(bench(broken(denoiser), ["euler"], ["flow"], [3]))
    (row,) = report.rows
    assert said in row.failure and math.isnan(row.error) and not row.comparable
    assert pareto(report.rows) == best(report.rows, 3) == []
    assert recommend(report) is None and "no deterministic sampler finished" in verdict(report) and said in markdown(report)
    assert as_json(report)["recommended"] is None


def test_a_step_that_costs_more_than_the_budget(monkeypatch):
    monkeypatch.setitem(SOLVERS, "greedy", replace(SOLVERS["euler"], name="greedy", step=greedy))
    report = compare(bench(mixture_subject("flow", numbers=4), ["greedy"], ["flow"], [4, 5]))
    assert [row.failure for row in report.rows] == ["one step asks for 5 evaluations", ""]


def greedy(step):
    for _ in range(5):
        x0 = yield step.x, step.here
    return step.toward(x0)


def test_ctrl_c_stops():
    def stopped(x, t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry(broken(stopped), 2, sampler="euler", steps=2)


@pytest.mark.parametrize(
    "asked, error, said",
    [
        ({"samplers": ["eular"]}, UnknownName, "did you mean 'euler'"),
        ({"spacings": ["karas"]}, UnknownName, "did you mean 'karras'"),
        ({"samplers": []}, ArgumentError, "got no sampler"),
        ({"budgets": []}, ArgumentError, "at least 1"),
        ({"budgets": [4, 0]}, ArgumentError, "at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, error, said):
    with pytest.raises(error, match=said):
        bench(mixture_subject(numbers=4), **asked)


# A model


@pytest.fixture(scope="module")
def model():
    """Pictures whose exact denoiser is known, in the place of a network: a normal distribution in every pixel."""
    schedule = schedules.flow()
    denoise = mixture.Mixture((1.0,), (0.3,), (0.5,)).denoiser(schedule)
    spec = SimpleNamespace(name="known", schedule=SimpleNamespace(kind="flow"))
    return Subject(
        spec.name, "", schedule, denoise, lambda plan: Run(Streams([3]).draw(torch.empty(1, 3, 4, 4)).double(), plan, Streams([3]))
    )


def test_without_a_truth_a_fine_run_is_the_reference_and_says_how_far_off_it_is(model):
    found = workbench.reference(model, 100)
    noise = Streams([3]).draw(torch.empty(1, 3, 4, 4)).double()
    exact = 0.3 + 0.5 * noise  # of a normal distribution every quantile keeps its z
    off = workbench.distances(found.x, exact)[0]
    assert off <= found.error < 1e-2, (off, found)
    assert "at 100 evaluations, which moves by" in found.summary


@pytest.mark.parametrize("name", mixture.PROCESSES)
def test_the_reference_is_as_fine_as_the_process_and_the_data_allow(name):
    """Its grid spans the process, and a solver of order 2 on it converges to the ODE's end, but for the step onto the data."""
    schedule = mixture.process(name)
    times = workbench.fine_times(schedule, 200)
    assert len(times) == 201 and bool((times.diff() < 0).all())
    assert [float(times[0]), float(times[-2]), float(times[-1])] == [schedule.start, schedule.first, schedule.end]
    subject = mixture_subject(name, numbers=SMALL)
    x = carry(subject, 400, sampler="dpmpp_2m", times=times).x
    assert x is not None and subject.truth is not None
    last = mixture.TWO.at(schedule, schedule.first, mixture.shares(SMALL))[None]
    exact = mixture.TWO.denoiser(schedule)(last, torch.tensor([schedule.first], dtype=torch.float64))
    assert workbench.distances(x, exact)[0] < 1e-3


def test_on_a_model_noise_is_left_out_or_refused(model):
    asked = bench(model, budgets=[4])
    assert set(asked.left_out) == {name for name, solver in SOLVERS.items() if solver.stochastic}
    assert {sampler for sampler, _ in asked.pairs} == {name for name, solver in SOLVERS.items() if not solver.stochastic}
    with pytest.raises(ArgumentError, match="'ddpm', which adds noise"):
        bench(model, ["euler", "ddpm"])


def test_a_denoiser_without_finite_answers_has_no_reference(model):
    with pytest.raises(ArgumentError, match="no reference finishes"):
        workbench.reference(replace(model, denoiser=lambda x, t: x / 0), 8)


# What follows


def row(sampler: str, budget: int, error: float, **more) -> Row:
    usual = {"spacing": "flow", "stochastic": False, "steps": budget, "evaluations": budget, "seconds": 1.0, "overhead": 0.1}
    return Row(**{**usual, **more}, sampler=sampler, budget=budget, error=error, largest=error, mean=error)


def report(*rows: Row, reference_error: float = 0.0) -> Report:
    budgets = tuple(sorted({row.budget for row in rows}))
    return Report("planted", "none", "the truth", reference_error, "cpu", budgets, rows, ())


def planted(reference_error: float = 0.0, **errors: list[float]) -> Report:
    """One curve a sampler over budgets 4, 8, 16; None: it failed."""
    rows = [
        row(name, budget, math.nan if error is None else error, failure="" if error is not None else "why")
        for name, values in errors.items()
        for budget, error in zip((4, 8, 16), values, strict=True)
    ]
    return report(*rows, reference_error=reference_error)


def test_the_front_has_every_row_that_nothing_beats():
    better = [row("b", 4, 0.4), row("c", 8, 0.1, evaluations=7)]
    rows = [row("a", 4, 0.5), row("a", 8, 0.6), row("b", 8, 0.3), row("noise", 16, 0.0, stochastic=True), *better]
    assert [(row.sampler, row.budget) for row in pareto(rows)] == [("b", 4), ("c", 8)]


def test_the_smallest_geometric_mean_is_recommended():
    found = recommend(planted(a=[0.4, 0.2, 0.1], b=[0.5, 0.1, 0.01], c=[0.1, 0.1, 0.1]))
    assert (found.sampler, found.steady, found.near_best) == ("b", True, 2)
    assert found.error == pytest.approx((0.5 * 0.1 * 0.01) ** (1 / 3))


def test_a_pair_that_surprises_is_not_recommended_while_there_is_another():
    assert recommend(planted(a=[0.01, 0.001, 0.1], b=[0.5, 0.4, 0.3])).sampler == "b"
    alone = recommend(planted(a=[0.01, 0.001, 0.1]))
    assert alone.sampler == "a" and not alone.steady and "made it worse" in verdict(planted(a=[0.01, 0.001, 0.1]))
    assert recommend(planted(a=[None, 0.001, 0.001], b=[0.5, 0.4, 0.3])).sampler == "b"


def test_what_the_reference_cannot_tell_counts_for_nothing():
    """Below its own error luck would decide, and a growth by less is none."""
    curves = dict(a=[0.1, 0.001, 0.009], b=[0.09, 0.01, 0.01])
    assert recommend(planted(**curves)).sampler == "b"  # a's error grows
    assert recommend(planted(0.01, **curves)).sampler == "b" and recommend(planted(0.01, **curves)).near_best == 3
    assert recommend(planted(0.01, a=[0.08, 0.001, 0.009], b=curves["b"])).sampler == "a"


def test_each_sampler_stands_on_its_best_spacing():
    rows = [row("a", 4, 0.5), row("a", 4, 0.3, spacing="karras"), row("b", 4, 0.1), row("a", 8, 0.2, spacing="karras"), row("b", 8, 0.1)]
    assert [curve[0].pair for curve in ranking(report(*rows))] == [("b", "flow"), ("a", "karras")]
    assert {pair: len(curve) for pair, curve in curves(report(*rows)).items()} == {("a", "flow"): 1, ("a", "karras"): 2, ("b", "flow"): 2}


def test_the_page_and_the_json_hold_the_rows(small):
    text = markdown(small)
    for row in small.rows:
        assert (f"{row.mean:.2e}" if row.stochastic else f"{row.error:.2e}") in text
    assert verdict(small) in text and small.reference in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines[: 2 + len({row.sampler for row in small.rows if row.comparable})]}) == 1
    held = json.loads(json.dumps(as_json(small), allow_nan=False))
    assert [entry["error"] for entry in held["rows"]] == [row.error for row in small.rows]
    assert held["recommended"]["sampler"] == "heun" and held["reference"] == small.reference


def test_failures_are_on_the_page():
    found = planted(a=[None, None, 0.1], b=[0.5, 0.4, 0.3])
    assert "- `a` on `flow` at 4, 8: why" in markdown(found)
    assert as_json(found)["rows"][0]["error"] is None


def test_a_table():
    assert table(["a", 1], [["x", 2.5]]) == "| a | 1 |\n| --- | --- |\n| x | 2.5 |"


def test_the_picture(small, tmp_path: Path):
    """Its curves are the rows, and the recommended pair is named as such."""
    figure_module = pytest.importorskip("matplotlib.figure")
    plots.plot(small, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    axes = figure_module.Figure().add_subplot()
    plots._draw_curves(axes, small)
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["heun on flow  (recommended)"] == [row.error for row in rows_of(small, "heun")]
    assert drawn["euler on flow"] == [row.error for row in rows_of(small, "euler")]


def test_without_matplotlib(small, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"unnoise\[evaluate\]"):
        plots.plot(small, tmp_path / "plot.png")
