"""Short runs of one pipe, timed in rounds: an unaccelerated run and some accelerated ones, in random order."""

from __future__ import annotations

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import geometric_mean

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.devices import CudaBroken, is_cuda_broken
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.blocks import order_seed
from pytest_diffaccel.measure.busy_clock import SHARED_SHARE, KernelTimes, busy, busy_steps
from pytest_diffaccel.measure.clock import timed, timed_steps
from pytest_diffaccel.measure.disturbance import watch_device, watch_machine
from pytest_diffaccel.measure.measurement import Interval, Round, RunTiming, SpeedClock
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.measure.time_limit import time_limit
from pytest_diffaccel.records.bookkeeping import CALIBRATION_PURPOSE
from pytest_diffaccel.search.budget import TimeIsUp
from pytest_diffaccel.search.calibrate.short_runs import ShortRuns
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.workbench import Workbench

_LOG = logging.getLogger(__name__)

# Accelerated runs beside each unaccelerated one.
_RUNS = 4
# Runs of an accelerator, and of none, that draw their pictures, which tells what surrounds the steps; the others end
# with their last step. So many told the speed-ups of full-size SDXL and SD1.5 nearly as well as all did (rounds of an
# H200, docs/method.md); SDXL's VAE takes a third of a plain short run.
_WHOLE_RUNS = 3
# A later session makes so many rounds first; what an earlier one knew is forgotten where they are so many standard
# errors off.
_CHECK_ROUNDS, _DISAGREE = 2, 3.5
_NORMAL_95 = 1.96
# Rounds after which no more are made, where these together narrow the intervals by less than this share: what is left
# then is how the machine drifts, which more of the same does not tell.
_PATIENCE, _NARROWS = 4, 0.05
# Half-width of an interval, as a share, that is as good as none: of what does all that the unaccelerated pipeline does.
_EXACT = 1e-4


def _plain(runs: Sequence[Candidate]) -> Candidate:
    """The unaccelerated run of a round."""
    return Candidate(runs[0].cell, "", {})


def _typical_width(speedups: Sequence[Interval]) -> float:
    """Geometric mean of how far the intervals reach: one that stays vague does not hide how the others narrow."""
    return geometric_mean([max(speedup.half_width_ratio, _EXACT) for speedup in speedups]) if speedups else 0.0


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
        self._kernels: dict[str, KernelTimes] = {}

    def narrow(
        self, candidates: Sequence[Candidate], is_known: Callable[[Interval], bool], time_is_up: TimeIsUp
    ) -> int:
        """Make rounds until the speed-ups of all candidates are known, more rounds tell no more, or time is up.

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
        known = self._bench.known(self._cell)
        short, made = ShortRuns.of(self._bench.registry, candidates, known.step_counts), 0
        short = short.without(self._misfits(short.runs))
        narrowest, in_vain, wanted = math.inf, 0, list[int]()
        with self._bench.spent.on("short runs"):
            while True:
                self._bench.read_rounds(self._cell)
                failed = self._failed()
                speedups = self._bench.known(self._cell).costs_by(self._clock).speedups(candidates)
                wanted = wanted or [place for place, speedup in enumerate(speedups) if not is_known(speedup)]
                width = _typical_width([speedups[place] for place in wanted])
                narrowest, in_vain = (width, 0) if width < (1 - _NARROWS) * narrowest else (narrowest, in_vain + 1)
                runs = self._most_telling(short.without(failed), zip(speedups, candidates, strict=True), is_known)
                if not runs or in_vain == _PATIENCE or time_is_up() or _plain(runs).key in failed:
                    return made
                self._bench.spent.on_begin("short runs")
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
            # Whole runs: where all that was known before is forgotten, these are what is left.
            made = [again for _ in range(_CHECK_ROUNDS) if (again := self._make_round(chosen, whole=True)) is not None]
        short = [(candidate, (block,)) for timed_round in made for candidate, block in timed_round.blocks]
        now = CostModel.fit(self._bench.registry, short, self._clock)
        for old, new in zip(before.speedups(chosen), now.speedups(chosen), strict=True):
            error = math.hypot(math.log(old.high / old.value), math.log(new.high / new.value)) / _NORMAL_95
            if abs(math.log(old.value / new.value)) > _DISAGREE * error:
                _LOG.warning("the machine is not as it was calibrated: %.2fx was known, %.2fx is", old.value, new.value)
                return False
        return True

    def _most_telling(
        self, short: ShortRuns, known: Iterable[tuple[Interval, Candidate]], is_known: Callable[[Interval], bool]
    ) -> list[Candidate]:
        """The short runs of the next round: of the candidates that are known least, none of them twice.

        Workers that do this together draw from as many as they make in all, so that they seldom make the same.
        """
        open_ones = [pair for pair in known if not is_known(pair[0])]
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

    def _make_round(self, runs: Sequence[Candidate], *, whole: bool = False) -> Round | None:
        """Time an unaccelerated short run and ``runs`` in random order; None when none of them works.

        They draw their pictures where ``whole``, and where too few of their accelerators' have.
        """
        started_at, made = time.time(), len(self._bench.known(self._cell).rounds(self._clock))
        order = random.Random(order_seed(self._bench.settings.seed, [run.key for run in runs], made))
        plain = _plain(runs)
        timings: dict[str, RunTiming] = {}
        with ExitStack() as stack:
            generating = self._bench.pipelines.generating
            subjects = [(run, stack.enter_context(generating(run.cell, run.params))) for run in (plain, *runs)]
            device = subjects[0][1].pipeline.device
            self._warm_up(*subjects[0])
            is_wall = self._clock == "wall"
            watch = watch_machine(device, computing_threads(device)) if is_wall else watch_device(device)
            end_watch = watch.begin()
            seen, drawn = set(self._kernels), self._drawn()
            for run, generate in order.sample(subjects, len(subjects)):
                draws = whole or drawn[run.accelerator] < _WHOLE_RUNS
                drawn[run.accelerator] += draws
                self._add(timings, run, generate, whole=draws)
            if self._is_shared(plain):
                # A run shows the others' time slices only beside another one of its own.
                for run, generate in subjects:
                    if run.key not in seen:
                        self._add(timings, run, generate, whole=run.key not in timings or timings[run.key].whole)
            disturbance = end_watch()
        worked = tuple(run for run in runs if run.key in timings)
        if not worked or plain.key not in timings:
            return None
        times = tuple(timings[run.key] for run in worked)
        made_now = Round(timings[plain.key], worked, times, disturbance, started_at, self._clock)
        self._bench.keep_round(self._cell, made_now)
        return made_now

    def _warm_up(self, plain: Candidate, generate: Generate) -> None:
        """By the GPU's own time, the first unaccelerated run shows time slices of others in the next ones."""
        is_first = self._clock == "device" and plain.key not in self._kernels
        if is_first or not set(generate.kinds) <= self._bench.pipelines.warm_kinds:
            self._time(plain, generate, whole=True)

    def _drawn(self) -> Counter[str]:
        """Of each accelerator how many runs have drawn their pictures."""
        rounds = self._bench.known(self._cell).rounds(self._clock)
        rows = [(run, timing) for made in rounds for run, timing in zip(made.candidates, made.runs, strict=True)]
        rows += [(_plain(made.candidates), made.baseline) for made in rounds]
        return Counter(run.accelerator for run, timing in rows if timing.whole)

    def _add(self, timings: dict[str, RunTiming], run: Candidate, generate: Generate, *, whole: bool) -> None:
        timing = self._time(run, generate, whole=whole)
        if timing is not None:
            timings[run.key] = timing

    def _is_shared(self, plain: Candidate) -> bool:
        """Whether another process's time slices cut unaccelerated runs off, which each round has one of."""
        return plain.key in self._kernels and self._kernels[plain.key].cut_share > SHARED_SHARE

    def _time(self, run: Candidate, generate: Generate, *, whole: bool) -> RunTiming | None:
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
                timing = self._timed(run, generate, whole=whole)
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

    def _timed(self, run: Candidate, generate: Generate, *, whole: bool) -> RunTiming:
        """A run by the timer's clock, with its pictures or without."""
        batch = self._batch.prompts, self._batch.seeds
        if self._clock == "wall":
            return timed(generate, *batch)[1] if whole else timed_steps(generate, *batch)
        kernels = self._kernels.setdefault(run.key, KernelTimes())
        return busy(generate, *batch, kernels)[1] if whole else busy_steps(generate, *batch, generate.steps, kernels)

    def _misfits(self, runs: Iterable[Candidate]) -> set[str]:
        """Keys of the short runs that the model cannot take."""
        return {run.key for run in runs if self._bench.pipelines.misfit(run)}

    def _failed(self) -> set[str]:
        """Short runs that failed in this process by this clock, or took another of this session, or two, with them."""
        crashed = {failure.candidate.key for failure in self._bench.failures(self._cell, self._sampling)}
        return crashed | self._bench.broken_runs[self._clock]
