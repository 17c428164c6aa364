"""The time of a case: what counts, and what does not."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pytest_diffaccel.measure.time_limit import CaseTimeout, time_limit, waiting
from pytest_diffaccel.measure.timing_lock import TimingLock

LIMIT_S = 0.2


def compute(seconds: float) -> None:
    """Take time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def wait_and_compute() -> None:
    """Take time after a wait."""
    with waiting():
        time.sleep(1.5 * LIMIT_S)
    compute(10)


def test_a_case_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(CaseTimeout, match=r"longer than --case-timeout 0\.2 s"), time_limit(LIMIT_S):
        compute(10)


def test_what_is_cut_off_may_call_it_an_error_of_its_own() -> None:
    """As torch's compiler does."""

    def compiling() -> None:
        try:
            compute(10)
        except Exception as error:
            raise RuntimeError("the compiler failed") from error

    with pytest.raises(CaseTimeout, match=r"longer than --case-timeout 0\.2 s"), time_limit(LIMIT_S):
        compiling()
    with pytest.raises(RuntimeError, match="its own"), time_limit(10 * LIMIT_S):
        raise RuntimeError("its own")


def test_waiting_does_not_count_and_the_rest_does() -> None:
    with time_limit(LIMIT_S), waiting():
        time.sleep(1.5 * LIMIT_S)
    with pytest.raises(CaseTimeout), time_limit(LIMIT_S):
        wait_and_compute()


def test_somebody_elses_timer_runs_on_while_waiting() -> None:
    fired: list[float] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: fired.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S / 2)
    try:
        with waiting():
            compute(LIMIT_S)
            assert fired
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def hold(path: Path, held: Event, release: Event) -> None:
    """Hold the lock until it is asked back."""
    with TimingLock(path, shareable=True).timing():
        held.set()
        release.wait(600)


def test_waiting_for_another_processs_timing_does_not_count(tmp_path: Path) -> None:
    lock, limit_s = TimingLock(tmp_path / "timing.lock", shareable=True), 1.0
    spawned = multiprocessing.get_context("spawn")
    held, release = spawned.Event(), spawned.Event()
    other = spawned.Process(target=hold, args=(lock.path, held, release))
    other.start()
    assert held.wait(600)
    asked = threading.Timer(2 * limit_s, release.set)
    began = time.monotonic()
    asked.start()
    with time_limit(limit_s), lock.generating():
        waited_s = time.monotonic() - began
    other.join()
    assert waited_s > limit_s
