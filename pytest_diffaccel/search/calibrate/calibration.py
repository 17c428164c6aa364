"""Calibration: what each kind of step costs, timed in short interleaved runs before any candidate is generated.

Candidates are many, kinds of steps are few, and a kind costs the same in every cell of a pipe. So a few rounds, each of
an unaccelerated short run and some accelerated ones, tell the speed-ups of all candidates. The next round is always
made of the runs that tell most of the candidates whose speed-ups are known least.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from statistics import fmean, median

from filelock import Timeout

from pytest_diffaccel import matrix
from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.devices import CudaBroken, is_cuda_broken
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.blocks import order_seed
from pytest_diffaccel.measure.busy_clock import KernelTimes, busy, why_no_device_time
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.disturbance import watch_device, watch_machine
from pytest_diffaccel.measure.measurement import Interval, Round, RunTiming, SpeedClock
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.measure.time_limit import time_limit
from pytest_diffaccel.measure.timing_lock import lock_between_processes
from pytest_diffaccel.records.bookkeeping import CALIBRATION_PURPOSE
from pytest_diffaccel.search.budget import TimeIsUp
from pytest_diffaccel.search.calibrate.short_runs import ShortRuns
from pytest_diffaccel.search.knowledge import Knowledge
from pytest_diffaccel.search.models.cost_model import CostModel
from pytest_diffaccel.search.models.reach import VAGUE_SPEEDUP, is_open
from pytest_diffaccel.search.news import Calibration
from pytest_diffaccel.search.null_control import scaled_environment
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.settings.work_folder import WORK

_LOG = logging.getLogger(__name__)

# A speed-up is known when its 95% interval reaches no farther to either side, as a share of it.
_KNOWN_HALF_WIDTH = 0.035
# The same by the GPU's own time, which hardly varies.
_KNOWN_BY_DEVICE = 0.015
# Accelerated runs beside each unaccelerated one.
_RUNS = 4
# A calibration takes at most this share of what generating all candidates would, but makes so many rounds in any case.
_SHARE, _LEAST_ROUNDS = 0.05, 4
# A later session makes so many rounds first; what an earlier one knew is forgotten where they are so many standard
# errors off.
_CHECK_ROUNDS, _DISAGREE = 2, 3.5
_NORMAL_95 = 1.96


def ensure_calibrated(bench: Workbench, cell: Cell) -> None:
    """Calibrate the cell's pipe (:func:`calibrate`) unless this process has seen to it."""
    if cell.pipe not in bench.calibrations:
        bench.calibrations[cell.pipe] = calibrate(bench, cell)


def calibrate(bench: Workbench, cell: Cell) -> Calibration | None:
    """Time the kinds of steps of all of the search's candidates of a pipe, as far as that is not done.

    Processes that share its environment do it together. What an earlier session timed is looked at again by one of them
    in two rounds, and forgotten where these disagree.

    Args:
        bench: the search's workbench.
        cell: any of the pipe's.

    Returns:
        How it went; None where no short run works, or the model takes no candidate.

    Raises:
        Unavailable: when the GPU's own time is to decide, and cannot be read.
    """
    if bench.settings.decide_by == "device":
        _why_no_device_time(bench)  # at once, not after minutes of the wall clock
    folder, environment = WORK.calibration, bench.environment(cell).id
    timer = Timer(bench, cell)
    with lock_between_processes(folder / f"{environment}.lock").write_lock():
        bench.reread(cell)
        rounds = bench.known(cell).rounds()
        if rounds and rounds[-1].started_at < bench.began_at and not timer.still_holds():
            recent = [one for one in bench.known(cell).rounds() if one.started_at >= bench.began_at]
            bench.store.forget_rounds(environment)
            # What the GPU itself takes is no matter of the machine's state.
            for one in (*recent, *bench.known(cell).rounds("device")):
                bench.store.save_round(environment, one)
            bench.reread(cell)
    # One of them sees to this meanwhile: it is needed at the end of the first cell, when others may have nothing to do.
    with suppress(Timeout), lock_between_processes(folder / f"{environment}-scale.lock").write_lock(blocking=False):
        scaled_environment(bench, cell)
    began, candidates = time.monotonic(), candidates_of(bench, cell)
    made = timer.narrow(candidates, is_predicted, _share_is_spent(bench, cell, candidates))
    if not candidates or not bench.known(cell).rounds():
        return None
    most_s = time.monotonic() - began
    if bench.settings.decide_by == "device":
        most_s = max(most_s, _share_s(bench, cell, candidates))
    made += _by_device(bench, cell, candidates, most_s)
    speedups = bench.known(cell).costs.speedups(candidates)
    return Calibration(
        rounds=made,
        seconds=time.monotonic() - began,
        half_width_ratio=max(one.half_width_ratio for one in speedups),
        baseline_s=baseline_s(bench.known(cell), cell.steps),
        steps=cell.steps,
        accelerated_share=fmean(1 / one.value for one in speedups),
    )


def _by_device(bench: Workbench, cell: Cell, candidates: Sequence[Candidate], most_s: float) -> int:
    """Time the same by the GPU's own time, where there is a GPU that tells it; the number of rounds.

    Args:
        bench: the search's workbench.
        cell: any of the pipe's.
        candidates: all of the pipe's.
        most_s: seconds that it may take, after the least rounds.

    Raises:
        Unavailable: when it is to decide, and cannot be read.
    """
    if bench.settings.gpus is None:
        return 0
    lacking = _why_no_device_time(bench)
    if lacking:
        _LOG.warning("%s; speed-ups are recorded by the wall clock only", lacking)
        return 0
    began = time.monotonic()

    def time_is_up() -> bool:
        rounds = len(bench.known(cell).rounds("device"))
        return rounds >= _LEAST_ROUNDS and time.monotonic() - began >= most_s

    def is_known(speedup: Interval) -> bool:
        return speedup.half_width_ratio <= _KNOWN_BY_DEVICE

    made = Timer(bench, cell, "device").narrow(candidates, is_known, time_is_up)
    if bench.settings.decide_by == "device" and not bench.known(cell).rounds("device"):
        raise Unavailable("no short run could be timed by the GPU's own time, which is to decide: the log says why")
    return made


def _why_no_device_time(bench: Workbench) -> str:
    """Why the GPU's own time cannot be read, in words; empty where it can.

    Raises:
        Unavailable: with that, when it is to decide.
    """
    with bench.pipelines.timing():
        lacking = why_no_device_time()
    if lacking and bench.settings.decide_by == "device":
        raise Unavailable(lacking)
    return lacking


def is_predicted(speedup: Interval) -> bool:
    """Whether a speed-up is known as well as the search needs it: better where it may or may not reach a target."""
    if speedup.half_width_ratio <= _KNOWN_HALF_WIDTH:
        return True
    return speedup.half_width_ratio <= VAGUE_SPEEDUP and not is_open(speedup)


def candidates_of(bench: Workbench, cell: Cell) -> list[Candidate]:
    """All of a pipe's candidates that the model can take, once each: a step costs the same under every scheduler."""
    settings = bench.settings
    steps = {other.steps for other in settings.cells if other.pipe == cell.pipe} | {cell.steps}
    cells = [replace(cell, steps=count) for count in sorted(steps)]
    known = matrix.candidates(cells, bench.registry.select(settings.accelerators), coarse=settings.coarse)
    return [one for one in known if not bench.pipelines.misfit(one)]


def baseline_s(known: Knowledge, steps: int) -> float:
    """A whole run of the unaccelerated pipeline, seconds, by the rounds' unaccelerated runs."""
    runs = [made.baseline for made in known.rounds()]
    return steps * median(sum(run.step_s) / len(run.step_s) for run in runs) + median(run.fixed_s for run in runs)


def _share_is_spent(bench: Workbench, cell: Cell, candidates: Sequence[Candidate]) -> TimeIsUp:
    """Whether the session's rounds by the wall clock have taken their share; what does not decide makes the least."""

    def spent() -> bool:
        rounds = [made for made in bench.known(cell).rounds() if made.started_at >= bench.began_at]
        if len(rounds) < _LEAST_ROUNDS:
            return False  # every run that fails is passed over: that ends by itself
        if bench.settings.decide_by == "device":
            return True
        took_s = sum(run.total_s for made in rounds for run in (made.baseline, *made.runs))
        return took_s > _share_s(bench, cell, candidates)

    return spent


def _share_s(bench: Workbench, cell: Cell, candidates: Sequence[Candidate]) -> float:
    """Seconds that a calibration may take: a share of what generating all candidates would."""
    batches = math.ceil(bench.settings.num_samples / bench.settings.batch_size)
    schedulers = len({other.scheduler for other in bench.settings.cells if other.pipe == cell.pipe}) or 1
    known = bench.known(cell)
    run_s = {steps: baseline_s(known, steps) for steps in {one.cell.steps for one in candidates}}
    speedups = known.costs_by("wall").speedups(candidates)
    all_s = sum(run_s[one.cell.steps] / speedup.value for one, speedup in zip(candidates, speedups, strict=True))
    return _SHARE * schedulers * batches * all_s


def _plain(runs: Sequence[Candidate]) -> Candidate:
    """The unaccelerated run of a round."""
    return Candidate(runs[0].cell, "", {})


class Timer:
    """Times short runs of one pipe.

    Args:
        bench: the search's workbench.
        cell: any of the pipe's; its scheduler is used.
        clock: that they are timed by.
    """

    def __init__(self, bench: Workbench, cell: Cell, clock: SpeedClock = "wall") -> None:
        self._bench = bench
        self._cell = cell
        self._clock = clock
        # A profiler that ends its process says nothing of the same run by the wall clock.
        by_clock = ("by device time",) if clock == "device" else ()
        self._sampling = replace(bench.sampling(cell, "search"), purpose=CALIBRATION_PURPOSE).on_terms(by_clock)
        self._batch = bench.batches(cell, "search")[0]
        self._tried: set[str] = set()

    def narrow(
        self, candidates: Sequence[Candidate], is_known: Callable[[Interval], bool], time_is_up: TimeIsUp
    ) -> int:
        """Make rounds until the speed-ups of all candidates are known, or time is up.

        Args:
            candidates: of this pipe, of any number of steps.
            is_known: whether a speed-up is known well enough.
            time_is_up: asked before each round.

        Returns:
            How many rounds were made.

        Raises:
            CudaBroken: when this process can time nothing any more.
        """
        if not candidates:
            return 0
        short, made = ShortRuns.of(self._bench.registry, candidates), 0
        short = short.without(self._misfits(short.runs))
        with self._bench.spent.on("short runs"):
            while True:
                self._bench.read_rounds(self._cell)
                failed = self._failed()
                runs = self._most_telling(short.without(failed), candidates, is_known)
                if not runs or time_is_up() or _plain(runs).key in failed:
                    return made
                with self._bench.pipelines.timing():
                    made += self._make_round(runs) is not None

    def still_holds(self) -> bool:
        """Whether short runs that an earlier session timed are as fast now as all that it knew says."""
        known, failed = self._bench.known(self._cell), self._failed()
        before = known.costs_by(self._clock)
        all_runs = {run.key: run for made in known.rounds(self._clock) for run in made.candidates}
        failed |= self._misfits(all_runs.values())
        runs = [run for key, run in sorted(all_runs.items()) if key not in failed]
        if not runs:
            return True
        chosen = random.Random(order_seed(self._bench.settings.seed, ["check"], 0)).sample(runs, min(_RUNS, len(runs)))
        with self._bench.pipelines.timing():
            made = [one for _ in range(_CHECK_ROUNDS) if (one := self._make_round(chosen)) is not None]
        short = [(candidate, (block,)) for one in made for candidate, block in one.blocks]
        now = CostModel.fit(self._bench.registry, short)
        for old, new in zip(before.speedups(chosen), now.speedups(chosen), strict=True):
            error = math.hypot(math.log(old.high / old.value), math.log(new.high / new.value)) / _NORMAL_95
            if abs(math.log(old.value / new.value)) > _DISAGREE * error:
                _LOG.warning("the machine is not as it was calibrated: %.2fx was known, %.2fx is", old.value, new.value)
                return False
        return True

    def _most_telling(
        self, short: ShortRuns, candidates: Sequence[Candidate], is_known: Callable[[Interval], bool]
    ) -> list[Candidate]:
        """The short runs of the next round: of the candidates that are known least, none of them twice.

        Workers that do this together draw from as many as they make in all, so that they seldom make the same.
        """
        speedups = self._bench.known(self._cell).costs_by(self._clock).speedups(candidates)
        open_ones = [pair for pair in zip(speedups, candidates, strict=True) if not is_known(pair[0])]
        open_ones.sort(key=lambda pair: -pair[0].half_width_ratio)
        runs: dict[str, Candidate] = {}
        for _, candidate in open_ones:
            run = short.best_for(candidate)
            if run is not None:
                runs.setdefault(run.key, run)
            if len(runs) == _RUNS * self._bench.workers:
                break
        telling = list(runs.values())
        return telling if len(telling) <= _RUNS else random.SystemRandom().sample(telling, _RUNS)

    def _make_round(self, runs: Sequence[Candidate]) -> Round | None:
        """Time an unaccelerated short run and ``runs`` in random order; None when none of them works."""
        started_at, made = time.time(), len(self._bench.known(self._cell).rounds(self._clock))
        order = random.Random(order_seed(self._bench.settings.seed, [run.key for run in runs], made))
        plain = _plain(runs)
        timings: dict[str, RunTiming] = {}
        with ExitStack() as stack:
            generating = self._bench.pipelines.generating
            subjects = [(one, stack.enter_context(generating(one.cell, one.params))) for one in (plain, *runs)]
            device = subjects[0][1].pipeline.device
            self._warm_up(*subjects[0])
            is_wall = self._clock == "wall"
            watch = watch_machine(device, computing_threads(device)) if is_wall else watch_device(device)
            end_watch = watch.begin()
            for one, generate in order.sample(subjects, len(subjects)):
                timing = self._time(one, generate)
                if timing is not None:
                    timings[one.key] = timing
            disturbance = end_watch()
        worked = tuple(run for run in runs if run.key in timings)
        if not worked or plain.key not in timings:
            return None
        times = tuple(timings[run.key] for run in worked)
        made_now = Round(timings[plain.key], worked, times, disturbance, started_at, self._clock)
        self._bench.keep_round(self._cell, made_now)
        return made_now

    def _warm_up(self, plain: Candidate, generate: Generate) -> None:
        if not set(generate.kinds) <= self._bench.pipelines.warm_kinds:
            self._time(plain, generate)

    def _time(self, run: Candidate, generate: Generate) -> RunTiming | None:
        """One run's times, less the first step of each kind that this process makes; None when it fails.

        A failure is none of a candidate's: it is left to the candidate to show what is wrong. One that takes the
        process with it is remembered, so that this session does not try it again. The unaccelerated run is not: all
        workers make it at once, and without it there is no search.
        """
        bench = self._bench
        store, place = bench.store, (run, bench.environment(self._cell).id, self._sampling)
        is_first = bool(run.params) and run.key not in self._tried
        if is_first:
            store.begin(*place, "short run", session=bench.session, since=bench.since)
        try:
            with time_limit(bench.settings.case_timeout_s):
                timing = self._timed(generate)
        except (KeyboardInterrupt, SystemExit):
            store.forget_failure(*place)
            raise
        except Exception as error:
            bench.broken_runs[self._clock].add(run.key)
            store.forget_failure(*place)
            _LOG.warning("a short run of %s fails: %s", run.key, error)
            if is_cuda_broken():
                raise CudaBroken(f"this process can use its GPU no more ({error})") from error
            return None
        if is_first:
            store.forget_failure(*place)
            self._tried.add(run.key)
        new = set(timing.kinds) - bench.pipelines.warm_kinds
        bench.pipelines.warm_kinds |= new
        return timing.without_first(new) if self._clock == "wall" else timing

    def _timed(self, generate: Generate) -> RunTiming:
        """A run by the timer's clock."""
        prompts, seeds = self._batch.prompts, self._batch.seeds
        if self._clock == "wall":
            return timed(generate, prompts, seeds)[1]
        # The first run warms up, and shows the second one's time slices of other processes.
        kernels = KernelTimes()
        busy(generate, prompts, seeds, kernels)
        return busy(generate, prompts, seeds, kernels)[1]

    def _misfits(self, runs: Iterable[Candidate]) -> set[str]:
        """Keys of the short runs that the model cannot take."""
        return {run.key for run in runs if self._bench.pipelines.misfit(run)}

    def _failed(self) -> set[str]:
        """Short runs that failed in this process by this clock, or took another of this session, or two, with them."""
        crashed = {one.candidate.key for one in self._bench.failures(self._cell, self._sampling)}
        return crashed | self._bench.broken_runs[self._clock]
