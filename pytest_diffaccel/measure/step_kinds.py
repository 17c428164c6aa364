"""The step-kind estimate of a speed-up: whole runs, but for steps that something held up.

A kind's cost in a run is a mean, never a fast quantile of its steps: on a machine whose speed has two modes short steps
meet the fast one more often than long ones do, and only means of both are off by as much. A run's time is made of these
means; runs of a block are compared with each other only, since they are neighbours in time.

Everything works on arrays whose leading axes are independent repetitions, so that the intervals can be checked on
thousands of simulated measurements by the code that real ones go through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import WINSORISED, middle, ratio_interval, trimmed_mean

Array: TypeAlias = NDArray[np.float64]

# What one block's log ratio is expected to vary by before any is seen: this much on a quiet machine, and on any half of
# what the steps of a kind vary by within a run (python -m benchmarks.interval_coverage).
_PRIOR_SD, _OF_STEPS = 0.02, 0.5


@dataclass(frozen=True)
class RunTimes:
    """Times of runs of one pipeline, in ``n`` blocks.

    Attributes:
        fixed_s: what is not a step, seconds, (..., n, runs of a block).
        step_s: step times by kind, seconds, (..., n, runs of a block, steps of the kind); NaN where a step of the run
            is of another kind, if the runs do not all have the same kinds.
        counts: by kind, how many steps of a run are of it; their mean, if not all have the same kinds.
    """

    fixed_s: Array
    step_s: Mapping[str, Array]
    counts: Mapping[str, float]

    @classmethod
    def of(cls, blocks: Sequence[Sequence[RunTiming]]) -> RunTimes:
        """The runs of each block, as many in each and all of as many steps.

        They have the same kinds of steps, unless the pictures decide them (:attr:`.Generate.decided`).
        """
        fixed = np.array([[run.fixed_s for run in runs] for runs in blocks])
        steps = np.array([[run.step_s for run in runs] for runs in blocks])
        kinds = blocks[0][0].kinds
        if all(run.kinds == kinds for runs in blocks for run in runs):
            return cls.from_steps(fixed, steps, kinds)
        names = np.array([[run.kinds for run in runs] for runs in blocks])
        by_kind = {str(kind): np.where(names == kind, steps, np.nan) for kind in np.unique(names)}
        counts = {kind: float((names == kind).sum(axis=-1).mean()) for kind in by_kind}
        return cls(fixed, by_kind, counts)

    @classmethod
    def from_steps(cls, fixed_s: Array, step_s: Array, kinds: Sequence[str]) -> RunTimes:
        """Of all steps in order.

        Args:
            fixed_s: as above.
            step_s: (..., n, runs of a block, steps).
            kinds: the kind of each step.
        """
        names = np.array(kinds)
        by_kind = {kind: step_s[..., names == kind] for kind in dict.fromkeys(kinds)}
        return cls(fixed_s, by_kind, {kind: kinds.count(kind) for kind in by_kind})

    @cached_property
    def is_mixed(self) -> bool:
        """Whether not all runs have the same kinds of steps."""
        return any(bool(np.isnan(times).any()) for times in self.step_s.values())

    @cached_property
    def _relative(self) -> dict[str, Array]:
        """Steps by kind as multiples of the median of their kind in their run, the run's furthest winsorised."""
        relative = {kind: times / _middle_of(times) for kind, times in self.step_s.items()}
        every = np.sort(np.concatenate(list(relative.values()), axis=-1), axis=-1)
        # NaN comes last, and stands for as many steps in each run.
        steps = every.shape[-1] // len(relative) if self.is_mixed else every.shape[-1]
        cut = round(WINSORISED * steps)
        low, high = every[..., cut, None], every[..., steps - 1 - cut, None]
        return {kind: np.clip(times, low, high) for kind, times in relative.items()}

    @cached_property
    def kind_s(self) -> dict[str, Array]:
        """What a step of each kind cost in each run, seconds, (..., n, runs of a block): the winsorised mean."""
        return {kind: _mean(_middle_of(self.step_s[kind]) * relative) for kind, relative in self._relative.items()}

    def run_seconds(self) -> Array:
        """What each run took by its kinds' costs and its fixed part, seconds, (..., n, runs of a block)."""
        if not self.is_mixed:
            return self.fixed_s + sum(self.counts[kind] * cost for kind, cost in self.kind_s.items())
        of_kinds = [
            np.count_nonzero(~np.isnan(self.step_s[kind]), axis=-1) * cost for kind, cost in self.kind_s.items()
        ]
        seconds: Array = self.fixed_s + np.nansum(of_kinds, axis=0)
        return seconds

    def step_variance(self) -> Array:
        """Variance of a step within its run, as a share of its kind's cost squared: mean of all runs, (...)."""
        relative = np.concatenate(list(self._relative.values()), axis=-1)
        variance: Array = (np.nanvar if self.is_mixed else np.var)(relative, axis=-1).mean(axis=(-1, -2))
        return variance

    def costs(self) -> dict[str, Array]:
        """Cost of each kind, seconds, (...): trimmed mean of all blocks."""
        return {kind: _of_blocks(cost) for kind, cost in self.kind_s.items()}

    def fixed_seconds(self) -> Array:
        """What lies outside the steps of a run, seconds, (...): trimmed mean of all blocks."""
        return _of_blocks(self.fixed_s)

    def steps_seconds(self) -> Array:
        """What the steps of a run cost, seconds, (...)."""
        seconds: Array = np.sum([self.counts[kind] * cost for kind, cost in self.costs().items()], axis=0)
        return seconds


def _middle_of(times: Array) -> Array:
    if not np.isnan(times).any():
        found: Array = np.median(times, axis=-1, keepdims=True)
        return found
    ordered = np.sort(times, axis=-1)
    known = np.count_nonzero(~np.isnan(ordered), axis=-1)[..., None]
    # Without any, all of them are NaN.
    low, high = (np.take_along_axis(ordered, place, axis=-1) for place in ((known - 1) // 2, known // 2))
    return (low + high) / 2


def _mean(values: Array) -> Array:
    """Mean along the last axis of what is there; NaN of nothing."""
    there = ~np.isnan(values)
    if there.all():
        mean: Array = values.mean(axis=-1)
        return mean
    count = np.count_nonzero(there, axis=-1)
    return np.where(count, np.where(there, values, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def _of_blocks(values: Array) -> Array:
    """Trimmed mean of blocks, (..., n, runs of a block) to (...); of those that have what is meant."""
    means = _mean(values)
    mean: Array = middle(means if means.ndim > 1 else means[~np.isnan(means)]).mean(axis=-1)
    return mean


def log_speedup(baseline: RunTimes, candidate: RunTimes) -> tuple[Array, Array]:
    """Logarithm of the speed-up and half the width of its 95% interval, (...) each.

    A trimmed mean of the blocks' log ratios (:func:`.statistics.trimmed_mean`). How much steps vary within runs tells
    how restless the machine is before many blocks do; the interval's prior takes it in.

    Args:
        baseline: unaccelerated runs.
        candidate: accelerated runs of the same blocks.
    """
    ratios = np.log(baseline.run_seconds()).mean(axis=-1) - np.log(candidate.run_seconds()).mean(axis=-1)
    of_steps = (baseline.step_variance() + candidate.step_variance()) / 2
    return trimmed_mean(ratios, np.sqrt(_PRIOR_SD**2 + _OF_STEPS**2 * of_steps))


def step_kind_speedup(blocks: Sequence[Block]) -> Interval:
    """Speed-up from the mean cost of each kind of step in each run, but for steps that something held up.

    Args:
        blocks: at least one, with as many runs each.

    Returns:
        Baseline time over candidate time; above 1 is faster. Its interval is that of :func:`log_speedup`.

    Raises:
        ValueError: without blocks.
    """
    if not blocks:
        raise ValueError("no blocks to estimate a speed-up from")
    baseline = RunTimes.of([(block.baseline,) for block in blocks])
    return ratio_interval(*map(float, log_speedup(baseline, RunTimes.of([block.runs for block in blocks]))))
