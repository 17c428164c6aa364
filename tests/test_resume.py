"""``kill -9`` at any moment: a search goes on where it was, to the same winners, and no file is ever damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from echo import ERROR, Echo
from filelock import Timeout
from searches import THRIFTY, Forked, SmallSearch, drive, open_run
from timings import SteadyClock

from pytest_diffaccel.accelerators.base import PipelineCall
from pytest_diffaccel.matrix import Candidate, Params
from pytest_diffaccel.records.contents import RunningSession
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError
from pytest_diffaccel.search.cases import FailedElsewhere
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.search.search_run import SearchRun

#: More of them: ``python -m benchmarks.resume_after_kill --kills 20``.
KILLS = int(os.environ.get("DIFFACCEL_TEST_KILLS", "4"))


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_same_winners(
    everything_imported: None, one_pipeline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its clocks say, which are made up."""
    benchmark = pytest.importorskip("benchmarks.resume_after_kill", reason="no part of the source distribution")
    SteadyClock(monkeypatch)
    monkeypatch.setattr(benchmark.Kind, "start", lambda kind, folder: Forked(folder, kind.command[3:]))
    monkeypatch.setattr(sys, "argv", ["resume_after_kill", "--kills", str(KILLS), "--json"])
    benchmark.main()
    report = json.loads(capsys.readouterr().out)
    assert report["kills"] == len(report["rows"]) == KILLS
    assert report["searches_with_the_same_winners"] == report["searches"] >= 1
    assert report["lost_measurements"] == report["failures_left"] == 0


def test_what_was_measured_before_an_interruption_is_not_measured_again(finished_search: SmallSearch) -> None:
    """One measurement is missing, as after a kill in the middle: only it, and nothing else, is made again."""
    before = finished_search.stored()
    gone = next(candidate for candidate, purpose, _ in before if purpose == "search")
    finished_search.execute(f"DELETE FROM diffaccel_measurements WHERE candidate_key = '{gone}' AND purpose = 'search'")
    finished_search.golden.unlink()
    finished_search.run().assert_outcomes(passed=4)
    after = finished_search.stored()
    assert {row[:2] for row in after} >= {row[:2] for row in before}
    assert {row[0] for row in set(before) - set(after)} == {gone}
    # Made again it may look a little faster or slower, and then other fewer steps are its rival.
    assert all(row[0] == gone or row[1].startswith("instead of") for row in set(after) - set(before))
    assert finished_search.golden.exists()


# Another process in the middle of a candidate; by and by it stores what it measured.
MEASURING = """
import sqlite3, sys, time
from filelock import ReadWriteLock
with ReadWriteLock(".diffaccel/in-progress/SD1.5-DDIM-20-Echo.lock").read_lock():
    print("measuring", flush=True)
    time.sleep(5)
    with sqlite3.connect(".diffaccel/search.sqlite") as store:
        store.execute("INSERT INTO diffaccel_measurements SELECT * FROM aside")
"""


def test_winners_wait_for_a_candidate_that_another_process_measures(finished_search: SmallSearch) -> None:
    fastest = max(key for key, *_ in finished_search.stored())
    measurements = f"diffaccel_measurements WHERE candidate_key = '{fastest}' AND purpose = 'search'"
    finished_search.execute(f"CREATE TABLE aside AS SELECT * FROM {measurements}")
    finished_search.execute(f"DELETE FROM {measurements}")
    golden = finished_search.golden.read_text(encoding="utf-8")
    finished_search.golden.unlink()
    command = [sys.executable, "-c", MEASURING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=finished_search.path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "measuring\n"
        finished_search.run("-k", "test_winners").assert_outcomes(passed=1, deselected=3)
    assert other.returncode == 0
    assert finished_search.golden.read_text(encoding="utf-8") == golden


# --- what cuts a candidate off ---------------------------------------------------------------------------------

# Only the second reaches the highest targets.
POINTS = ((2, 0), (10, 0))


@pytest.fixture
def folder(steady_search: SmallSearch) -> SmallSearch:
    """A folder to search in without pytest; no clock has a part in what is decided."""
    return steady_search


def opened(*arguments: str) -> tuple[SearchRun, Candidate]:
    """A session of a race, and the candidate that its winners need."""
    run = open_run(*THRIFTY, *arguments, methods=[Echo(POINTS)])
    return run, run.candidates[1]


def begin(run: SearchRun, candidate: Candidate, times: int) -> None:
    """What processes leave that end while they measure a candidate."""
    for number in range(times):
        sampling = run.bench.sampling(candidate.cell, "search")
        place = candidate, run.bench.environment(candidate.cell).id, sampling
        run.bench.store.begin(*place, "case", session=f"session {number}")


def raced(run: SearchRun) -> list[str]:
    """Keys of the candidates that are evaluated once a group's winners are found."""
    cell, accelerator = run.groups[0]
    run.find_winners(cell, accelerator)
    known = [one.key for one in run.candidates if run.bench.known(cell).find(one) is not None]
    run.close()
    return known


@pytest.mark.parametrize(("times", "options", "tried"), [(1, (), True), (2, (), False), (2, ("--fresh",), True)])
def test_what_was_cut_off_is_tried_once_more(
    folder: SmallSearch, times: int, options: tuple[str, ...], tried: bool
) -> None:
    run, candidate = opened()
    begin(run, candidate, times)
    run.close()
    kinds = [kind for _, kind, _ in folder.failures()]
    assert kinds == ["interrupted" if times == 1 else "crash"]
    run, candidate = opened(*options)
    assert (candidate.key in raced(run)) == tried
    assert bool(folder.failures()) != tried


def test_a_clock_that_goes_back_lets_no_candidate_take_a_second_worker(
    folder: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, candidate = opened()
    place = candidate, run.bench.environment(candidate.cell).id, run.bench.sampling(candidate.cell, "search")
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: run.session.began_at - 3600)
        run.bench.store.begin(*place, "case", session=run.session.name)
    assert run.bench.failed(candidate.cell) == {candidate.key}
    run.close()
    run, candidate = opened()
    assert run.bench.failed(candidate.cell) == set()
    run.close()


@pytest.mark.parametrize("options", [("--max-quality-loss", "1e-9"), ("--grid", "coarse"), ("--exhaustive",)])
def test_what_one_search_decided_another_of_other_options_decides_anew(
    folder: SmallSearch, options: tuple[str, ...]
) -> None:
    """Measurements are the same for both."""

    def decided(*options: str) -> tuple[bool, set[str]]:
        run, _ = opened(*options)
        group = GroupSearch(run.bench, *run.groups[0])
        found = group.is_done, {one.key for one in run.candidates if group.why_passed_over(one)}
        assert run.bench.known(run.groups[0].cell).losses(run.groups[0].cell)
        run.close()
        return found

    drive(opened(*options)[0])
    done, passed_over = decided(*options)
    assert done
    assert decided() == (False, set())
    drive(opened()[0])
    assert decided()[0]
    assert decided(*options) == (True, passed_over)


def begin_in(run: SearchRun, candidate: Candidate, session: str) -> None:
    """What a process of a session leaves that ends while it measures a candidate, or is at it."""
    place = candidate, run.bench.environment(candidate.cell).id, run.bench.sampling(candidate.cell, "search")
    run.bench.store.begin(*place, "case", session=session)


def test_what_was_cut_off_in_this_session_is_left_to_the_next(folder: SmallSearch) -> None:
    run, candidate = opened()
    begin_in(run, candidate, run.session.name)
    assert candidate.key not in raced(run)


@pytest.mark.parametrize(("lives_s", "tried"), [(300.0, True), (-1.0, False)])
def test_what_other_sessions_are_at_has_ended_nobody(folder: SmallSearch, lives_s: float, tried: bool) -> None:
    """As short runs, which sessions make beside each other; of two that died in one it is said that it ends them."""
    run, candidate = opened()
    for name in ("another", "a third"):
        run.bench.store.show_session(RunningSession(name, "a host", "/a/folder", 1, 1e9), lives_s)
        begin_in(run, candidate, name)
    assert (candidate.key in raced(run)) == tried


def test_what_failed_in_another_session_meanwhile_is_not_tried_again(folder: SmallSearch) -> None:
    """A later session tries it; so does one that has tried it itself, as pytest's plugins for reruns do."""
    run = open_run(*THRIFTY, methods=[Echo(((2, ERROR), (10, 0)))])
    other = open_run(*THRIFTY, methods=[Echo(((2, ERROR), (10, 0)))])
    fails = run.candidates[0]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="an accident"):
            other.measure(fails)
    with pytest.raises(FailedElsewhere, match=r"an accident .*\(found by another session, 20"):
        run.measure(fails)
    later = open_run(*THRIFTY, methods=[Echo(((2, ERROR), (10, 0)))])
    with pytest.raises(RuntimeError, match="an accident") as caught:
        later.measure(fails)
    assert not isinstance(caught.value, FailedElsewhere)
    for one in (run, other, later):
        one.close()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("stop"), FileNotFoundError("unet.safetensors"), OSError(errno.ENOSPC, "full")]
)
def test_what_is_none_of_a_candidates_doing_is_no_failure_of_it(
    folder: SmallSearch, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*_: object) -> None:
        raise error

    run, candidate = opened()
    with monkeypatch.context() as patch:
        patch.setattr("pytest_diffaccel.search.evaluate.attempt.measure", fails)
        with pytest.raises((Unavailable, KeyboardInterrupt), match=re.escape(str(error))):
            raced(run)
    assert folder.failures() == []
    run, candidate = opened()
    assert candidate.key in raced(run)


class Lost(Echo):
    """Misses something of its own from an interval of 10 on, where it is applied or in a denoiser call."""

    def __init__(self, error: Exception, *, is_late: bool) -> None:
        super().__init__(POINTS)
        self._error, self._is_late = error, is_late

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        def fails(*_args: Any, **_options: Any) -> Any:
            raise self._error

        call = super().apply(pipeline, call, params)
        if self.interval(params[self.name]) >= 10:
            if not self._is_late:
                fails()
            pipeline.unet.forward = fails
        return call


@pytest.mark.parametrize(
    ("error", "is_late"), [(FileNotFoundError("no table.json"), False), (Timeout("table.lock"), True)]
)
def test_what_a_method_misses_is_its_candidates_failure_and_the_rest_go_on(
    folder: SmallSearch, error: Exception, is_late: bool
) -> None:
    run = open_run(*THRIFTY, methods=[Lost(error, is_late=is_late)])
    found = run.find_winners(*run.groups[0])
    assert folder.failures() == [(run.candidates[1].key, "missing", str(error))]
    assert found.of_cell is not None
    assert found.of_cell.decided[0].entry.params["Echo"]["echo_interval"] == 2
    # What was away for a while may be there again in another session.
    cell, sampling = run.candidates[1].cell, run.bench.sampling(run.candidates[1].cell, "search")
    assert [failure.candidate for failure in run.bench.failures(cell, sampling)] == [run.candidates[1]]
    run.close()
    later = open_run(*THRIFTY, methods=[Echo(POINTS)])
    assert later.bench.failures(cell, sampling) == []
    later.close()


def test_what_another_worker_of_the_session_measures_has_ended_nobody(folder: SmallSearch) -> None:
    """Both time the same runs in a calibration."""
    run, candidate = opened()
    sampling = run.bench.sampling(candidate.cell, "search")
    for _ in range(2):
        place = candidate, run.bench.environment(candidate.cell).id, sampling
        run.bench.store.begin(*place, "case", session=run.session.name)
    run.close()
    assert [kind for _, kind, _ in folder.failures()] == ["interrupted"]


def test_a_store_that_takes_nothing_for_now_is_no_failure_of_a_candidate(
    folder: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise StoreError("database is locked")

    run, candidate = opened()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", locked)
        with pytest.raises(StoreError):
            raced(run)
    run, candidate = opened()
    assert candidate.key in raced(run)


def test_one_that_fails_with_more_samples_is_out_and_the_rest_go_on(
    folder: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, candidate = opened()
    cell, accelerator = run.groups[0]
    raced(run)

    def fails(*_: object) -> None:
        raise RuntimeError("an accident")

    run, candidate = opened()
    monkeypatch.setattr("pytest_diffaccel.search.group.extend", fails)
    GroupSearch(run.bench, cell, accelerator).extend(candidate, 2)
    assert folder.failures() == [(candidate.key, "error", "an accident")]
    found = run.find_winners(cell, accelerator)
    assert found.of_cell is not None
    assert found.of_cell.decided
    assert candidate not in run.bench.known(cell).losses(cell)
    run.close()


def test_sigterm_acts_like_ctrl_c(small_search: SmallSearch) -> None:
    small_search.add_to_conftest(
        """
import os, signal

def pytest_runtest_setup(item):
    os.kill(os.getpid(), signal.SIGTERM)
"""
    )
    result = small_search.run_apart()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
