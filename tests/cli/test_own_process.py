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

from cli.fake_library import environment

FAKE = Path(__file__).with_name("fake_library.py")


def run(*arguments: str, cwd: Path, program: tuple = ("-m", "unnoise")) -> subprocess.CompletedProcess:
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", env=environment(), timeout=300)


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
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(FAKE_STEP_SECONDS="0.1"),
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


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_terminal_without_the_letters(tmp_path, flags):
    command = [sys.executable, str(FAKE), "generate", "빨간 사과 é 🍎", "--seed", "7", *flags]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, encoding="ascii", env=environment(PYTHONIOENCODING="ascii")
    )
    assert done.returncode == 0, done.stderr
    assert r"\ube68\uac04" in done.stdout and (tmp_path / "outputs/0007-빨간-사과-é.png").exists()
    if flags:
        assert json.loads(done.stdout)["pictures"][0]["prompt"] == "빨간 사과 é 🍎"
