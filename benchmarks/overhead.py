"""What a search spends outside its work: the share of its time that is neither the pipeline's nor LPIPS's.

Run ``python -m benchmarks.overhead`` on a quiet machine (ten minutes; what follows ``--`` goes to ``pytest benches``).
A search of one cell runs in a folder and process of its own, under a pytest plugin that times every call of a pipeline
and of the LPIPS network. Two shares: of the cases' time, and of all the process's, its start and the
loading of pipelines included, which a longer search spends only once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from benchmarks.output import parser, show

ROOT = Path(__file__).resolve().parent.parent
_RESULT = "DIFFACCEL_OVERHEAD_RESULT"
_DEFAULT = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse")


class Stopwatch:
    """Seconds spent in wrapped calls, by name; a call within a wrapped call counts once.

    Attributes:
        spent_s: by name.
    """

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = {}
        self._inside = False

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed under ``name``."""

        @wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, began = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._inside = False
                self.spent_s[name] = self.spent_s.get(name, 0.0) + time.perf_counter() - began

        return wrapped


class Probe:
    """The pytest plugin: times pipelines, LPIPS and cases of its session."""

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self._cases_s = 0.0

    @pytest.hookimpl
    def pytest_sessionstart(self) -> None:
        """Wrap what counts as work."""
        import lpips

        from pytest_diffaccel.accelerators.acceleration import Generate

        Generate._generate = self._watch.timed("pipeline", Generate._generate)  # type: ignore[method-assign]
        lpips.LPIPS.forward = self._watch.timed("LPIPS", lpips.LPIPS.forward)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Any:
        """Time a case, set-up and report included."""
        began = time.perf_counter()
        result = yield
        self._cases_s += time.perf_counter() - began
        return result

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Hand over what was timed."""
        Path(os.environ[_RESULT]).write_text(json.dumps({**self._watch.spent_s, "cases": self._cases_s}))


def searched(options: Sequence[str]) -> dict[str, float]:
    """Seconds of one search: ``pipeline``, ``LPIPS``, ``cases`` and ``process``."""
    with tempfile.TemporaryDirectory() as name:
        result = Path(name) / "result.json"
        code = (
            "import sys, pytest; from benchmarks.overhead import Probe; sys.exit(pytest.main(sys.argv[1:], [Probe()]))"
        )
        command = [sys.executable, "-c", code, str(ROOT / "benches"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
        command += ["--golden", str(Path(name) / "golden.json"), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), _RESULT: str(result)}
        began = time.perf_counter()
        subprocess.run(command, cwd=name, env=environment, check=True, stdout=sys.stderr)
        took = time.perf_counter() - began
        return {**json.loads(result.read_text()), "process": took}


def main() -> None:
    """Search once and print where the time went."""
    made = parser(__doc__ or "")
    made.add_argument("options", nargs="*", help="options of the search, after --")
    arguments = made.parse_args()
    seconds = searched(arguments.options or _DEFAULT)
    work = seconds["pipeline"] + seconds["LPIPS"]
    parts = {
        "pipeline": seconds["pipeline"],
        "LPIPS": seconds["LPIPS"],
        "other work in cases": seconds["cases"] - work,
        "start, collection, end": seconds["process"] - seconds["cases"],
    }
    rows = [{"part": part, "seconds": took, "share": took / seconds["process"]} for part, took in parts.items()]
    summary = {
        "overhead_share": 1 - work / seconds["cases"],
        "overhead_share_with_start": 1 - work / seconds["process"],
    }
    show("where a search's time goes", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
