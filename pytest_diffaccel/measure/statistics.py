"""Statistics of speed-ups and of quality: estimates with 95% intervals from few, noisy samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy import stats

from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming

# Two-sided 95%.
_CONFIDENCE = 0.95
# Share of block log ratios trimmed at each end before averaging them.
_TRIM = 0.2
#: Disturbance only ever adds time: a kind's cost is the low quantile of its step times.
COST_QUANTILE = 0.10
_BOOTSTRAP_RESAMPLES = 500

# What one block's log ratio is expected to vary by before any is seen, and how many degrees of freedom that is worth.
# Measured on 2 noisy shared cores (docs/method.md): 5.9% from 4 blocks by wall ratios, 1.4% by step kinds.
_WALL_PRIOR_SD = 0.118
_KINDS_PRIOR_SD = 0.028
_PRIOR_DF = 4.0


def wall_speedup(blocks: Sequence[Block]) -> Interval:
    """Speed-up from whole runs: exponential of a trimmed mean of per-block log ratios.

    The interval is Student's around the trimmed mean, with the winsorised variance of Tukey and McLaughlin (Sankhya A
    25, 1963), moderated towards what such blocks are known to vary by (see :func:`moderated_interval`).

    Args:
        blocks: at least one; each gives the log of its baseline's time over the geometric mean of its runs' times.

    Returns:
        Baseline time over candidate time; above 1 is faster.

    Raises:
        ValueError: without blocks.
    """
    if not blocks:
        raise ValueError("no blocks to estimate a speed-up from")
    ratios = [
        math.log(block.baseline.total_s) - float(np.mean([math.log(run.total_s) for run in block.runs]))
        for block in blocks
    ]
    return _exponential(trimmed_interval(ratios, _WALL_PRIOR_SD))


def trimmed_interval(values: Sequence[float], prior_sd: float) -> Interval:
    """Trimmed mean with its moderated interval: robust against the few values that a disturbance hit.

    Args:
        values: at least one.
        prior_sd: as for :func:`moderated_interval`.
    """
    ordered = np.sort(values)
    trimmed = int(_TRIM * len(ordered))
    kept = ordered[trimmed : len(ordered) - trimmed]
    winsorised = np.clip(ordered, kept[0], kept[-1])
    # The winsorised spread underestimates; dividing by the share kept corrects it (Yuen 1974).
    deviation = float(np.std(winsorised, ddof=1)) / (1 - 2 * trimmed / len(ordered)) if len(ordered) > 1 else 0.0
    return moderated_interval(float(np.mean(kept)), deviation, len(ordered), len(kept) - 1, prior_sd)


def step_kind_speedup(blocks: Sequence[Block]) -> Interval:
    """Speed-up from the cost of each kind of step, pooled over steps and blocks.

    A run's time is the fixed part (text encoder, VAE, set-up) and the sum of its steps' costs, where the cost of a
    kind is a low quantile of all its step times. The interval resamples blocks and is moderated like the wall one's.

    Args:
        blocks: at least one.

    Returns:
        Baseline time over candidate time; above 1 is faster.

    Raises:
        ValueError: without blocks.
    """
    if not blocks:
        raise ValueError("no blocks to estimate a speed-up from")
    estimate = _log_step_kind_ratio(blocks)
    deviation = 0.0
    if len(blocks) > 1:
        generator = np.random.default_rng(0)
        draws = generator.integers(len(blocks), size=(_BOOTSTRAP_RESAMPLES, len(blocks)))
        resampled = [_log_step_kind_ratio([blocks[index] for index in draw]) for draw in draws]
        # Of one block, so that it is comparable with the prior; the bootstrap's variance is (n - 1) / n too small.
        deviation = float(np.std(resampled)) * math.sqrt(len(blocks) ** 2 / (len(blocks) - 1))
    return _exponential(moderated_interval(estimate, deviation, len(blocks), len(blocks) - 1, _KINDS_PRIOR_SD))


def _log_step_kind_ratio(blocks: Sequence[Block]) -> float:
    baseline = _modelled_seconds([block.baseline for block in blocks])
    candidate = _modelled_seconds([run for block in blocks for run in block.runs])
    return math.log(baseline / candidate)


def kind_costs(runs: Sequence[RunTiming]) -> dict[str, float]:
    """Cost of each kind of step in seconds: the low quantile of its times pooled over ``runs``."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        for kind, step_s in zip(run.kinds, run.step_s, strict=True):
            times[kind].append(step_s)
    return {kind: low_quantile(values) for kind, values in times.items()}


def _modelled_seconds(runs: Sequence[RunTiming]) -> float:
    costs = kind_costs(runs)
    return low_quantile([run.fixed_s for run in runs]) + sum(costs[kind] for kind in runs[0].kinds)


def low_quantile(values: Sequence[float]) -> float:
    """The 10% quantile, median-unbiased (Hyndman and Fan's type 8), so that few values and many estimate the same."""
    ordered = sorted(values)
    position = (len(ordered) + 1 / 3) * COST_QUANTILE + 1 / 3 - 1
    below = min(max(math.floor(position), 0), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    weight = min(max(position - below, 0.0), 1.0)
    return ordered[below] * (1 - weight) + ordered[above] * weight


def moderated_interval(estimate: float, deviation: float, count: int, df: int, prior_sd: float) -> Interval:
    """Student's interval whose variance is moderated by a prior.

    With few samples the sample variance is as noisy as the samples; it is averaged with a variance known beforehand,
    weighted by degrees of freedom (Smyth 2004, "Linear models and empirical Bayes methods", section 4). With many
    samples the prior vanishes.

    Args:
        estimate: the mean.
        deviation: standard deviation of one sample; ignored without degrees of freedom.
        count: samples, at least 1.
        df: degrees of freedom of ``deviation``, at least 0.
        prior_sd: standard deviation of one sample, expected beforehand.
    """
    variance = (_PRIOR_DF * prior_sd**2 + df * deviation**2) / (_PRIOR_DF + df)
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, _PRIOR_DF + df)) * math.sqrt(variance / count)
    return Interval(estimate, estimate - half, estimate + half)


def _exponential(interval: Interval) -> Interval:
    return Interval(math.exp(interval.value), math.exp(interval.low), math.exp(interval.high))


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's 95% interval; an interval of no width for a single value or equal values.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, mean, mean)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)
