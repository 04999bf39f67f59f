"""Loading Stable Diffusion 1.5: seconds and peak memory beside diffusers, from a folder and from a single file, kept or cast.

    python benchmarks/load.py [--runs 3] [--threads 2] [--place FOLDER] [--write]

Random weights of the right sizes, 4.3 GB in float32, warm page cache. Each figure is from a process of its own, the two libraries taking
turns; seconds are the median of the runs and count the call alone, without imports. `beyond` is the process's highest resident memory minus
what it had before the call. A tensor that keeps its dtype is mapped by both libraries, so its bytes are read when they are used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sd15_files

ROOT = Path(__file__).resolve().parent.parent
CASES = [(kind, dtype) for kind in ("folder", "single file") for dtype in ("float32", "bfloat16")]


def ours(path: Path, dtype: str) -> Any:
    import unnoise
    from unnoise.pipeline import loading  # imports are not what is measured

    assert loading
    yield
    model = unnoise.load(path, dtype=dtype, device="cpu")
    yield model.networks["network"].conv_in.weight, sum(p.nbytes for _, p in model.networks.named_parameters())


def theirs(path: Path, dtype: str) -> Any:
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    yield
    if path.is_dir():
        pipeline = StableDiffusionPipeline.from_pretrained(path, torch_dtype=getattr(torch, dtype), safety_checker=None)
    else:
        config = {"config": str(path.with_suffix("")), "local_files_only": True}
        pipeline = StableDiffusionPipeline.from_single_file(path, torch_dtype=getattr(torch, dtype), safety_checker=None, **config)
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    yield pipeline.unet.conv_in.weight, sum(p.nbytes for module in modules for p in module.parameters())


def child(library: str, path: Path, dtype: str) -> None:
    """One load: the figures as JSON, the last line of standard output."""
    run = {"unnoise": ours, "diffusers": theirs}[library](path, dtype)
    next(run)
    before, began, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
    weight, size = next(run)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    figures = {"seconds": seconds, "busy": busy, "before": before, "beyond": memory("VmHWM") - before, "weights": size / 1e6}
    print(json.dumps({**figures, "mark": weight.float().abs().sum().item()}))


def memory(name: str) -> float:
    """MB of this process; Linux."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024 / 1e6


def measured(library: str, path: Path, dtype: str, threads: int) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--child", library, str(path), dtype]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise SystemExit(f"{library} {path} {dtype} failed:\n{ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])


def case(path: Path, dtype: str, asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians by library. Both must have read the same weights."""
    runs: dict[str, list[dict[str, float]]] = {"diffusers": [], "unnoise": []}
    for _ in range(asked.runs):
        for library, found in runs.items():
            found.append(measured(library, path, dtype, asked.threads))
    marks = {figures["mark"] for found in runs.values() for figures in found}
    if max(marks) - min(marks) > 1e-6 * max(marks):
        raise SystemExit(f"the libraries read different weights: {marks}")
    return {library: {key: statistics.median(one[key] for one in found) for key in found[0]} for library, found in runs.items()}


def table(rows: list[tuple[str, str, dict[str, dict[str, float]]]], asked: argparse.Namespace, size: int) -> str:
    lines = [
        f"{size / 1e9:.2f} GB in float32, warm page cache, median of {asked.runs}; {sd15_files.machine()}, {asked.threads} threads; "
        f"{sd15_files.versions()}",
        "",
        "| from | float32 to | library | seconds | times faster | CPU seconds | weights MB | peak beyond imports MB | of the weights |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, dtype, found in rows:
        for library, figures in found.items():
            faster = found["diffusers"]["seconds"] / figures["seconds"]
            lines.append(
                f"| {kind} | {dtype} | {library} | {figures['seconds']:.2f} | {faster:.1f} | {figures['busy']:.2f} | "
                f"{figures['weights']:.0f} | "
                f"{figures['beyond']:.0f} | {figures['beyond'] / figures['weights']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--place", type=Path, default=Path(tempfile.gettempdir()) / "unnoise-benchmark", help="where the files are made and kept"
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.child[0], Path(asked.child[1]), asked.child[2])
    folder, single = sd15_files.made(asked.place)
    size = sd15_files.warmed(folder)
    sd15_files.warmed(single)
    rows = [(kind, dtype, case({"folder": folder, "single file": single}[kind], dtype, asked)) for kind, dtype in CASES]
    text = table(rows, asked, size)
    print(text)
    if asked.write:
        (ROOT / "benchmarks" / "results" / "load.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
