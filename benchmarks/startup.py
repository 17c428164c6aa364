"""What the plugin costs a pytest run that has nothing to do with it, in milliseconds; fails if it imports torch.

An empty test run with the plugin and one with it blocked take turns. Time is the CPU's, which start-up is bound by:
waiting for another program's turn is none of the plugin's. The cost is the difference of the two least times, as
disturbance only adds; a machine that is busy still makes everything slower, so compare it with the whole run's time.
Run it as ``python -m benchmarks.startup``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.output import parser, show

_TEST = """
def test_unrelated():
    pass
"""
# Fails, and the benchmark with it, when the plugin has imported anything heavy by the session's end.
_CONFTEST = """
import sys

def pytest_unconfigure():
    heavy = {"torch", "diffusers", "lpips", "pydantic", "pytest_diffaccel.report"} & set(sys.modules)
    assert not heavy, heavy
"""


def run_ms(folder: Path, *arguments: str) -> float:
    """CPU time of one pytest run of ``folder``, milliseconds.

    Raises:
        subprocess.CalledProcessError: when the run fails: something heavy was imported.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def main() -> None:
    """Time the pairs and print the cost."""
    made = parser(__doc__ or "")
    made.add_argument("--pairs", type=int, default=15)
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_unrelated.py").write_text(_TEST, encoding="utf-8")
        (folder / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
        run_ms(folder)
        pairs = [(run_ms(folder), run_ms(folder, "-p", "no:diffaccel")) for _ in range(arguments.pairs)]
    active, blocked = (min(times) for times in zip(*pairs, strict=True))
    rows = [{"run": "with the plugin", "least_ms": active}, {"run": "plugin blocked", "least_ms": blocked}]
    summary = {"cost_ms": active - blocked}
    show("start-up of an unrelated pytest run", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
