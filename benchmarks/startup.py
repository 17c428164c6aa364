"""What the plugin costs a pytest run that has nothing to do with it, in milliseconds; fails if it imports torch.

An empty test run with the plugin and one with it blocked take turns; the cost is the median of the pairs' differences.
Run it as ``python -m benchmarks.startup``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.output import parser, show

# Fails, and the benchmark with it, when the plugin has imported anything heavy.
_TEST = """
import sys

def test_nothing_heavy_is_imported():
    assert not {"torch", "diffusers", "lpips", "pydantic"} & set(sys.modules)
"""


def run_ms(folder: Path, *arguments: str) -> float:
    """Wall time of one pytest run of ``folder``, milliseconds.

    Raises:
        subprocess.CalledProcessError: when the test fails: something heavy was imported.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(folder)]
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Time the pairs and print the cost."""
    made = parser(__doc__ or "")
    made.add_argument("--pairs", type=int, default=15)
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_unrelated.py").write_text(_TEST, encoding="utf-8")
        run_ms(folder)
        pairs = [(run_ms(folder), run_ms(folder, "-p", "no:diffaccel")) for _ in range(arguments.pairs)]
    differences = [active - blocked for active, blocked in pairs]
    rows = [
        {"run": "with the plugin", "median_ms": statistics.median(active for active, _ in pairs)},
        {"run": "plugin blocked", "median_ms": statistics.median(blocked for _, blocked in pairs)},
    ]
    summary = {"cost_ms": statistics.median(differences)}
    show("start-up of an unrelated pytest run", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
