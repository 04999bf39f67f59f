"""From nothing to a picture: wall time, peak memory, and how much of it is our own import.

    python benchmarks/cold_start.py [--runs 5] [--sd15] [--side 64] [--threads 2] [--place FOLDER] [--write]

Each run is a fresh process of `unnoise generate "a red apple"`. Beside it, in the same script, the cost of `import torch` alone, of
`import unnoise` and of `unnoise --help`.

--sd15: beside diffusers instead, from the start of the process to the first latent step of a Stable Diffusion 1.5 folder (random weights,
4.3 GB in float32, warm page cache, guidance 7.5), the two libraries taking turns. The picture is small, so that starting is what counts and
not the network's speed, which is the same matrix products for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sd15_files

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import unnoise": ["-c", "import unnoise"],
    "unnoise --help": ["-m", "unnoise", "--help"],
    "import torch": ["-c", "import torch"],
    "import our library beside torch": ["-c", "import torch, unnoise.pipeline.model"],
    'unnoise generate "a red apple"': ["-m", "unnoise", "generate", "a red apple", "--seed", "7", "--out", "{out}"],
}


OURS = """
import unnoise
model = unnoise.load({folder!r}, dtype={dtype!r}, device="cpu")
next(iter(model.stream("a photo of a cat", seed=7, num_inference_steps=20, guidance_scale=7.5, height={side}, width={side})))
print("first step", flush=True)
"""
THEIRS = """
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({folder!r}, torch_dtype=getattr(torch, {dtype!r}), safety_checker=None)
def stop(*_):
    print("first step", flush=True)
    raise SystemExit
pipeline("a photo of a cat", num_inference_steps=20, guidance_scale=7.5, height={side}, width={side}, callback_on_step_end=stop)
"""


def first_step(code: str, threads: int) -> tuple[float, float, float]:
    """Seconds from a process's start until it says that the first step is done, its peak memory in MB, its processor time in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        said = process.stdout.readline() if process.stdout else ""
        seconds = time.perf_counter() - began
        rest = process.stderr.read() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if said != "first step\n":
        raise SystemExit(f"no first step:\n{rest}")
    return seconds, usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime


def sd15(asked: argparse.Namespace) -> str:
    """The table of both libraries in both number formats, as Markdown."""
    folder, _ = sd15_files.made(asked.place)
    sd15_files.warmed(folder)
    lines = [
        f"Process start to the first latent step, {asked.side}x{asked.side}, warm page cache, median of {asked.runs}; "
        f"{sd15_files.machine()}, {asked.threads} threads; {sd15_files.versions()}",
        "",
        "| dtype | library | seconds | slowest | times sooner | CPU seconds | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for dtype in ("float32", "bfloat16"):
        codes = {
            name: code.format(folder=str(folder), dtype=dtype, side=asked.side)
            for name, code in {"diffusers": THEIRS, "unnoise": OURS}.items()
        }
        rounds = [{name: first_step(code, asked.threads) for name, code in codes.items()} for _ in range(asked.runs)]
        medians = {name: statistics.median(one[name][0] for one in rounds) for name in codes}
        for name, median in medians.items():
            slowest, peak = (max(one[name][i] for one in rounds) for i in range(2))
            busy = statistics.median(one[name][2] for one in rounds)
            lines.append(
                f"| {dtype} | {name} | {median:.2f} | {slowest:.2f} | {medians['diffusers'] / median:.1f} | {busy:.2f} | {peak:.0f} |"
            )
    return "\n".join(lines)


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of wall time and MB of peak memory of one fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(part.replace("{out}", folder) for part in arguments)]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{command} failed: {process.stderr.read().decode() if process.stderr else ''}")
        unit = 1024 if platform.system() == "Linux" else 1024**2  # ru_maxrss is in KiB on Linux, in bytes on macOS
        return time.perf_counter() - began, usage.ru_maxrss / unit * 1.048576


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sd15", action="store_true")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--place", type=Path, default=Path(tempfile.gettempdir()) / "unnoise-benchmark", help="where the files are made and kept"
    )
    asked = parser.parse_args()
    if asked.sd15:
        text = sd15(asked)
        print(text)
        if asked.write:
            (ROOT / "benchmarks" / "results" / "cold_start.md").write_text(text + "\n", encoding="utf-8")
        return
    figures: dict[str, object] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    for name, arguments in COMMANDS.items():
        measured = [run(arguments) for _ in range(asked.runs)]
        seconds, memory = zip(*measured, strict=True)
        figures[name] = {"seconds": round(statistics.median(seconds), 3), "slowest": round(max(seconds), 3), "peak MB": round(max(memory))}
        print(f"{name:36} {statistics.median(seconds):6.2f} s (slowest {max(seconds):.2f})  peak {max(memory):4.0f} MB", flush=True)
    if asked.write:
        results = ROOT / "benchmarks" / "results"
        results.mkdir(parents=True, exist_ok=True)
        (results / "cold_start.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
