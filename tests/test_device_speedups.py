"""Speed-ups by a GPU's own time beside the wall clock's, in a search on a GPU that is made up."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo import NOTHING, Echo, Reply
from searches import BOTH, THRIFTY, SearchFolder, drive, open_run, without_scale
from timings import SteadyClock

from pytest_diffaccel.accelerators import stack
from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.accelerators.stack import StackName
from pytest_diffaccel.matrix import Candidate, format_params
from pytest_diffaccel.measure.busy_clock import KernelTimes, MarkersLost
from pytest_diffaccel.measure.measurement import Interval, RunTiming, SpeedClock
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search import over_eager
from pytest_diffaccel.search.calibrate import calibration, timer
from pytest_diffaccel.search.calibrate.calibration import calibrate
from pytest_diffaccel.search.calibrate.timer import Timer
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.search_run import SearchRun

POINTS = ((2, NOTHING), (10, NOTHING))
# The host takes half of a plain step to launch an echo, and the GPU works on one for a tenth of that.
PLAIN_S, ECHO_WALL_S, ECHO_DEVICE_S = 0.02, 0.01, 0.002


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_pipeline: None) -> None:
    """A GPU that waits for its host, made of numbers."""
    monkeypatch.chdir(tmp_path)
    SearchFolder(tmp_path)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch).step_s["Echo:echo"] = ECHO_WALL_S
    generator = np.random.default_rng(0)

    def busy(generate: Generate, _prompts: Sequence[str], _seeds: Sequence[int], _kernels: Any) -> Any:
        noise = np.exp(generator.normal(0, 0.003, len(generate.kinds))).tolist()
        costs = [ECHO_DEVICE_S if kind == "Echo:echo" else PLAIN_S for kind in generate.kinds]
        steps = tuple(cost * factor for cost, factor in zip(costs, noise, strict=True))
        return [], RunTiming(sum(steps) + PLAIN_S, steps, generate.kinds)

    by_device(monkeypatch, busy)
    monkeypatch.setattr(calibration, "why_no_device_time", lambda: "")


def by_device(monkeypatch: pytest.MonkeyPatch, busy: Callable[..., Any]) -> None:
    """Let short runs take what ``busy`` says, whether or not they draw their pictures."""

    def busy_steps(generate: Generate, prompts: Sequence[str], seeds: Sequence[int], _steps: int, kernels: Any) -> Any:
        timing = busy(generate, prompts, seeds, kernels)[1]
        return replace(timing, total_s=sum(timing.step_s), whole=False)

    monkeypatch.setattr(timer, "busy", busy)
    monkeypatch.setattr(timer, "busy_steps", busy_steps)


def run_on_gpu(
    decide_by: SpeedClock, points: Sequence[tuple[int, int]] = POINTS, stack: StackName = "eager"
) -> SearchRun:
    run = open_run(*THRIFTY, "--stack", stack, methods=[Echo(points)])
    run.bench.settings = replace(run.bench.settings, gpus=(), decide_by=decide_by)
    return run


def true_speedup(candidate: Candidate, echo_s: float) -> float:
    full = 20 // candidate.params["Echo"]["echo_interval"]
    return 21 * PLAIN_S / ((1 + full) * PLAIN_S + (20 - full) * echo_s)


def test_what_a_stack_gains_is_timed_by_both_clocks(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the host takes: eager runs and those on the stack take turns."""
    order: list[bool] = []

    def busy(generate: Generate, *_: Any) -> Any:
        (block,) = generate.pipeline.unet.mid_block.attentions[0].transformer_blocks
        order.append(is_eager := block._compiled_call_impl is None)
        return [], RunTiming((1.25 if is_eager else 1.0) * PLAIN_S, (), ())

    monkeypatch.setattr(stack, "BACKEND", "eager")
    monkeypatch.setattr(over_eager, "busy", busy)
    monkeypatch.setattr(over_eager, "why_no_device_time", lambda: "")
    run = run_on_gpu("wall", stack="compiled")
    found = over_eager.measure_over_eager(run.bench, run.groups[0].cell)
    run.close()
    assert found.device is not None
    assert found.device.value == pytest.approx(1.25)
    assert found.device.half_width_ratio < 0.01
    assert found.wall.low <= 1 <= found.wall.high  # by a clock that is the same for both
    assert order.count(True) == order.count(False) >= 5


@pytest.mark.parametrize("decide_by", ["wall", "device"])
def test_both_clocks_are_calibrated_and_one_of_them_decides(gpu: None, decide_by: SpeedClock) -> None:
    run = run_on_gpu(decide_by)
    cell, candidates = run.groups[0][0], run.candidates
    made = calibrate(run.bench, cell)
    known = run.bench.known(cell)
    run.close()
    assert known.rounds("wall")
    assert known.rounds("device")
    by_wall, by_device = (known.costs_by(clock).speedups(candidates) for clock in ("wall", "device"))
    for candidate, wall, device in zip(candidates, by_wall, by_device, strict=True):
        assert wall.value == pytest.approx(true_speedup(candidate, ECHO_WALL_S), rel=0.04)
        assert device.value == pytest.approx(true_speedup(candidate, ECHO_DEVICE_S), rel=0.015)
        assert device.low <= true_speedup(candidate, ECHO_DEVICE_S) <= device.high
        assert device.half_width_ratio <= 0.015
    decides = by_wall if decide_by == "wall" else by_device
    assert known.costs.speedups(candidates) == decides
    assert made is not None
    assert made.half_width_ratio == max(speedup.half_width_ratio for speedup in decides)


def test_the_clock_that_decides_gets_a_calibrations_share_of_the_time(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the wall clock's rounds were made long ago, or soon told enough."""

    class Watch:
        now = 0.0
        time = staticmethod(time.time)

        def monotonic(self) -> float:
            return self.now

    watch = Watch()

    def slow(generate: Generate, *_: object) -> Any:
        watch.now += 1.0
        return [], RunTiming(PLAIN_S * 30, (PLAIN_S,) * len(generate.kinds), generate.kinds)

    monkeypatch.setattr(calibration, "time", watch)
    by_device(monkeypatch, slow)
    monkeypatch.setattr(calibration, "_KNOWN_BY_DEVICE", 0.0)  # never known well enough
    monkeypatch.setattr(calibration, "_SHARE", 50.0)  # a minute, where a round takes six seconds
    run = run_on_gpu("device")
    calibrate(run.bench, run.groups[0].cell)
    rounds = run.bench.known(run.groups[0].cell).rounds("device")
    run.close()
    assert 4 < len(rounds) < 60


@pytest.mark.parametrize("decide_by", ["wall", "device"])
def test_golden_holds_the_speedups_of_both_clocks(gpu: None, decide_by: SpeedClock) -> None:
    """Every 2nd call computed is 1.31 times as fast by the wall clock, and 1.75 times by the GPU's own time."""
    run = run_on_gpu(decide_by)
    (found,) = drive(run)
    assert found.of_cell is not None
    entries = {decided.key.target: decided.entry for decided in found.of_cell.decided}
    met = {target for target, entry in entries.items() if entry.status == "met"}
    assert met == ({1.2, 1.5} if decide_by == "wall" else {1.2, 1.5, 1.8, 2.0, 2.5, 3.0, 4.0})
    for entry in entries.values():
        candidate = Candidate(run.groups[0].cell, "Echo", entry.params)
        assert entry.decided_by == decide_by
        assert entry.speedup == pytest.approx(true_speedup(candidate, ECHO_WALL_S), rel=0.04)
        assert entry.device_speedup == pytest.approx(true_speedup(candidate, ECHO_DEVICE_S), rel=0.015)
        assert GoldenEntry.from_json(entry.to_json()) == entry


def test_speedups_that_are_called_the_wall_clocks_are(gpu: None) -> None:
    """Also of candidates that were not timed themselves, in a search that the GPU's own time decides."""
    run = run_on_gpu("device", POINTS[:1])
    (candidate,) = run.candidates
    (found,) = drive(run)
    with Store.open(run.settings.store) as store:
        stored = [one.measurement for one in store.contents().measurements if one.measurement.candidate == candidate]
    assert {one.sampling.purpose for one in stored} == {"search", "winner"}
    for one in stored:
        assert one.wall_speedup.value == pytest.approx(true_speedup(candidate, ECHO_WALL_S), rel=0.04)
    assert found.of_cell is not None
    missed = [one.entry for one in found.of_cell.decided if one.entry.status == "unattainable"]
    assert missed
    for entry in missed:
        assert entry.wall_speedup == pytest.approx(true_speedup(candidate, ECHO_WALL_S), rel=0.04)
        assert entry.device_speedup == pytest.approx(true_speedup(candidate, ECHO_DEVICE_S), rel=0.015)


def test_what_one_clock_decided_the_other_decides_anew(gpu: None) -> None:
    (by_wall,) = drive(run_on_gpu("wall"))
    (by_device,) = drive(run_on_gpu("device"))
    assert by_wall.of_cell is not None
    assert by_device.of_cell is not None
    winners = [
        {decided.key: decided.entry.params for decided in found.decided}
        for found in (by_wall.of_cell, by_device.of_cell)
    ]
    assert winners[0] != winners[1]


def test_rounds_of_either_clock_are_stored_and_known_again(gpu: None) -> None:
    run = run_on_gpu("device")
    cell = run.groups[0][0]
    calibrate(run.bench, cell)
    known = run.bench.known(cell)
    run.close()
    again = run_on_gpu("device")
    found = again.bench.known(cell)
    assert [found.rounds(clock) for clock in ("wall", "device")] == [
        known.rounds(clock) for clock in ("wall", "device")
    ]
    assert found.costs.speedups(again.candidates) == known.costs.speedups(again.candidates)
    again.close()


@pytest.mark.parametrize(("slices", "is_shared"), [("none", False), ("one", False), ("in each run", True)])
def test_a_short_run_is_profiled_once_unless_others_use_the_gpu(
    gpu: None, monkeypatch: pytest.MonkeyPatch, slices: str, is_shared: bool
) -> None:
    """A process that takes slices of the GPU cuts kernels off, elsewhere in each run: what they take does not count.

    A kernel that lasts some milliseconds longer once says of no other process.
    """
    made: Counter[str] = Counter()

    def busy(generate: Generate, _prompts: Sequence[str], _seeds: Sequence[int], kernels: KernelTimes) -> Any:
        what = format_params(generate.params)
        made[what] += 1
        steps = []
        for place, kind in enumerate(generate.kinds):
            kernel_s = (ECHO_DEVICE_S if kind == "Echo:echo" else PLAIN_S) / 4
            times_ns = [round(kernel_s * 1e9)] * 4
            once = slices == "one" and not what and made[what] == 2
            if (is_shared or once) and place == made[what] % len(generate.kinds):
                times_ns[made[what] % 4] += 2_000_000 if once else 20_000_000
            steps.append(kernels.undisturbed_ns(place, times_ns) / 1e9)
        return [], RunTiming(sum(steps) + PLAIN_S, tuple(steps), generate.kinds)

    by_device(monkeypatch, busy)
    run = run_on_gpu("device")
    calibrate(run.bench, run.groups[0].cell)
    known = run.bench.known(run.groups[0].cell)
    rounds, speedups = known.rounds("device"), known.costs.speedups(run.candidates)
    run.close()
    runs = Counter(format_params(one.params) for timed in rounds for one in timed.candidates)
    assert runs
    assert made[""] == len(rounds) + 1
    assert {what: made[what] for what in runs} == {what: count + is_shared for what, count in runs.items()}
    for candidate, speedup in zip(run.candidates, speedups, strict=True):
        assert speedup.value == pytest.approx(true_speedup(candidate, ECHO_DEVICE_S), rel=0.001)


def test_rounds_that_tell_no_more_are_the_last(gpu: None) -> None:
    """Nothing is ever known well enough here, and there is time for ever."""
    run = run_on_gpu("wall")
    made = Timer(run.bench, run.groups[0].cell).narrow(run.candidates, lambda _: False, lambda: False)
    known = run.bench.known(run.groups[0].cell)
    widths = [speedup.half_width_ratio for speedup in known.costs.speedups(run.candidates)]
    run.close()
    assert 8 < made < 100
    assert max(widths) < 0.02


def test_rounds_go_on_while_they_narrow_what_is_wanted_however_much_is_known(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred candidates one is not known yet; rounds narrow its interval as more of them do."""
    run = run_on_gpu("wall")
    cell, made = run.groups[0].cell, []
    monkeypatch.setattr(Timer, "_make_round", lambda *_: made.append(1) or True)

    def speedups(_: CostModel, candidates: Sequence[Candidate]) -> list[Interval]:
        widths = [0.2 / math.sqrt(1 + len(made)), *[0.02] * (len(candidates) - 1)]
        return [Interval(2.0, 2.0 * (1 - width), 2.0 * (1 + width)) for width in widths]

    monkeypatch.setattr(CostModel, "speedups", speedups)
    wanted = [run.candidates[0], *[run.candidates[1]] * 99]
    rounds = Timer(run.bench, cell).narrow(wanted, lambda speedup: speedup.half_width_ratio <= 0.03, lambda: False)
    run.close()
    assert rounds == len(made) == 44  # 0.2 / sqrt(45) is below 0.03


def test_what_no_profiler_timed_has_no_device_time(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another accelerator's kinds of steps, timed when it was not refused, say nothing of it."""
    drive(run_on_gpu("wall"))
    monkeypatch.setattr(calibration, "why_no_device_time", lambda: "device time cannot be read here")
    run = open_run(*THRIFTY, *BOTH, methods=[Echo(POINTS), Reply(POINTS)])
    run.bench.settings = replace(run.bench.settings, gpus=())
    *_, last = drive(run)
    assert last.of_cell is not None
    known = {one.key.accelerator: one.entry.device_speedup is not None for one in last.of_cell.decided}
    assert known == {"Echo": True, "Reply": False}


def test_a_profiler_that_fails_half_way_leaves_the_wall_clock_alone(
    gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The probe works, and then no run shows both ends of every step."""

    def busy(*_: object) -> Any:
        raise MarkersLost("the profiler saw 0 markers for 8 steps")

    monkeypatch.setattr(timer, "busy", busy)
    run = run_on_gpu("wall")
    cell = run.groups[0].cell
    assert calibrate(run.bench, cell) is not None
    assert "the profiler saw 0 markers" in caplog.text
    assert run.bench.known(cell).rounds("device") == []
    before = len(run.bench.known(cell).rounds())
    # As verifying winners does.
    assert Timer(run.bench, cell).narrow(run.candidates, lambda _: False, enough(run, before + 2)) == 2
    run.bench.settings = replace(run.bench.settings, decide_by="device")
    with pytest.raises(Unavailable, match="no short run could be timed by the GPU's own time"):
        calibrate(run.bench, cell)
    run.close()


def test_a_profiler_that_ends_its_process_leaves_the_wall_clock_alone(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did so to two sessions: the third one times the same short run by the wall clock."""

    class Death(BaseException):
        pass

    ended: list[str] = []

    def busy(generate: Generate, *_: object) -> Any:
        if generate.params:
            ended.append(format_params(generate.params))
            raise Death
        return [], RunTiming(PLAIN_S * 30, (PLAIN_S,) * len(generate.kinds), generate.kinds)

    monkeypatch.setattr(timer, "busy", busy)
    for _ in range(2):
        run = run_on_gpu("wall", POINTS[:1])
        with pytest.raises(Death):
            calibrate(run.bench, run.groups[0].cell)
        run.close()
    assert len(ended) == 2
    run = run_on_gpu("wall", POINTS[:1])
    cell = run.groups[0].cell
    assert calibrate(run.bench, cell) is not None
    assert len(ended) == 2
    before = len(run.bench.known(cell).rounds())
    assert Timer(run.bench, cell).narrow(run.candidates, lambda _: False, enough(run, before + 1)) == 1
    assert run.bench.store.contents().failures == ()
    run.close()


def enough(run: SearchRun, rounds: int) -> Callable[[], bool]:
    """Whether so many rounds are known by the wall clock."""
    return lambda: len(run.bench.known(run.groups[0].cell).rounds()) >= rounds


def test_a_gpu_that_does_not_tell_its_time_is_searched_by_the_wall_clock(
    gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(calibration, "why_no_device_time", lambda: "device time cannot be read here")
    run = run_on_gpu("wall")
    assert calibrate(run.bench, run.groups[0][0]) is not None
    assert run.bench.known(run.groups[0][0]).rounds("device") == []
    assert "device time cannot be read here; speed-ups are recorded by the wall clock only" in caplog.text
    run.bench.settings = replace(run.bench.settings, decide_by="device")
    with pytest.raises(Unavailable, match="device time cannot be read here"):
        calibrate(run.bench, run.groups[0][0])
    run.close()
