"""The time of a case: what counts, and what does not."""

from __future__ import annotations

import multiprocessing
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


def test_waiting_does_not_count_and_the_rest_does() -> None:
    with time_limit(LIMIT_S), waiting():
        time.sleep(1.5 * LIMIT_S)
    with pytest.raises(CaseTimeout), time_limit(LIMIT_S):
        wait_and_compute()


def test_waiting_without_a_limit_starts_none() -> None:
    with waiting():
        pass
    compute(1.5 * LIMIT_S)


def hold(path: Path, held: Event) -> None:
    """Hold the lock for longer than the limit."""
    with TimingLock(path, shareable=True).timing():
        held.set()
        time.sleep(2 * LIMIT_S)


def test_waiting_for_another_processs_timing_does_not_count(tmp_path: Path) -> None:
    lock = TimingLock(tmp_path / "timing.lock", shareable=True)
    spawned = multiprocessing.get_context("spawn")
    held = spawned.Event()
    other = spawned.Process(target=hold, args=(lock.path, held))
    other.start()
    assert held.wait(60)
    began = time.monotonic()
    with time_limit(LIMIT_S), lock.generating():
        waited_s = time.monotonic() - began
    other.join()
    assert waited_s > LIMIT_S
