"""`unnoise bench`: what it prints and writes, and every refusal in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

QUICK = ("--budgets", "4,8", "--spacings", "flow")
TWO = ("--samplers", "euler,heun")


def is_refusal(outcome, code: int = 2) -> bool:
    return outcome.code == code and outcome.out == "" and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1


def test_the_mixture(command):
    outcome = command("bench", "solvers", "--mixture", "--process", "flow", *TWO, *QUICK, "--out", "found")
    assert outcome.code == 0, outcome.err
    head, *lines = outcome.out.splitlines()
    assert head.split() == ["budget", "sampler", "spacing", "steps", "evaluations", "error", "largest", "seconds", "own", "ms"]
    assert [line.split()[:5] for line in lines[:4] if line.split()[1] == "heun"] == [
        ["4", "heun", "flow", "2", "3"],
        ["8", "heun", "flow", "4", "7"],
    ]
    assert lines[4].startswith("recommended: heun on flow, ") and "within a tenth of the best at" in lines[4]
    assert "process flow" in outcome.err and "reference: the exact solution" in outcome.err
    assert sorted(path.name for path in Path("found").iterdir()) == ["solvers.json", "solvers.md", "solvers.png"]
    assert json.loads(Path("found/solvers.json").read_text())["recommended"]["sampler"] == "heun"
    assert lines[4] in Path("found/solvers.md").read_text()


def test_json_and_nothing_else(command):
    outcome = command("bench", "solvers", "--mixture", *TWO, *QUICK, "--json", "--quiet")
    report = json.loads(outcome.out)
    assert outcome.err == "" and report["budgets"] == [4, 8] and len(report["rows"]) == 4
    assert {entry["sampler"] for entry in report["rows"]} == {"euler", "heun"} and not Path("found").exists()


def test_the_seed_is_that_of_the_noise(command):
    asked = ("bench", "solvers", "--mixture", "--samplers", "ddpm,euler", *QUICK, "--json")
    one, again, other = (json.loads(command(*asked, "--seed", seed).out)["rows"] for seed in (1, 1, 2))
    errors = [[entry["mean"] for entry in rows if entry["sampler"] == "ddpm"] for rows in (one, again, other)]
    assert errors[0] == errors[1] != errors[2]


def test_a_model(command, tiny, monkeypatch):
    from unnoise.evaluation import workbench

    monkeypatch.setattr(workbench, "reference", lambda subject, find=workbench.reference: find(subject, 40))  # 400 take a minute
    asked = ("--model", tiny, "--prompt", "a red apple", "--prompt", "빨간 사과", "-n", 1, *QUICK)
    outcome = command("bench", "solvers", *asked, *TWO, "--json")
    report = json.loads(outcome.out)
    assert outcome.code == 0 and "'a red apple', '빨간 사과', 1 picture each" in report["subject"], outcome.err
    assert 0 < report["reference_error"] and "at 40 evaluations" in report["reference"]
    assert all(entry["error"] > 0 for entry in report["rows"]) and report["floor"] is None
    told = command("bench", "solvers", *asked, "--samplers", "euler")
    assert told.code == 0 and told.out.splitlines()[-1].startswith("recommended: euler on flow")


def test_noise_is_left_out_of_a_model_and_that_is_said(command, tiny, monkeypatch):
    from unnoise.diffusion.solvers import SOLVERS
    from unnoise.evaluation import workbench

    monkeypatch.setattr(workbench, "SOLVERS", {name: SOLVERS[name] for name in ("euler", "heun", "ddpm", "dpmpp_2m")})
    monkeypatch.setattr(workbench, "reference", lambda subject, find=workbench.reference: find(subject, 20))
    outcome = command("bench", "solvers", "--model", tiny, "-n", 1, *QUICK)
    assert outcome.code == 0 and "left out, because they add noise and the reference is the ODE's: ddpm" in outcome.err, outcome.err


def test_noise_alone(command):
    """On the mixture samplers that add noise are compared by distribution; nothing follows for the others."""
    outcome = command("bench", "solvers", "--mixture", "--samplers", "ddpm", *QUICK, "--out", "found")
    assert outcome.code == 0, outcome.err
    assert [line.split()[:3] for line in outcome.out.splitlines()[1:3]] == [["ddpm", "4", "flow"], ["ddpm", "8", "flow"]]
    assert "no recommendation" in outcome.out and "perfect draws have" in outcome.err and Path("found/solvers.png").exists()


REFUSED = {
    "an unknown sampler": (["--mixture", "--samplers", "euler,huen"], "unknown sampler 'huen': did you mean 'heun'"),
    "an unknown spacing": (["--mixture", "--spacings", "karas"], "did you mean 'karras'"),
    "an unknown process": (["--mixture", "--process", "flo"], "did you mean 'flow'"),
    "an unknown model": (["--model", "emojy"], "unknown model 'emojy'"),
    "no sampler": (["--mixture", "--samplers", ","], "got no sampler"),
    "budgets of text": (["--budgets", "4,x"], "--budgets: got '4,x', expected numbers"),
    "a budget of none": (["--budgets", "0"], "--budgets: got '0'"),
    "no budgets": (["--budgets", ""], "--budgets: got ''"),
    "a model and the mixture": (["--mixture", "--model", "emoji"], "--model does nothing beside --mixture"),
    "a prompt for the mixture": (["--mixture", "--prompt", "x"], "--prompt does nothing"),
    "a process for a model": (["--process", "sd"], "--process: got 'sd' without --mixture"),
    "a seed below none": (["--mixture", "--seed", "-5", *TWO], "got --seed -5"),
    "a file in the way": (["--mixture", "--out", "file"], "is a file, expected a folder"),
    "an option of another verb": (["--sampler", "euler"], "did you mean '--samplers'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(command, case):
    Path("file").touch()
    options, said = REFUSED[case]
    outcome = command("bench", "solvers", *options)
    assert is_refusal(outcome) and said in outcome.err, outcome


def test_noise_asked_of_a_model_by_name(command, tiny):
    outcome = command("bench", "solvers", "--model", tiny, "--samplers", "ddpm")
    assert is_refusal(outcome) and "'ddpm', which adds noise" in outcome.err


def test_no_pictures(command, tiny):
    outcome = command("bench", "solvers", "--model", tiny, "-n", 0)
    assert is_refusal(outcome) and "got --n 0" in outcome.err


def test_a_missing_extra_is_said_before_the_work(command, monkeypatch):
    from unnoise.evaluation import workbench

    monkeypatch.setattr(workbench, "rows", lambda *given: pytest.fail("the work began"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = command("bench", "solvers", "--mixture", "--out", "found")
    assert is_refusal(outcome) and "pip install 'unnoise[evaluate]'" in outcome.err and not Path("found").exists()


def test_ctrl_c(command, monkeypatch):
    from unnoise.evaluation import workbench

    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(workbench, "rows", stopped)
    outcome = command("bench", "solvers", "--mixture", "--out", "found")
    assert (outcome.code, outcome.out) == (130, "") and outcome.err.endswith("stopped\n") and not Path("found").exists()


def test_the_group(command):
    outcome = command("bench")
    assert outcome.code == 0 and "solvers" in outcome.out
    assert outcome.out == command("bench", "--help").out
    assert is_refusal(wrong := command("bench", "solver")) and "did you mean 'solvers'" in wrong.err
