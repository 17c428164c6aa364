"""Device time from what occupied the GPU, on activities made up for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.measure.busy_clock import Activity, activity_of, busy_timing

MS = 1_000_000


def mark(at_ms: int) -> Activity:
    return Activity(at_ms * MS, at_ms * MS, marks=True)


def work(start_ms: int, end_ms: int) -> Activity:
    return Activity(start_ms * MS, end_ms * MS)


def test_a_step_is_what_ran_since_the_one_before_it() -> None:
    activities = [
        work(0, 5),
        mark(6),
        work(7, 9),
        work(20, 21),
        mark(22),
        work(23, 30),
        mark(31),
        work(31, 35),
        mark(36),
    ]
    timing = busy_timing(activities, ["full", "shallow"])
    assert timing.step_s == pytest.approx((0.003, 0.011))
    assert timing.total_s == pytest.approx(0.019)
    assert (timing.kinds, timing.fixed_s) == (("full", "shallow"), pytest.approx(0.005))


def test_a_long_spin_is_work_and_no_marker() -> None:
    """Somebody's own busy wait is made of the same kernel."""

    class Event:
        def __init__(self, start_ns: int, duration_ns: int) -> None:
            self._times = start_ns, duration_ns

        def start_ns(self) -> int:
            return self._times[0]

        def duration_ns(self) -> int:
            return self._times[1]

        def name(self) -> str:
            return "at::cuda::spin_kernel(long)"

    assert activity_of(Event(0, 2_000)).marks
    assert not activity_of(Event(0, 3 * MS)).marks


def test_work_that_overlaps_counts_once() -> None:
    assert busy_timing([mark(0), work(1, 5), work(2, 3), work(4, 7), mark(8)], ["full"]).step_s == (0.006,)


def test_time_slices_of_other_processes_do_not_count() -> None:
    """The second step's second kernel is cut off for 2 ms; a step that does more than others of its kind is not."""
    activities, now = [], 0
    for durations in ([5, 1, 3], [5, 3, 3], [5, 1, 3, 2]):
        activities.append(mark(now))
        for duration in durations:
            activities.append(work(now, now + duration))
            now += duration
        activities.append(mark(now))
    timing = busy_timing(activities, ["full"] * 3)
    assert timing.step_s == pytest.approx((0.009, 0.009, 0.011))
    assert timing.fixed_s == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("marks", [0, 1, 3])
def test_missing_and_surplus_markers_are_refused(marks: int) -> None:
    with pytest.raises(ValueError, match=f"saw {marks} markers for 1 steps"):
        busy_timing([mark(place) for place in range(marks)], ["full"])


@given(st.lists(st.lists(st.integers(1, 50), max_size=4), min_size=1, max_size=5), st.integers(0, 100))
def test_gaps_between_kernels_do_not_count(steps: list[list[int]], gap_ms: int) -> None:
    activities, now = [], 0
    for durations in steps:
        activities.append(mark(now))
        for duration in durations:
            activities.append(work(now + gap_ms, now + gap_ms + duration))
            now += gap_ms + duration
        activities.append(mark(now))
    timing = busy_timing(activities, [f"step {place}" for place in range(len(steps))])
    assert timing.step_s == pytest.approx([sum(durations) / 1000 for durations in steps])
    assert timing.fixed_s == pytest.approx(0, abs=1e-9)
