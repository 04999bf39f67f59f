"""What only a process of its own can show: signals, imports, the time that help takes, the real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import unnoise

FAKE = Path(__file__).with_name("fake_library.py")
BUILTIN = Path(unnoise.__file__).parent / "builtin"
real = pytest.mark.skipif(not list(BUILTIN.rglob("*.safetensors")), reason="the built-in weights are not here")


def run(*arguments: str, cwd: Path, program: tuple = ("-m", "unnoise")) -> subprocess.CompletedProcess:
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", env=environment(), timeout=300)


def environment(**more: str) -> dict:
    source = str(Path(unnoise.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "PYTHONUTF8": "1", **more}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["samplers", "--help"], ["generate"]])
def test_help_and_refusals_load_neither_torch_nor_pillow(arguments, tmp_path):
    watch = "import sys, atexit; atexit.register(lambda: print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr));"
    done = run(*arguments, cwd=tmp_path, program=("-c", watch + "from unnoise.cli import main; main()"))
    modules = done.stderr.splitlines()[-1].split()
    assert "typer" in modules and not {"torch", "numpy", "PIL"} & set(modules)


def test_help_is_quick(tmp_path):
    def seconds() -> float:
        began = time.perf_counter()
        assert run("--help", cwd=tmp_path).returncode == 0
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.3  # the best of five: a busy machine may slow any one of them


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
@pytest.mark.parametrize("after", [0.2, 1.0])
def test_ctrl_c_stops_within_a_step_and_leaves_no_file(tmp_path, after):
    command = [sys.executable, str(FAKE), "generate", "an apple", "--steps", "1000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(FAKE_STEP_SECONDS="0.1")
    )
    time.sleep(0.5 + after)
    process.send_signal(signal.SIGINT)
    began = time.perf_counter()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "stopped\n")
    assert time.perf_counter() - began < 2
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_traceback(tmp_path):
    script = f'"{sys.executable}" "{FAKE}" generate a b c d --quiet --json | head -c 1'
    if os.name == "nt":
        pytest.skip("no head")
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert "Traceback" not in done.stderr


def test_a_terminal_without_the_letters(tmp_path):
    command = [sys.executable, str(FAKE), "generate", "빨간 사과 é 🍎", "--seed", "7", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, encoding="ascii", env=environment(PYTHONIOENCODING="ascii")
    )
    assert done.returncode == 0 and json.loads(done.stdout)["pictures"][0]["prompt"] == "빨간 사과 é 🍎"


@real
def test_the_built_in_model_makes_the_same_pixels_again(tmp_path):
    from PIL import Image

    first = run("generate", "a red apple", "빨간 사과", "--seed", "7", "--steps", "4", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert [picture["prompt"] for picture in report["pictures"]] == ["a red apple", "빨간 사과"]
    for index, picture in enumerate(report["pictures"]):
        again = run("generate", "--from", picture["path"], "--out", f"again-{index}.png", cwd=tmp_path)
        assert again.returncode == 0 and "note:" not in again.stderr, again.stderr
        with Image.open(tmp_path / picture["path"]) as one, Image.open(tmp_path / f"again-{index}.png") as two:
            assert one.tobytes() == two.tobytes()


@real
@pytest.mark.parametrize(
    "options, expected",
    [
        (["--steps", "0"], "0"),
        (["--steps", "-3"], "-3"),
        (["--steps", "1000000000"], "1000000000"),
        (["--guidance", "nan"], "nan"),
        (["--guidance", "inf"], "inf"),
        (["-n", "0"], "0"),
        (["-n", "-1"], "-1"),
        (["-n", "1000000000"], "1000000000"),
        (["--size", "65x64"], "65"),
        (["--size", "0x64"], "0"),
        (["--size", "99999992x99999992"], "99999992"),
        (["--seed", "-5"], "-5"),
        (["--seed", "999999999999999999999999"], "999999999999999999999999"),
        (["--sampler", "dpmpp2m"], "dpmpp_2m"),
        (["--spacing", "karas"], "karras"),
        (["--model", "emojy"], "emoji"),
        (["--model", "none.safetensors"], "none.safetensors"),
        (["--dtype", "float17"], "float16"),
        (["--device", "cudda"], "cuda"),
    ],
)
def test_the_library_refuses_in_one_line(tmp_path, options, expected):
    done = run("generate", "an apple", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and expected in done.stderr, done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


@real
def test_an_empty_prompt_has_a_clear_answer(tmp_path):
    done = run("generate", "", "--steps", "2", cwd=tmp_path)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr


@real
@pytest.mark.parametrize("verb", ["samplers", "models"])
def test_the_real_lists(tmp_path, verb):
    done = run(verb, "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)[verb], done.stderr
    assert run(verb, cwd=tmp_path).returncode == 0
