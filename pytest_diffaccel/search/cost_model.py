"""Speed-ups from costs by kind of step, pooled over all candidates that share the kind.

A DeepCache candidate with interval 3 and one with interval 5 make the same two kinds of calls, only in other numbers.
Pooling what each of them showed about a kind gives every one of them a speed-up that none could have measured alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from pytest_diffaccel.measure.measurement import Block, Interval, Measurement
from pytest_diffaccel.measure.statistics import trimmed_interval

# How much the log of a kind's relative cost varies from block to block before any is seen; as for a block's speed-up.
_PRIOR_SD = 0.028
# The share of a run's time outside its steps is a kind of its own, for candidates and for the baseline.
_FIXED, _BASELINE_FIXED = "fixed", "fixed, baseline"


def pooled_speedups(measurements: Sequence[Measurement]) -> dict[str, Interval]:
    """Speed-up of each measured candidate from the pooled costs of its kinds.

    Each block gives, for each kind it holds, the kind's cost relative to the block's own baseline step; a kind's cost
    is the trimmed mean of the logs over all blocks of all candidates. The interval of a speed-up adds up the variances
    of its kinds, weighted by their share of the time.

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
    costs = {kind: trimmed_interval(values, _PRIOR_SD) for kind, values in logs.items()}
    return {measurement.candidate.key: _speedup(measurement.blocks[0], costs) for measurement in measurements}


def _relative_costs(block: Block) -> dict[str, float]:
    """Cost of the candidate's kinds, and of what is not a step, as multiples of the block's baseline step.

    Medians, not low quantiles: a kind has between one and all of a block's steps, and the low quantile of few values
    lies higher than that of many, in every block alike, so that no pooling averages it away.
    """
    times: defaultdict[str, list[float]] = defaultdict(list)
    for run in block.runs:
        times[_FIXED].append(run.fixed_s)
        for kind, step_s in zip(run.kinds, run.step_s, strict=True):
            times[kind].append(step_s)
    times[_BASELINE_FIXED].append(block.baseline.fixed_s)
    step_s = median(block.baseline.step_s)
    return {kind: median(values) / step_s for kind, values in times.items()}


def _speedup(block: Block, costs: dict[str, Interval]) -> Interval:
    kinds = block.runs[0].kinds
    baseline = math.exp(costs[_BASELINE_FIXED].value) + len(block.baseline.step_s)
    counts = {_FIXED: 1} | {kind: kinds.count(kind) for kind in set(kinds)}
    parts = {kind: count * math.exp(costs[kind].value) for kind, count in counts.items()}
    shares = {kind: part / sum(parts.values()) for kind, part in parts.items()}
    shares[_BASELINE_FIXED] = math.exp(costs[_BASELINE_FIXED].value) / baseline
    # Independent kinds: the variance of the log of a sum is that of its terms' logs, weighted by squared shares.
    half = math.sqrt(sum(((costs[kind].high - costs[kind].value) * share) ** 2 for kind, share in shares.items()))
    speedup = baseline / sum(parts.values())
    return Interval(speedup, speedup * math.exp(-half), speedup * math.exp(half))
