"""What collecting every case of the full matrix costs: cases, seconds, memory.

Run it as ``python -m benchmarks.collection``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show

ROOT = Path(__file__).resolve().parent.parent


def collect(*arguments: str) -> dict[str, Any]:
    """Collect once in a process of its own.

    Returns:
        Cases found, seconds of wall time, and the process's highest resident memory in MB.
    """
    code = (
        "import io, json, resource, sys, contextlib, pytest\n"
        "class Count:\n"
        "    def pytest_collection_finish(self, session): self.cases = len(session.items)\n"
        "count = Count()\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    status = pytest.main(['benches', '--collect-only', '-q', '-q', *sys.argv[1:]], plugins=[count])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000\n"
        "print(json.dumps({'status': int(status), 'cases': count.cases, 'memory_mb': peak}))\n"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found.pop("status") != 0:
        raise RuntimeError(f"collection failed: {done.stderr}")
    return {"cases": found["cases"], "seconds": time.perf_counter() - began, "memory_mb": found["memory_mb"]}


def main() -> None:
    """Collect each matrix three times; print the medians."""
    arguments = parser(__doc__ or "").parse_args()
    rows = []
    for name, options in {
        "full grid, 27 cells": [],
        "coarse grid, 27 cells": ["--grid", "coarse"],
        "full grid, 1 cell": ["--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20"],
    }.items():
        runs = [collect(*options) for _ in range(3)]
        medians = {key: statistics.median(run[key] for run in runs) for key in ("cases", "seconds", "memory_mb")}
        rows.append({"matrix": name} | medians)
    summary = {"seconds": rows[0]["seconds"], "memory_mb": rows[0]["memory_mb"], "cases": rows[0]["cases"]}
    show("collection", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
