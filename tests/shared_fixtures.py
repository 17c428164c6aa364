"""What the tests share: one thread for torch, embedded pipelines, and folders in which small searches run."""

from __future__ import annotations

import os
import signal

# Before torch starts its threads: they wait busily, so more of them than free cores make everything many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Lines are found whole; tests of how they are broken say how wide their terminal is.
os.environ["COLUMNS"] = "500"
# Searches that tests run are none of a workflow's.
os.environ.pop("GITHUB_STEP_SUMMARY", None)
# What a script's shell starts in the background ignores Ctrl-C, as do all processes that it starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import importlib
import pkgutil
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

# Some load once in a process, torch with its parts among them; pytester forgets what a run within it brought in.
import diffusers.pipelines.pipeline_utils  # noqa: F401
import pytest
import torch._dynamo  # noqa: F401
import vl_convert  # noqa: F401
from filelock import FileLock
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from searches import SMALL_OPTIONS, SearchFolder, SmallSearch, embedded_folder, run_here, without_scale
from servers import postgresql_server
from standins import stand_ins
from timings import SteadyClock

import pytest_diffaccel
from pytest_diffaccel.matrix import PIPES

__all__ = ["postgresql_server", "stand_ins"]

# The same test takes many times as long on some days, which is no fault of what it tests.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")


@pytest.fixture(scope="session")
def pipeline_of() -> Callable[[str, str], Any]:
    """Gives the embedded pipeline of a pipe with a scheduler; each pipe is loaded once."""
    from pytest_diffaccel.models.schedulers import set_scheduler

    @cache
    def loaded(pipe: str) -> Any:
        return pytest_diffaccel.load_pipeline(pipe, device="cpu")

    def get(pipe: str, scheduler: str = "DDIM") -> Any:
        embedded_folder(pipe)
        pipeline = loaded(pipe)
        set_scheduler(pipeline, scheduler)
        return pipeline

    return get


@pytest.fixture(scope="session")
def everything_imported(pipeline_of: Callable[[str, str], Any]) -> None:
    """Imports all that a search imports: pytester forgets modules that a run in this process brought in."""
    from pytest_diffaccel.measure.quality import References

    names = ("DeepCache", "PIL.ImageFont", "rich.console", "rich.table", "tgate", "tomesd")
    clip = "transformers.models.clip.image_processing_clip"
    for name in (*names, clip):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(pytest_diffaccel.__path__, "pytest_diffaccel."):
        importlib.import_module(module.name)
    for pipe in PIPES:
        with pytest_diffaccel.accelerate(pipeline_of(pipe, "DDIM"), {}, steps=1) as generate:
            images = generate(["red apple"], [0])
    References(images).score(images)


@pytest.fixture
def small_search(pytester: pytest.Pytester, everything_imported: None, monkeypatch: pytest.MonkeyPatch) -> SmallSearch:
    """A folder to search in, in this process or another; no block is made again, and this process asks no clock."""
    # The folder's conftest file sets it; this sets it back.
    monkeypatch.setattr("pytest_diffaccel.measure.blocks._REPEATS", 0)
    SteadyClock(monkeypatch)
    return SmallSearch(pytester)


@pytest.fixture
def one_pipeline(
    pipeline_of: Callable[[str, str], Any], everything_imported: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches in this process all use one loaded pipeline of each pipe: no time for loading."""
    monkeypatch.setattr("pytest_diffaccel.search.pipelines.load_pipeline", lambda pipe, **_: pipeline_of(pipe, "DDIM"))


@pytest.fixture
def steady_search(small_search: SmallSearch, one_pipeline: None, monkeypatch: pytest.MonkeyPatch) -> SmallSearch:
    """A folder whose searches in this process are quick too: they take the scale of their losses for known."""
    without_scale(monkeypatch)
    return small_search


@pytest.fixture(scope="session")
def finished_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, everything_imported: None
) -> Path:
    """A folder in which the small search has run to its end, with what it printed; one for all workers."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if hasattr(request.config, "workerinput") else own
    folder, done = shared / "finished", shared / "finished.txt"
    with FileLock(shared / "finished.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that died
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                # The folder's conftest file sets it; this sets it back.
                patch.setattr("pytest_diffaccel.measure.blocks._REPEATS", 0)
                SteadyClock(patch)
                search = SearchFolder(folder)
                with (folder / "output.txt").open("w", encoding="utf-8") as output, redirect_stdout(output):
                    status = run_here(search.path, "benches", *SMALL_OPTIONS, "--junitxml", "junit.xml")
            assert status == 0, (folder / "output.txt").read_text(encoding="utf-8")
            done.touch()
    return folder


@pytest.fixture
def finished_search(small_search: SmallSearch, finished_folder: Path) -> SmallSearch:
    """A folder in which the small search has run to its end, to run it again."""
    for name in (".diffaccel", "golden"):
        shutil.copytree(finished_folder / name, small_search.path / name)
    return small_search
