"""A figure: the logarithm of a speed-up from a few neighbouring blocks, by the cost of each kind of step.

Figures are what the sequential test counts. On a CPU whole runs are disturbed by whatever else the machine does; a low
quantile over the steps of a few runs sees past it (:func:`fast_seconds`), one run's alone does not. What fast steps are
off by is in the reference's figures too, so nothing is added to correct it. On a GPU a block is a figure; by the clocks
of the device and of the host (:mod:`.clocks`) it holds the first steps of runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.statistics import low_quantile
from pytest_diffaccel.measure.step_kinds import Array, RunTimes

# Disturbance only ever adds time, so the faster share of the runs tells what a kind costs; its mean rather than a
# quantile of all, which would hang on one or two runs.
_FASTER = 0.5
# Times that a kind of step comes in a run that is cut off, if it does.
_EACH = 2
# Steps of one kind vary by less within a run (logarithm).
_LATER_NOISE = 0.01


@dataclass(frozen=True)
class Figure:
    """What a few blocks show.

    Attributes:
        log_speedup: logarithm of baseline time over candidate time.
        baseline_s: time of an unaccelerated run, undisturbed.
    """

    log_speedup: float
    baseline_s: float

    @classmethod
    def from_blocks(cls, blocks: Sequence[Block]) -> Figure:
        """Of one candidate's blocks, at least one."""
        baseline_s = float(fast_seconds(RunTimes.of([(block.baseline,) for block in blocks])))
        candidate_s = float(fast_seconds(RunTimes.of([block.runs for block in blocks])))
        return cls(math.log(baseline_s / candidate_s), baseline_s)

    @classmethod
    def from_first_steps(cls, blocks: Sequence[Block], baseline: FirstSteps, candidate: FirstSteps) -> Figure:
        """Of blocks that hold the first steps of runs: each kind costs what it does in them.

        Args:
            blocks: at least one.
            baseline: what the unaccelerated steps are the first ones of.
            candidate: the same of the candidate's; the blocks' runs hold each of its kinds.
        """
        baseline_s = baseline.run_seconds([block.baseline for block in blocks])
        candidate_s = candidate.run_seconds([run for block in blocks for run in block.runs])
        return cls(math.log(baseline_s / candidate_s), baseline_s)


@dataclass(frozen=True)
class FirstSteps:
    """What the first steps of a run belong to.

    Attributes:
        kinds: of all steps of a whole run; None: these are whole runs, each with the kinds that its pictures decided.
        fixed_s: what surrounds its steps, at least 0.
        later: what all steps of a whole run take, as a multiple of what the first ones let expect.
    """

    kinds: tuple[str, ...] | None
    fixed_s: float = 0.0
    later: float = 1.0

    def run_seconds(self, runs: Sequence[RunTiming]) -> float:
        """A whole run by the first steps of some."""
        if self.kinds is None:
            return self.fixed_s + self.later * fmean(_steps_seconds([run], run.kinds) for run in runs)
        return self.fixed_s + self.later * _steps_seconds(runs, self.kinds)


def later_steps(run: RunTiming) -> float:
    """What the steps of a whole run took, as a multiple of what its first steps let expect; 1 where nearly that."""
    count = steps_that_tell(run.kinds)
    first = RunTiming(sum(run.step_s[:count]), run.step_s[:count], run.kinds[:count])
    found = sum(run.step_s) / _steps_seconds([first], run.kinds)
    return found if abs(math.log(found)) > _LATER_NOISE else 1.0


def steps_that_tell(kinds: Sequence[str]) -> int:
    """How many first steps of a run tell what each of its kinds costs: each comes twice after the first step, if it
    does at all.
    """
    wanted = {kind: min(_EACH, kinds[1:].count(kind)) for kind in kinds}
    for count in range(1, len(kinds)):
        seen = kinds[1:count]
        if {*kinds[:count]} == wanted.keys() and all(seen.count(kind) >= most for kind, most in wanted.items()):
            return count
    return len(kinds)


def _steps_seconds(runs: Sequence[RunTiming], kinds: Sequence[str]) -> float:
    """What all steps of a run take by the first steps of some: means by kind, but for the first step, which launches
    into an empty queue, where its kind comes again.
    """
    seconds = 0.0
    for kind, count in Counter(kinds).items():
        later = [
            step
            for run in runs
            for step, its_kind in list(zip(run.step_s, run.kinds, strict=True))[1:]
            if its_kind == kind
        ]
        seconds += count * fmean(later or [run.step_s[0] for run in runs if run.kinds[0] == kind])
    return seconds


def fast_seconds(times: RunTimes) -> Array:
    """What a run costs by its fast steps and fast runs, seconds, (...): its fixed part and its steps' kinds.

    A kind's cost is the mean over the faster half of the runs of the low quantile of its step times there. Where the
    pictures decide the kinds, it is the faster runs as they are.
    """
    if times.is_mixed:
        # A kind may be in few of the runs.
        return faster_mean(times.run_seconds().mean(axis=-1))
    seconds = faster_mean(times.fixed_s.mean(axis=-1))
    for kind, steps in times.step_s.items():
        seconds = seconds + times.counts[kind] * faster_mean(low_quantile(steps).mean(axis=-1))
    return seconds


def faster_mean(values: Array) -> Array:
    """Mean of the faster half along the last axis, (..., n) to (...); a value on the border counts in part."""
    count = values.shape[-1]
    ends = np.arange(1, count + 1) / count
    weights = np.clip(_FASTER - (ends - 1 / count), 0, 1 / count)
    mean: Array = np.sort(values, axis=-1) @ (weights / weights.sum())
    return mean
