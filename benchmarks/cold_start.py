"""From nothing to a picture: wall time, peak memory, and how much of it is our own import.

    python benchmarks/cold_start.py [--runs 5] [--write]

Each run is a fresh process of `unnoise generate "a red apple"`. Beside it, in the same script, the cost of `import torch` alone, of
`import unnoise` and of `unnoise --help`.
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

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import unnoise": ["-c", "import unnoise"],
    "unnoise --help": ["-m", "unnoise", "--help"],
    "import torch": ["-c", "import torch"],
    "import our library beside torch": ["-c", "import torch, unnoise.model"],
    'unnoise generate "a red apple"': ["-m", "unnoise", "generate", "a red apple", "--seed", "7", "--out", "{out}"],
}


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
    asked = parser.parse_args()
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
