"""What counts as a disturbance, and what a block that was disturbed becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timings import BASELINE, CANDIDATE, run

from pytest_diffaccel.gate.conditions import conditions, launch_bound
from pytest_diffaccel.gate.figures import Figure
from pytest_diffaccel.gate.sequential import OK
from pytest_diffaccel.gate.speed import Timed
from pytest_diffaccel.measure.blocks import run_blocks
from pytest_diffaccel.measure.disturbance import HostWatch, LoadReading, Watches
from pytest_diffaccel.measure.gpu_watch import ProcessLoad, foreign_load
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.watch import ClockRecord


class Script:
    """A watch that sees what it was told to see, block after block."""

    def __init__(self, *seen: str) -> None:
        self._seen: Iterator[str] = iter(seen)
        self.begun = 0

    def begin(self) -> Callable[[], str]:
        self.begun += 1
        return lambda: next(self._seen, "")


def blocks(watch: Script, count: int) -> tuple[list[Block], int]:
    """The blocks of one candidate, and how often it was run."""
    runs: list[int] = []

    def candidate(index: int) -> RunTiming:
        runs.append(index)
        return run(CANDIDATE)

    made = [rows[0] for rows in run_blocks(lambda _: run(BASELINE), [candidate], count, seed="0", watch=watch)]
    return made, len(runs)


def test_a_disturbed_block_is_measured_again() -> None:
    made, runs = blocks(Script("noise", "", "noise", "noise", ""), 2)
    assert [block.disturbance for block in made] == ["", ""]
    assert runs == 5


def test_a_disturbance_that_stays_is_marked_and_no_longer_waited_for() -> None:
    made, runs = blocks(Script(*["noise"] * 9), 3)
    assert [block.disturbance for block in made] == ["noise"] * 3
    assert runs == 5


def test_other_processes_disturb_only_beyond_the_cores_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    before = LoadReading(0.0, 0.0, 0.0)
    assert before.disturbance_until(LoadReading(10.0, 30.0, 10.0), threads=2) == ""
    assert before.disturbance_until(LoadReading(10.0, 30.0, 10.0), threads=3) == "other processes used 2.0 cores"
    assert before.disturbance_until(before, threads=4) == ""


def test_a_clock_that_falls_is_told_from_one_that_varies() -> None:
    clock = ClockRecord("GPU")
    assert [clock.slowed(mhz) for mhz in (1900.0, 1980.0, 1750.0)] == ["", "", ""]
    assert clock.slowed(1500.0) == "the GPU clock fell from 1980 to 1500 MHz"
    assert clock.slowed(0.0) == ""  # not known


def test_the_host_is_watched_for_real() -> None:
    end = HostWatch(threads=1).begin()
    assert isinstance(end(), str)


def test_several_watches_are_one() -> None:
    both = Watches((Script("load", "", "load"), Script("heat", "heat", "")))
    assert [both.begin()() for _ in range(3)] == ["load; heat", "heat", "load"]


def test_own_work_on_the_gpu_is_no_disturbance() -> None:
    assert foreign_load([], 10) == ""
    assert foreign_load([ProcessLoad(10, 90), ProcessLoad(10, 99)], 10) == ""
    assert foreign_load([ProcessLoad(10, 90), ProcessLoad(11, 3)], 10) == ""
    seen = [ProcessLoad(10, 50), ProcessLoad(11, 20), ProcessLoad(12, 30), ProcessLoad(11, 10)]
    assert foreign_load(seen, 10) == "other processes used 50% of the GPU"


@given(st.lists(st.builds(ProcessLoad, st.integers(100, 104), st.integers(0, 100)), max_size=8))
def test_in_a_container_the_busiest_process_is_ours(loads: list[ProcessLoad]) -> None:
    ours = max(loads, key=lambda load: load.percent).pid if loads else 0
    assert foreign_load(loads, own_pid=1) in {foreign_load(loads, pid) for pid in {load.pid for load in loads} or {1}}
    if len({load.pid for load in loads}) <= 1:
        assert foreign_load(loads, own_pid=1) == foreign_load(loads, ours) == ""


def test_the_gate_names_the_commonest_disturbance() -> None:
    made, _ = blocks(Script(*["other processes used 1.0 cores"] * 5), 3)
    notes = conditions(Timed((Figure.from_blocks(made),), tuple(made), OK))
    assert notes == ["disturbed: 3 of 3 blocks (other processes used 1.0 cores)"]


def test_a_gpu_that_waits_is_launch_bound() -> None:
    assert launch_bound(0.95) == ""
    assert launch_bound(0.31).startswith("launch-bound: the GPU was busy for 31% of a run")
