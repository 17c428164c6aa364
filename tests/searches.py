"""Folders in which small searches run: real ones, on an embedded pipeline, with a small accelerator of ours."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.models.registry import ModelSpec
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search.cases import NotWorthwhile
from pytest_diffaccel.search.results import Winners
from pytest_diffaccel.search.search_run import SearchRun, SearchSession
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

TESTS = Path(__file__).resolve().parent
# Registers the small accelerator of echo.py.
SMALL_SEARCH = """
import sys
sys.path.insert(0, {tests!r})
from echo import Echo, Reply, spend_little

spend_little()

def pytest_diffaccel_accelerators(registry):
    registry.register(Echo({points!r}))
    if {replies!r}:
        registry.register(Reply({replies!r}))
"""
#: Each many times as fast as the baseline.
CLEAR_POINTS = ((10, 0), (15, 0), (20, 0))
#: One cell, one small picture: quick.
SMALL_OPTIONS = (
    *("--models", "models.toml", "--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--search-targets", "Echo"),
    *("--num-samples", "1", "--batch-size", "1", "--blocks", "1", "--max-quality-loss", "10", "--exhaustive"),
)
#: Evaluates only what may win, on four small pictures in two batches.
RACE_OPTIONS = (
    *(one for one in SMALL_OPTIONS if one != "--exhaustive"),
    *("--num-samples", "4", "--batch-size", "2"),
)
#: After those of a race: two pictures, one at a time.
THRIFTY = ("--num-samples", "2", "--batch-size", "1")
BOTH = ("--search-targets", "Reply")  # beside Echo, which the options name


def embedded_folder(pipe: str) -> Path:
    """The embedded pipeline's folder; the test is skipped where it is not made yet."""
    folder = Path(ModelSpec.from_embedded(pipe).location)
    if not (folder / "model_index.json").is_file():
        pytest.skip(f"{pipe} is not trained yet")
    return folder


class SearchFolder:
    """A folder with the benches, a small accelerator and small pictures, to run searches in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.golden = path / "golden" / "search_params.json"
        self.store = path / ".diffaccel" / "search.sqlite"
        shutil.copytree(TESTS.parent / "benches", path / "benches", ignore=shutil.ignore_patterns("__pycache__"))
        folder = embedded_folder("SD1.5")
        (path / "models.toml").write_text(
            f'"SD1.5" = {{ path = "{folder}", height = 32, width = 32, guidance_scale = 5.0 }}\n', encoding="utf-8"
        )
        self.register(*CLEAR_POINTS)

    def register(self, *points: tuple[int, int], replies: Sequence[tuple[int, int]] = ()) -> None:
        """Register Echo with a grid of (interval, mishap) points; and Reply, a second accelerator, if it has any."""
        text = SMALL_SEARCH.format(tests=str(TESTS), points=points, replies=tuple(replies))
        (self.path / "conftest.py").write_text(text, encoding="utf-8")

    def add_to_conftest(self, text: str) -> None:
        """More lines of the folder's conftest.py, for processes of their own: they are never undone."""
        with (self.path / "conftest.py").open("a", encoding="utf-8") as file:
            file.write(text)

    def stored(self) -> list[tuple[str, str, str]]:
        """(candidate key, purpose, time) of every measurement in the store."""
        return self.query("SELECT candidate_key, purpose, created_at FROM diffaccel_measurements ORDER BY 1, 2")

    def failures(self) -> list[tuple[str, str, str]]:
        """(candidate key, kind, message) of every candidate's failure in the store, by key."""
        with Store.open(self.store) as store:
            found = [(one.candidate.key, one.kind, one.message) for one in store.contents().failures]
        return sorted(found)

    def short_run_failures(self) -> list[tuple[str, str, str]]:
        """The same of short runs that took their process with them."""
        columns = "environment, num_samples, batch_size, seed, prompts_digest, purpose"
        where = "WHERE purpose = 'calibration'"
        rows = self.query(f"SELECT DISTINCT {columns} FROM diffaccel_attempts {where}")
        with Store.open(self.store) as store:
            found = [one for name, *sampling in rows for one in store.failures(name, Sampling(*sampling))]
        return [(one.candidate.key, one.kind, one.message) for one in found]

    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of an SQL query on the store."""
        with closing(sqlite3.connect(self.store)) as connection:
            return connection.execute(query).fetchall()

    def execute(self, statement: str) -> None:
        """Change the store."""
        with closing(sqlite3.connect(self.store)) as connection, connection:
            connection.execute(statement)


class SmallSearch(SearchFolder):
    """A folder in which pytester runs searches."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        super().__init__(pytester.path)
        self.pytester = pytester

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest with the small search's options and ``arguments``, in this process."""
        return self.pytester.runpytest_inprocess(*self._all(arguments))

    def race(self, *arguments: str) -> pytest.RunResult:
        """Run a search that evaluates only what may win, on four small pictures in two batches."""
        return self.pytester.runpytest_inprocess(*self._all(arguments, RACE_OPTIONS))

    def race_apart(self, *arguments: str) -> pytest.RunResult:
        """The same in a process of its own."""
        return self.pytester.runpytest_subprocess(*self._all(arguments, RACE_OPTIONS))

    def run_apart(self, *arguments: str) -> pytest.RunResult:
        """The same in a process of its own."""
        return self.pytester.runpytest_subprocess(*self._all(arguments))

    @staticmethod
    def _all(arguments: tuple[str, ...], options: tuple[str, ...] = SMALL_OPTIONS) -> list[str]:
        paths = () if any(one.startswith("benches") for one in arguments) else ("benches",)
        return [*paths, *options, *arguments]


def run_here(folder: Path, *arguments: str) -> int:
    """Run pytest in a folder and in this process, for fixtures that outlive a test, as pytester's do not; its status.

    The caller has imported all that a search imports, since modules that this brings in are forgotten, as by pytester.
    """
    with pytest.MonkeyPatch.context() as patch, _forgetting_modules():
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        return int(pytest.main([*arguments, "-p", "no:cacheprovider"]))


class Forked:
    """A search in a copy of this process, which has imported and loaded already all that a search needs."""

    def __init__(self, folder: SearchFolder, arguments: Sequence[str]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=self._search, args=(folder.path, arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @staticmethod
    def _search(folder: Path, arguments: Sequence[str]) -> None:
        os.setsid()
        sys.stdout = sys.stderr = (folder / "output.txt").open("a", encoding="utf-8")
        for standard in (1, 2):
            os.dup2(sys.stdout.fileno(), standard)
        sys.exit(run_here(folder, *arguments))

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a search", timeout or 0.0)
        return self._process.exitcode


@contextmanager
def _forgetting_modules() -> Iterator[None]:
    before = dict(sys.modules)
    try:
        yield
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def open_run(
    *arguments: str, methods: Iterable[Method], metrics: Iterable[Metric] = (), session: SearchSession | None = None
) -> SearchRun:
    """A session of a race without pytest, in the present folder, which is a :class:`SearchFolder`'s."""
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    registry = default_registry()
    for method in methods:
        registry.register(method)
    known = MetricRegistry()
    for metric in metrics:
        known.register(metric)
    options = parser.parse_known_args([*RACE_OPTIONS, *arguments])
    return SearchRun(Settings.from_options(options, registry.names, known), registry, session, known)


def without_scale(monkeypatch: pytest.MonkeyPatch, *, batch: float = 0.0, alone_share: float = 1.0) -> None:
    """Let searches of this process take the scale of their losses for known: a third of a small search's time.

    And with it what a call that draws one picture takes, as a share of a batch's.
    """
    scale = QualityScale(repeat=0.0, batch=batch, one_ulp=0.0, unrelated=0.1, alone_share=alone_share)
    monkeypatch.setattr("pytest_diffaccel.search.null_control.measure_scale", lambda *_: scale)


def drive(run: SearchRun) -> list[Winners]:
    """Do what a session's cases do, in their order; what each of its groups' winners' cases found."""
    found = []
    for cell, accelerator in run.groups:
        for candidate in run.candidates:
            if (candidate.cell, candidate.accelerator) == (cell, accelerator):
                with suppress(NotWorthwhile, RuntimeError):
                    run.measure(candidate, others_follow=True)
        found.append(run.find_winners(cell, accelerator, run.groups))
    run.close()
    return found
