"""Speed-ups from costs by kind of step, pooled over all candidates that share the kind.

A DeepCache candidate with interval 3 and one with interval 5 make the same two kinds of calls, only in other numbers.
Pooling what each of them showed about a kind gives every one of them a speed-up that none could have measured alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from pytest_diffaccel.measure.measurement import Block, Interval, Measurement, RunTiming
from pytest_diffaccel.measure.statistics import kind_costs, low_quantile, moderated_interval

# How much the log of a kind's relative cost varies from block to block before any is seen; as for a block's speed-up.
_PRIOR_SD = 0.028
# The share of a run's time outside its steps is a kind of its own.
_FIXED = "fixed"


def pooled_speedups(measurements: Sequence[Measurement]) -> dict[str, Interval]:
    """Speed-up of each measured candidate from the pooled costs of its kinds.

    Each block gives, for each kind it holds, the kind's cost relative to the block's own baseline step; a kind's cost
    is the mean of the logs over all blocks of all candidates. The interval of a speed-up adds up the variances of its
    kinds, weighted by their share of the time.

    Args:
        measurements: of one environment and number of steps; each with at least one block.

    Returns:
        By candidate key.
    """
    logs: defaultdict[str, list[float]] = defaultdict(list)
    for measurement in measurements:
        for block in measurement.blocks:
            for kind, ratio in _relative_costs(block).items():
                logs[kind].append(math.log(ratio))
    costs = {kind: _log_cost(values) for kind, values in logs.items()}
    return {
        measurement.candidate.key: _speedup(measurement.blocks[0], _baseline_fixed(measurements), costs)
        for measurement in measurements
    }


def _relative_costs(block: Block) -> dict[str, float]:
    """Cost of the candidate's kinds, and of what is not a step, as multiples of the block's baseline step."""
    step_s = _step_cost(block.baseline)
    costs = kind_costs(block.runs)
    costs[_FIXED] = low_quantile([run.fixed_s for run in block.runs])
    return {kind: cost / step_s for kind, cost in costs.items()}


def _step_cost(baseline: RunTiming) -> float:
    return low_quantile(baseline.step_s)


def _baseline_fixed(measurements: Sequence[Measurement]) -> float:
    """What the baseline does beside its steps, as a multiple of its step."""
    blocks = [block for measurement in measurements for block in measurement.blocks]
    return low_quantile([block.baseline.fixed_s / _step_cost(block.baseline) for block in blocks])


def _log_cost(values: Sequence[float]) -> Interval:
    mean = sum(values) / len(values)
    df = len(values) - 1
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / df) if df else 0.0
    return moderated_interval(mean, deviation, len(values), df, _PRIOR_SD)


def _speedup(block: Block, baseline_fixed: float, costs: dict[str, Interval]) -> Interval:
    baseline = baseline_fixed + len(block.baseline.step_s)
    counts = {_FIXED: 1} | {kind: block.runs[0].kinds.count(kind) for kind in set(block.runs[0].kinds)}
    parts = {kind: count * math.exp(costs[kind].value) for kind, count in counts.items()}
    total = sum(parts.values())
    # Independent kinds: the variance of the log of a sum is that of its terms' logs, weighted by squared shares.
    half = math.sqrt(sum(((costs[kind].high - costs[kind].value) * part / total) ** 2 for kind, part in parts.items()))
    speedup = baseline / total
    return Interval(speedup, speedup * math.exp(-half), speedup * math.exp(half))
