"""The step-kind estimate of a speed-up: what each kind of step costs, pooled over steps and blocks.

Everything works on arrays whose leading axes are independent repetitions, so that the intervals can be checked on
thousands of simulated measurements by the code that real ones go through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import half_width, low_quantile, middle, middle_count, ratio_interval

Array: TypeAlias = NDArray[np.float64]

# What one block's log ratio is expected to vary by before any is seen, and how many degrees of freedom that is worth
# beside several blocks: few, since it is 0.02 to 0.03 on a quiet machine and 0.1 on one that others use; on the latter,
# more would leave the truth outside more often (python -m benchmarks.interval_coverage).
_PRIOR_SD, _PRIOR_DF = 0.02, 1.1
# Disturbance only ever adds time, so the faster share of the runs tells what a kind costs; its mean rather than a
# quantile of all, which would hang on one or two runs and say little of its own error.
_FASTER = 0.5
# What fast steps and runs tell of a speed-up is off by this much (standard deviation of the logarithm): what surrounds
# the arithmetic weighs more in a cheap step, and a low quantile sees less of it (python -m benchmarks.estimators).
_LOW_BIAS_SD = 0.015
# What is further apart is a disturbance of the middle ones.
_MOST_LOW_BIAS = 3 * _LOW_BIAS_SD
# Parts of the blocks that are left out one after the other.
_MOST_PARTS = 20


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
    def levels(self) -> dict[str, Array]:
        """What a step of each kind cost in each block, seconds, (..., n): the low quantile of its times in a run."""
        return {kind: low_quantile(times).mean(axis=-1) for kind, times in self.step_s.items()}

    @cached_property
    def _middle_levels(self) -> dict[str, Array]:
        """The same by the median of its times in a run."""
        return {kind: np.median(times, axis=-1).mean(axis=-1) for kind, times in self.step_s.items()}

    def costs(self, kept: Any = slice(None)) -> dict[str, Array]:
        """Cost of each kind from the fast steps of the blocks kept, seconds, (...)."""
        return {kind: faster_mean(levels[..., kept]) for kind, levels in self.levels.items()}

    def seconds(self, kept: Any = slice(None)) -> Array:
        """What a run costs by the fast steps and runs of the blocks kept, seconds, (...): its fixed part and its
        steps' kinds.
        """
        return self._sum(faster_mean(self.fixed_s.mean(axis=-1)[..., kept]), self.costs(kept))

    def middle_seconds(self, kept: Any = slice(None)) -> Array:
        """The same by the median steps and the runs in the middle."""
        costs = {kind: middle(levels[..., kept]).mean(axis=-1) for kind, levels in self._middle_levels.items()}
        return self._sum(middle(self.fixed_s.mean(axis=-1)[..., kept]).mean(axis=-1), costs)

    def steps_seconds(self) -> Array:
        """What the steps of a run cost of :meth:`seconds`, (...)."""
        return self._sum(np.zeros(self.fixed_s.shape[:-2]), self.costs())

    def _sum(self, fixed_s: Array, costs: Mapping[str, Array]) -> Array:
        return fixed_s + sum(self.counts[kind] * cost for kind, cost in costs.items())


def faster_mean(values: Array) -> Array:
    """Mean of the faster half along the last axis, (..., n) to (...); a value on the border counts in part."""
    count = values.shape[-1]
    ends = np.arange(1, count + 1) / count
    weights = np.clip(_FASTER - (ends - 1 / count), 0, 1 / count)
    mean: Array = np.sort(values, axis=-1) @ (weights / weights.sum())
    return mean


def log_speedup(baseline: RunTimes, candidate: RunTimes) -> tuple[Array, Array]:
    """Logarithm of the speed-up and half the width of its 95% interval, (...) each.

    Two estimates are combined. What fast steps and runs say is precise on a machine that others use, too, but off by a
    percent or two; what the middle ones say is off by nothing, and as noisy as the machine. Each counts by the inverse
    of its mean squared error, which the blocks themselves tell.

    Spreads are a jackknife's over up to twenty parts of the blocks, each a stretch of time, so that blocks that
    resemble their neighbours are not taken for independent ones (Kuensch, Annals of Statistics 17, 1989). They are
    moderated by what blocks are known to vary by (:func:`.statistics.half_width`).

    Args:
        baseline: unaccelerated runs.
        candidate: accelerated runs of the same blocks.
    """
    count = baseline.fixed_s.shape[-2]

    def low_and_gap(kept: Any) -> Array:
        low = np.log(baseline.seconds(kept) / candidate.seconds(kept))
        middle = np.log(baseline.middle_seconds(kept) / candidate.middle_seconds(kept))
        return np.array([low, np.clip(middle - low, -_MOST_LOW_BIAS, _MOST_LOW_BIAS)])

    low, gap = low_and_gap(slice(None))
    parts = min(count, _MOST_PARTS)
    places = np.arange(count)
    if parts == 1:
        return low, half_width(np.zeros_like(low), count, 0, _PRIOR_SD)
    without = np.array([low_and_gap(places * parts // count != part) for part in range(parts)])
    # The jackknife's variance of the gap, with one degree of freedom of what blocks are known to vary by.
    gap_variance = ((parts - 1) ** 2 * np.var(without[:, 1], axis=0) + _PRIOR_SD**2 / count) / parts
    middle_share = _LOW_BIAS_SD**2 / (_LOW_BIAS_SD**2 + gap_variance)
    # Of one block, so that it is comparable with the prior.
    deviation = np.sqrt((parts - 1) * np.var(without[:, 0] + middle_share * without[:, 1], axis=0) * count)
    # As for a trimmed mean, only the values that count are worth degrees of freedom.
    df_low, df_middle = math.ceil(_FASTER * parts) - 1, middle_count(parts) - 1
    df = np.maximum(1.0, df_low + middle_share * (df_middle - df_low))
    return low + middle_share * gap, half_width(deviation, count, df, _PRIOR_SD, _PRIOR_DF)


def step_kind_speedup(blocks: Sequence[Block]) -> Interval:
    """Speed-up from the cost of each kind of step, pooled over steps and blocks.

    A run's time is the fixed part (text encoder, VAE, set-up) and the sum of its steps' costs. The cost of a kind is,
    on a noisy machine, the mean over the faster half of the runs of the low quantile of its step times there, since
    disturbance only ever adds time; on a quiet one, more and more the trimmed mean of the runs' medians.

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
