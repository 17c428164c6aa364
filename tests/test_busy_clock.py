"""Device time from what occupied the GPU, on activities made up for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from timings import kernels_of_h100

from pytest_diffaccel.measure.busy_clock import Activity, KernelTimes, activities_of, busy_timing

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


@dataclass(frozen=True)
class Event:
    """What the profiler says of something that occupied the GPU."""

    called: str
    started_ms: int
    lasted_ms: float

    def name(self) -> str:
        return self.called

    def start_ns(self) -> int:
        return self.started_ms * MS

    def duration_ns(self) -> int:
        return int(self.lasted_ms * MS)


def test_a_long_spin_is_work_and_no_marker() -> None:
    """Somebody's own busy wait is made of the same kernel."""
    short, long = (Event("at::cuda::spin_kernel(long)", 0, lasted_ms) for lasted_ms in (0.002, 3))
    assert [activity.marks for activity in activities_of([short, long])] == [True, False]


@pytest.mark.parametrize("copied_ms", [0.7, 8])
def test_a_copy_that_the_host_makes_is_no_work_of_the_gpu(copied_ms: float) -> None:
    """An H200 handed the same images over in 0.7 ms and in 8 ms; to pinned memory it copies by itself."""
    mark, last = (Event("at::cuda::spin_kernel(long)", at_ms, 0.002) for at_ms in (0, 9))
    events = [
        mark,
        Event("gemm", 1, 5),
        Event("Memcpy HtoD (Pageable -> Device)", 7, copied_ms),
        last,
        Event("Memcpy DtoH (Device -> Pinned)", 20, 2),
        Event("Memcpy DtoH (Device -> Pageable)", 30, copied_ms),
    ]
    timing = busy_timing(activities_of(events), ["full"])
    assert (timing.total_s, timing.step_s) == (pytest.approx(0.007), pytest.approx((0.005,)))


def test_work_that_overlaps_counts_once() -> None:
    assert busy_timing([mark(0), work(1, 5), work(2, 3), work(4, 7), mark(8)], ["full"]).step_s == (0.006,)


def run_of(steps: list[list[int]]) -> list[Activity]:
    """Kernels of such durations (ms), one after the other, with a last one of 4 ms behind the steps."""
    activities, now = [], 0
    for durations in steps:
        activities.append(mark(now))
        for duration in durations:
            activities.append(work(now, now + duration))
            now += duration
        activities.append(mark(now))
    return [*activities, work(now, now + 4)]


def test_time_slices_of_other_processes_do_not_count() -> None:
    """Kernels are cut off for 2 ms, others in each run; what takes longer in every run is no slice."""
    kernels, kinds = KernelTimes(), ["full", "shallow"]
    busy_timing(run_of([[5, 1, 3], [2, 7]]), kinds, kernels)
    for steps in ([[5, 3, 3], [2, 7]], [[7, 1, 5], [4, 7]]):
        timing = busy_timing(run_of(steps), kinds, kernels)
        assert timing.step_s == pytest.approx((0.009, 0.009))
        assert timing.fixed_s == pytest.approx(0.004)
    assert kernels.cut_share == pytest.approx((2 + 6) / (3 * 22))


def test_a_run_with_other_kernels_is_no_run_that_was_cut_off() -> None:
    kernels = KernelTimes()
    busy_timing(run_of([[5, 1, 3]]), ["full"], kernels)
    assert busy_timing(run_of([[5, 1, 3, 2]]), ["full"], kernels).step_s == pytest.approx((0.011,))
    assert kernels.cut_share == 0


def test_kernels_that_are_a_little_slower_are_no_slices() -> None:
    """As clocks fall: by a tenth, or by less than a slice lasts."""
    kernels = KernelTimes()
    busy_timing(run_of([[100, 1]]), ["full"], kernels)
    assert busy_timing(run_of([[110, 2]]), ["full"], kernels).step_s == pytest.approx((0.112,))


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(2, 6)), max_size=6),
)
def test_whatever_is_cut_off_once_an_earlier_run_shows(
    steps: list[list[int]], slices: list[tuple[int, int, int]]
) -> None:
    kernels, kinds = KernelTimes(), [f"step {place}" for place in range(len(steps))]
    plain = busy_timing(run_of(steps), kinds, kernels)
    cut = [list(step) for step in steps]
    for place, kernel, lasts_ms in slices:
        step = cut[place % len(cut)]
        step[kernel % len(step)] += lasts_ms
    assert busy_timing(run_of(cut), kinds, kernels) == plain


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


def _best(runs: NDArray[np.int64]) -> int:
    """The least of some runs, made after each other."""
    kernels = KernelTimes()
    for times in runs:
        kernels.undisturbed_ns(0, times.tolist())
    return min(kernels.undisturbed_ns(0, times.tolist()) for times in runs)


def test_beside_another_process_steps_take_what_they_take_alone() -> None:
    recorded = kernels_of_h100()
    for kind in ("full", "shallow"):
        alone, beside = (np.array(recorded[company][kind]) for company in ("alone", "beside"))
        kernels = KernelTimes()
        left = [kernels.undisturbed_ns(0, times.tolist()) for times in beside]
        truth = float(np.mean(alone.sum(axis=1)))
        assert float(np.mean(beside.sum(axis=1))) > 1.02 * truth
        assert float(np.mean(left[4:])) == pytest.approx(truth, rel=0.005)
        assert float(np.std(left[4:])) < 0.01 * truth
        of_two, of_four = (
            np.array([_best(beside[list(some)]) for some in combinations(range(among), count)]) / truth
            for count, among in ((2, 20), (4, 12))
        )
        assert of_two.max() > 1.15
        assert of_four == pytest.approx(1, abs=0.007)
        quiet = KernelTimes()
        assert [quiet.undisturbed_ns(0, times.tolist()) for times in alone] == alone.sum(axis=1).tolist()
