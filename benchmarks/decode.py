"""Decoding a large picture, in one piece and in tiles: seconds, peak memory and seams, beside diffusers.

    python benchmarks/decode.py [--side 1024] [--threads 2] [--tile 24] [--runs 2] [--dtype float32] [--write]

The decoder of Stable Diffusion 1, 2 and XL (49,490,199 parameters) with random weights, the same for both. Each run is a fresh process
that decodes once; the four variants take turns, and the fastest run and the highest peak of each count. `busy` is processor time of all
threads: with --threads 1 it hardly depends on what else the machine does, while `seconds` do, most of all those of many short operations.
`peak` is the largest resident memory of the whole process, `decode` the part of it beyond imports and weights. `off` is the largest
difference from diffusers in one piece and `seams` from the same library in one piece, both as a share of that picture's range. diffusers
tiles as it comes: 64 latents a side, a quarter shared. Tiled, ours are strips as large as --tile by --tile latents.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np  # not torch: a child's peak starts from what its parent held

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("diffusers", "diffusers tiled", "unnoise", "unnoise tiled")
WIDTHS = (128, 256, 512, 512)


def theirs(tiled: bool, dtype: Any):
    """diffusers' autoencoder, of its decoder alone, and what decodes."""
    import torch
    from diffusers.models import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=WIDTHS, layers_per_block=2, latent_channels=4, sample_size=512, **blocks).eval()
    del vae.encoder, vae.quant_conv
    if tiled:
        vae.enable_tiling()
    vae = vae if dtype == torch.float32 else vae.to(dtype)
    return vae, lambda z: vae.decode(z).sample


def ours(tile: int, dtype: Any, weights: Path):
    import torch

    from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig

    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig(widths=WIDTHS)).eval()
        del autoencoder.encoder, autoencoder.quant_conv
    tensors = torch.load(weights, weights_only=True)
    renamed = {key.replace("samplers.0", "sample").replace("to_out.0", "to_out"): value.to(dtype) for key, value in tensors.items()}
    autoencoder.load_state_dict(renamed, assign=True)
    return autoencoder, lambda z: autoencoder.decode(z, tile=tile)


def child(asked: argparse.Namespace) -> None:
    """Decodes once: the picture to a file, the figures to standard output."""
    import torch

    torch.set_num_threads(asked.threads)
    dtype, folder, tiled = getattr(torch, asked.dtype), Path(asked.folder), asked.child.endswith("tiled")
    if asked.child.startswith("diffusers"):
        network, decode = theirs(tiled, dtype)
        torch.save(network.state_dict(), folder / "weights.pt")
    else:
        network, decode = ours(asked.tile if tiled else 0, dtype, folder / "weights.pt")
    z = torch.randn(1, 4, asked.side // 8, asked.side // 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = resident()
    with torch.no_grad():
        began, busy = time.perf_counter(), time.process_time()
        picture = decode(z)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    np.save(folder / f"{asked.child}.npy", picture.float().numpy())
    print(json.dumps({"seconds": seconds, "busy": busy, "before": before, "parameters": sum(p.numel() for p in network.parameters())}))


def resident() -> float:
    """MB of this process now; Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(variant: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", variant, "--folder", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()  # pyright: ignore[reportOptionalMemberAccess]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{variant} failed")
    figures = json.loads(printed.splitlines()[-1])
    peak = usage.ru_maxrss * 1024 / 1e6
    return {**figures, "peak": peak, "decode": peak - figures["before"]}


def gap(folder: str, variant: str, whole: str) -> float:
    a, b = (np.load(Path(folder) / f"{name}.npy") for name in (variant, whole))
    return float(np.abs(a - b).max() / (b.max() - b.min()))


def compare(asked: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    rounds = [{variant: run(variant, folder) for variant in VARIANTS} for _ in range(asked.runs)]
    rows = []
    for variant in VARIANTS:
        runs = [figures[variant] for figures in rounds]
        best = {key: (max if key in ("peak", "decode") else min)(figures[key] for figures in runs) for key in runs[0]}
        library = variant.split()[0]
        rows.append({"variant": variant, **best, "off": gap(folder, variant, "diffusers"), "seams": gap(folder, variant, library)})
    untiled = {row["variant"]: row["seconds"] for row in rows}
    for row in rows:
        row["of untiled"] = row["seconds"] / untiled[row["variant"].split()[0]]
        row["of diffusers"] = row["seconds"] / untiled["diffusers"]
    return rows


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def table(asked: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("unnoise", "torch", "diffusers"))
    lines = [
        f"{asked.side}x{asked.side}, {asked.dtype}, {rows[0]['parameters']:,} parameters, tile {asked.tile}, "
        f"best of {asked.runs}; {processor()}, threads {asked.threads}, load {os.getloadavg()[1]:.1f} over the last 5 minutes; {versions}",
        "",
        "| decoder | seconds | of untiled | of diffusers | busy | peak MB | decode MB | off | seams |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    formats = {
        "seconds": ".1f",
        "of untiled": ".2f",
        "of diffusers": ".2f",
        "busy": ".1f",
        "peak": ".0f",
        "decode": ".0f",
        "off": ".1e",
        "seams": ".1e",
    }
    lines += [f"| {row['variant']} | " + " | ".join(f"{row[key]:{form}}" for key, form in formats.items()) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tile", type=int, default=24)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked)
    with tempfile.TemporaryDirectory() as folder:
        text = table(asked, compare(asked, folder))
    print(text)
    if asked.write:
        (ROOT / "benchmarks" / "results" / f"decode_{asked.side}_threads{asked.threads}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
