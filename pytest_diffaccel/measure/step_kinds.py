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
        step_s: step times by kind, seconds, (..., n, runs of a block, steps of the kind).
        counts: by kind, how many steps of a run are of it.
    """

    fixed_s: Array
    step_s: Mapping[str, Array]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, blocks: Sequence[Sequence[RunTiming]]) -> RunTimes:
        """The runs of each block, as many in each and all with the same kinds of steps."""
        fixed = np.array([[run.fixed_s for run in runs] for runs in blocks])
        steps = np.array([[run.step_s for run in runs] for runs in blocks])
        return cls.from_steps(fixed, steps, blocks[0][0].kinds)

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
    def _relative(self) -> dict[str, Array]:
        """Steps by kind as multiples of the median of their kind in their run, the run's furthest winsorised."""
        relative = {kind: times / _middle_of(times) for kind, times in self.step_s.items()}
        every = np.sort(np.concatenate(list(relative.values()), axis=-1), axis=-1)
        cut = round(WINSORISED * every.shape[-1])
        low, high = every[..., cut, None], every[..., -1 - cut, None]
        return {kind: np.clip(times, low, high) for kind, times in relative.items()}

    @cached_property
    def kind_s(self) -> dict[str, Array]:
        """What a step of each kind cost in each run, seconds, (..., n, runs of a block): the winsorised mean."""
        return {
            kind: (_middle_of(self.step_s[kind]) * relative).mean(axis=-1) for kind, relative in self._relative.items()
        }

    def run_seconds(self) -> Array:
        """What each run took by its kinds' costs and its fixed part, seconds, (..., n, runs of a block)."""
        return self.fixed_s + sum(self.counts[kind] * cost for kind, cost in self.kind_s.items())

    def step_variance(self) -> Array:
        """Variance of a step within its run, as a share of its kind's cost squared: mean of all runs, (...)."""
        variance: Array = np.concatenate(list(self._relative.values()), axis=-1).var(axis=-1).mean(axis=(-1, -2))
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
    found: Array = np.median(times, axis=-1, keepdims=True)
    return found


def _of_blocks(values: Array) -> Array:
    """Trimmed mean of blocks, (..., n, runs of a block) to (...)."""
    mean: Array = middle(values.mean(axis=-1)).mean(axis=-1)
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
