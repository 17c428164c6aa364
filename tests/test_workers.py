"""GPUs on real xdist workers, some of which are killed: stand-in GPUs, and cases that only note where they run."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from echo import ERROR
from searches import SmallSearch
from standins import THREE, StandIns

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.measure.timing_lock import TimingLock
from pytest_diffaccel.search.pipelines import Pipelines
from pytest_diffaccel.search.spent import Spent

A, B, C = ("GPU-aaaa0000-01", "GPU-aaaa1111-02", "GPU-bbbb2222-03")
# Notes each worker's GPU as its first conftest.py sees it: nothing runs earlier.
CONFTEST = """
import json, os

def note(**what):
    what |= {"worker": os.environ.get("PYTEST_XDIST_WORKER", ""), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with open(os.path.join(os.path.dirname(__file__), "notes.jsonl"), "a") as notes:
        notes.write(json.dumps(what) + chr(10))

def workers_by_case():
    with open(os.path.join(os.path.dirname(__file__), "notes.jsonl")) as lines:
        # Another worker may be at its line: a part of it is no note yet.
        whole = [json.loads(line) for line in lines if line.endswith(chr(10))]
    return {one["case"]: one["worker"] for one in whole if "case" in one}

note(started=True)
"""
# A search's cases, which measure nothing.
CASES = """
import os, time
from conftest import note, workers_by_case

def test_search(diffaccel_candidate):
    note(case=diffaccel_candidate.key, group=diffaccel_candidate.accelerator)
    go_wrong(diffaccel_candidate.key)

def test_winners(diffaccel_group):
    note(case=diffaccel_group[1], group=diffaccel_group[1])

VICTIM = {!r}

def go_wrong(key):
    {}

def let_replacement_begin():
    deadline = time.monotonic() + 300
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw3":
        return
    while VICTIM in (done := workers_by_case()) and "gw3" not in done.values() and time.monotonic() < deadline:
        time.sleep(0.05)
"""
CELL = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse")
ONE_GROUP = ("--search-targets", "tome")
VICTIM = "SD1.5-DDIM-20-T-Gate-gate_step=10,sp_interval=3,fi_interval=1,warm_up=2"


class Folder:
    """A folder with cases that note where they run."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        pytester.makeconftest(CONFTEST)
        self.cases("pass")

    def cases(self, mishap: str) -> None:
        """What each candidate's case does after its note."""
        self.pytester.makepyfile(test_cases=CASES.format(VICTIM, mishap))

    def run(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess(*CELL, *arguments)

    def notes(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.pytester.path / "notes.jsonl").read_text().splitlines()
        return [note for note in map(json.loads, lines) if kind in note]

    def gpus(self) -> dict[str, str]:
        """The GPU of each worker, as its environment says."""
        return {note["worker"]: note["gpu"] for note in self.notes("started") if note["worker"]}


@pytest.fixture
def folder(pytester: pytest.Pytester, stand_ins: StandIns) -> Folder:
    stand_ins.list_gpus(THREE)
    return Folder(pytester)


# --- who has which GPU -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "arguments", "gpus"),
    [
        (None, ("-n", "4", "--gpus=0,2"), [A, C, A, C]),
        ("2,0", ("-n", "2", "--gpus=1,0"), ["0", "2"]),
        ("GPU-b,1,-1,0", ("-n", "auto", "--gpus"), ["GPU-b", "1"]),
        (None, ("-n", "logical", "--gpus=2,GPU-aaaa1"), [C, B]),
    ],
)
def test_workers_take_turns_among_the_gpus(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, visible: str | None, arguments: tuple[str, ...], gpus: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    folder.run(*ONE_GROUP, *arguments).assert_outcomes(passed=5)
    assert folder.gpus() == {f"gw{number}": name for number, name in enumerate(gpus)}
    assert all(note["gpu"] == folder.gpus()[note["worker"]] for note in folder.notes("case"))


def test_the_users_own_number_of_workers_wins(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")
    folder.run(*ONE_GROUP, "-n", "auto", "--gpus").assert_outcomes(passed=5)
    assert folder.gpus() == {"gw0": A}


def test_one_process_takes_the_first(folder: Folder) -> None:
    folder.run(*ONE_GROUP, "--gpus=2").assert_outcomes(passed=5)
    assert {note["gpu"] for note in folder.notes("case")} == {C}


@pytest.mark.parametrize("workers", [(), ("-n", "2"), ("-n", "auto")])
@pytest.mark.parametrize(
    ("visible", "option", "said"),
    [
        ("", "--gpus", "no GPU can be used here *; leave --gpus out to run on the CPU"),
        ("1", "--gpus=0,1", "no GPU 1; those that can be used are 0 *; choose among them, or leave --gpus out *"),
    ],
)
def test_fewer_gpus_than_asked_for_is_a_usage_error(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    workers: tuple[str, ...],
    visible: str,
    option: str,
    said: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    result = folder.run(option, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --gpus: {said}"])
    assert not folder.notes("case")


def test_a_swallowed_path_is_told_before_workers_are_counted(folder: Folder) -> None:
    result = folder.run("-n", "auto", "--gpus", "test_cases.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*did you mean `--gpus=all test_cases.py`?"])


# --- who works on what -----------------------------------------------------------------------------------------


def test_the_longest_groups_are_handed_out_first(folder: Folder) -> None:
    folder.run("-n", "1", "--gpus").assert_outcomes(passed=58)
    groups = [note["group"] for note in folder.notes("case")]
    sizes = [groups.count(group) for group in dict.fromkeys(groups)]
    assert sizes == sorted(sizes, reverse=True) == [13, 13, 11, 9, 7, 5]
    # A group's cases follow one another.
    assert groups == [group for group in dict.fromkeys(groups) for _ in range(groups.count(group))]


@pytest.mark.parametrize("options", [(), ("--exhaustive",)])
def test_workers_share_groups_where_none_is_left(folder: Folder, options: tuple[str, ...]) -> None:
    """Also when one of them dies; the winners' case comes when the others are done with the group too."""
    folder.cases(f"if key == {VICTIM!r}: os.kill(os.getpid(), {signal.SIGKILL:d})\n    time.sleep(0.05)")
    folder.run("-n", "3", "--gpus", *options).assert_outcomes(passed=57, failed=1)
    notes = folder.notes("case")
    ran = [note["case"] for note in notes]
    assert len(ran) == len(set(ran)) == 58
    groups = {name: [note for note in notes if note["group"] == name] for name in {note["group"] for note in notes}}
    assert all(group[-1]["case"] == name for name, group in groups.items())
    assert any(len({note["worker"] for note in group}) > 1 for group in groups.values())


def test_a_killed_worker_loses_its_case_and_its_gpu_is_used_again(folder: Folder) -> None:
    folder.cases(f"if key == {VICTIM!r}: os.kill(os.getpid(), {signal.SIGKILL:d})\n    let_replacement_begin()")
    result = folder.run("-n", "3", "--gpus")
    result.assert_outcomes(passed=57, failed=1)
    result.stdout.fnmatch_lines([f"*crashed while running*{VICTIM}*"])
    ran = [note["case"] for note in folder.notes("case")]
    assert len(ran) == len(set(ran)) == 58
    dead = next(note["worker"] for note in folder.notes("case") if note["case"] == VICTIM)
    assert folder.gpus().keys() == {"gw0", "gw1", "gw2", "gw3"}
    assert folder.gpus()["gw3"] == folder.gpus()[dead]
    assert any(note["worker"] == "gw3" for note in folder.notes("case"))


# --- CUDA that is broken ---------------------------------------------------------------------------------------

# As after a device-side assert: every later call fails too.
BREAK = f"""if key == {VICTIM!r}: breaks.append(key)
    assert not breaks, "CUDA error: device-side assert triggered"
    let_replacement_begin()

from pytest_diffaccel import devices
breaks = []
devices.is_cuda_broken = lambda: bool(breaks)
"""


def test_a_worker_whose_cuda_is_broken_ends_after_its_case(folder: Folder) -> None:
    """The case fails with its own error, once; the next ones run in a fresh process on the same GPU."""
    folder.cases(BREAK)
    result = folder.run("-n", "3", "--gpus")
    result.assert_outcomes(passed=57, failed=1)
    result.stdout.fnmatch_lines(["E *AssertionError: CUDA error: device-side assert triggered"])
    result.stdout.no_fnmatch_line("*crashed while running*")
    ran = [note["case"] for note in folder.notes("case")]
    assert len(ran) == len(set(ran)) == 58
    dead = next(note["worker"] for note in folder.notes("case") if note["case"] == VICTIM)
    assert dead not in {note["worker"] for note in folder.notes("case")[ran.index(VICTIM) + 1 :]}
    assert folder.gpus()["gw3"] == folder.gpus()[dead]


def test_a_single_process_stops_when_its_cuda_is_broken(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_diffaccel.devices.is_cuda_broken", lambda: False)
    folder.cases(BREAK)
    result = folder.run("--gpus", "--search-targets", "tgate")
    assert folder.notes("case")[-1]["case"] == VICTIM
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        ["*an error has made CUDA useless to this process; the same command goes on from here*"]
    )


def test_a_race_ends_when_cuda_is_broken(small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every candidate after the one that broke it would be recorded as a failure."""
    monkeypatch.setattr("pytest_diffaccel.search.evaluate.attempt.is_cuda_broken", lambda: True)
    small_search.register((4, ERROR), (5, ERROR), (6, ERROR))
    result = small_search.race("-k", "test_winners")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(["*CudaBroken: this process can use its GPU no more*an accident in the third*"])
    assert len(small_search.failures()) == 1


# --- one timing a GPU ------------------------------------------------------------------------------------------


def test_workers_that_share_a_gpu_time_one_after_the_other(folder: Folder) -> None:
    folder.pytester.makepyfile(
        test_cases="""
import time
import pytest
from conftest import note
from pytest_diffaccel.measure.timing_lock import TimingLock

@pytest.mark.parametrize("part", range(8))
def test_part(part, diffaccel_run):
    with TimingLock.of_gpu(diffaccel_run.settings.gpu.physical).timing():
        began = time.monotonic()
        time.sleep(0.1)
        note(case=part, began=began, ended=time.monotonic())
"""
    )
    folder.run("-n", "4", "--gpus=0,1").assert_outcomes(passed=8)
    timings = folder.notes("began")
    assert {note["worker"] for note in timings} == {"gw0", "gw1", "gw2", "gw3"}
    for gpu in (A, B):
        on_it = sorted((note["began"], note["ended"]) for note in timings if note["gpu"] == gpu)
        assert len(on_it) >= 2
        assert all(ended <= began for (_, ended), (began, _) in pairwise(on_it))


@pytest.mark.parametrize(("busy_share", "notes"), [(0.5, ["Echo (1)"]), (0.95, []), (None, [])])
def test_a_search_on_gpus_says_which_winners_wait_for_the_host(
    steady_search: SmallSearch,
    stand_ins: StandIns,
    monkeypatch: pytest.MonkeyPatch,
    busy_share: float | None,
    notes: list[str],
) -> None:
    stand_ins.list_gpus(THREE)
    monkeypatch.setattr("pytest_diffaccel.search.pipelines.computing_gpu", lambda gpu: gpu.physical)
    monkeypatch.setattr("pytest_diffaccel.search.knowledge.Knowledge.busy_share", lambda *_: busy_share)
    monkeypatch.setattr("pytest_diffaccel.measure.bottleneck._MOST_FIXED_SHARE", 1.0)
    steady_search.register((20, 0))
    result = steady_search.run("--gpus=1")
    result.assert_outcomes(passed=2)
    said = [line for line in result.outlines if "launch-bound" in line]
    assert [line.partition("launch-bound winners: ")[2].partition(";")[0] for line in said] == notes


def test_a_search_times_under_the_lock_of_its_gpu(
    small_search: SmallSearch, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.list_gpus(THREE)
    monkeypatch.setattr("pytest_diffaccel.search.pipelines.computing_gpu", lambda gpu: gpu.physical)
    small_search.register((10, 0))
    small_search.run("--gpus=1", "benches/test_search.py::test_search").assert_outcomes(passed=1)
    assert TimingLock.of_gpu(B).path.exists()
    assert not (Path(".diffaccel") / "timing.lock").exists()


@pytest.mark.parametrize(
    ("gpus", "models", "workers", "alone"),
    [
        (None, "embedded", 1, True),
        (None, "embedded", 4, False),
        (None, "embedded", 5, True),
        (None, "models.toml", 4, True),
        ("all", "embedded", 4, True),
    ],
)
def test_workers_time_beside_each_other_only_on_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch, gpus: str | None, models: str, workers: int, alone: bool
) -> None:
    held: list[str] = []
    for name in ("timing", "generating"):
        monkeypatch.setattr(TimingLock, name, lambda _self, name=name: nullcontext(held.append(name)))
    monkeypatch.setattr("pytest_diffaccel.search.pipelines.computing_gpu", lambda _: B)
    monkeypatch.setattr("pytest_diffaccel.search.pipelines.cores", lambda: 4)
    settings: Any = SimpleNamespace(gpus=gpus, gpu=None, models=models)
    source: Any = None
    with Pipelines(settings, default_registry(), source, workers, Spent(), lambda *_: None).timing():
        assert held == ["timing" if alone else "generating"]


def test_a_torch_without_cuda_is_refused_before_anything_is_measured(
    small_search: SmallSearch, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compute on the CPU, unnoticed."""
    stand_ins.list_gpus(THREE)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = small_search.run("--gpus", "-x")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--gpus: torch * finds no CUDA device; install a torch *, or leave --gpus out *"])
    assert small_search.stored() == []
