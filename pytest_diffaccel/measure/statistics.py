"""Statistics of speed-ups and of quality: estimates with 95% intervals from few, noisy samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pytest_diffaccel.measure.measurement import Block, Interval, MetricFigures, MetricValues

# Two-sided 95%.
_CONFIDENCE = 0.95
# Share of block log ratios trimmed at each end before averaging them.
_TRIM = 0.2
#: Share of a run's steps at each end that count as the nearest of the others. More would see past more disturbance, and
#: be off where a few steps show the other mode of the machine's speed (python -m benchmarks.estimators).
WINSORISED = 0.1
# Disturbance only ever adds time: the low quantile of step times tells of undisturbed ones.
_COST_QUANTILE = 0.10

# What one block's log ratio is expected to vary by before any is seen, and how many degrees of freedom that is worth
# beside several blocks: 0.03 on a quiet machine and 0.12 on one that others use, so few
# (python -m benchmarks.interval_coverage).
_WALL_PRIOR_SD = 0.04
_PRIOR_DF = 1.0
# What one picture varies by around a candidate's mean LPIPS, as a share of it; and the degrees of freedom that this is
# worth, as the share differs between candidates: of the 973 winners recorded so far, of 8 and 32 pictures each.
_LOSS_PRIOR_SHARE = 0.6
_LOSS_PRIOR_DF = 3.0
# By how much a change's interval is widened for every unit of its differences' skewness, over the root of their number:
# Student's is too narrow where a few pictures lose much more than the others (python -m benchmarks.metric_changes).
_SKEWNESS_WIDENS = 0.5


def wall_speedup(blocks: Sequence[Block], confidence: float = _CONFIDENCE) -> Interval:
    """Speed-up from whole runs: exponential of a trimmed mean of per-block log ratios.

    Args:
        blocks: at least one; each gives the log of its baseline's time over the geometric mean of its runs' times.
        confidence: of its interval, between 0 and 1.

    Returns:
        Baseline time over candidate time; above 1 is faster. Its interval is that of :func:`trimmed_mean`.

    Raises:
        ValueError: without blocks.
    """
    if not blocks:
        raise ValueError("no blocks to estimate a speed-up from")
    ratios = [
        math.log(block.baseline.total_s) - float(np.mean([math.log(run.total_s) for run in block.runs]))
        for block in blocks
    ]
    return ratio_interval(*trimmed_mean(ratios, confidence=confidence))


def ratio_interval(log_ratio: float, half: float) -> Interval:
    """A ratio with its interval, of its logarithm and half the width of that one's."""
    return Interval(math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half))


def trimmed_mean(
    values: ArrayLike, prior_sd: ArrayLike = _WALL_PRIOR_SD, confidence: float = _CONFIDENCE
) -> tuple[Any, Any]:
    """Trimmed mean along the last axis and half the width of its interval, (..., n) to (...) each.

    Robust against the few values that a disturbance hit: Student's interval with the winsorised variance (Yuen,
    Biometrika 61, 1974), moderated towards what such values are known to vary by (:func:`half_width`).

    Args:
        values: at least one.
        prior_sd: what one value is expected to vary by, a number or (...); that of the logarithm of a block's wall
            ratio.
        confidence: of the interval, between 0 and 1.
    """
    array = np.asarray(values, dtype=float)
    count, kept = array.shape[-1], middle(array)
    winsorised = np.clip(array, kept[..., :1], kept[..., -1:])
    deviation = np.zeros(array.shape[:-1])
    if count > 1:
        # The winsorised spread underestimates that of one value of as many as are kept.
        most = middle_count(count)
        deviation = np.std(winsorised, axis=-1, ddof=1) * math.sqrt(count * (count - 1) / (most * (most - 1)))
    half = half_width(deviation, count, middle_count(count) - 1, prior_sd, confidence=confidence)
    return np.mean(kept, axis=-1), half


def middle_count(count: int) -> int:
    """How many of ``count`` values :func:`middle` keeps."""
    return count - 2 * int(_TRIM * count)


def middle(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What trimming keeps along the last axis, in order, (..., n) to (..., :func:`middle_count` of n)."""
    count = values.shape[-1]
    cut = (count - middle_count(count)) // 2
    return np.sort(values, axis=-1)[..., cut : count - cut]


def winsorised_mean(values: Sequence[float]) -> float:
    """Mean of at least one value, of which a tenth at each end counts as the nearest of the others."""
    ordered = sorted(values)
    cut = round(WINSORISED * len(ordered))
    inner = ordered[cut : len(ordered) - cut]
    return (sum(inner) + cut * (inner[0] + inner[-1])) / len(ordered)


def low_quantile(values: ArrayLike) -> Any:
    """The 10% quantile along the last axis, (..., n) to (...), median-unbiased so that few values and many estimate the
    same (Hyndman and Fan 1996, type 8).
    """
    # np.quantile(..., method="median_unbiased") says the same, but takes 20 µs instead of 0.4 for the steps of a run.
    array = np.asarray(values, dtype=float)
    if array.ndim == 1:
        return low_quantile_of(array.tolist())
    below, above, weight = _low_place(array.shape[-1])
    ordered = np.partition(array, (below, above), axis=-1)
    return ordered[..., below] * (1 - weight) + ordered[..., above] * weight


def low_quantile_of(values: Sequence[float]) -> float:
    """The same of one row of plain numbers, at least one, which is quicker for the few that a run has."""
    below, above, weight = _low_place(len(values))
    ordered = sorted(values)
    return ordered[below] * (1 - weight) + ordered[above] * weight


@cache
def _low_place(count: int) -> tuple[int, int, float]:
    """Between which of ``count`` ordered values the low quantile lies, and the second one's weight."""
    position = (count + 1 / 3) * _COST_QUANTILE + 1 / 3 - 1
    below = min(max(math.floor(position), 0), count - 1)
    return below, min(below + 1, count - 1), min(max(position - below, 0.0), 1.0)


def half_width(
    deviation: ArrayLike,
    count: int,
    df: Any,
    prior_sd: ArrayLike,
    prior_df: float = _PRIOR_DF,
    confidence: float = _CONFIDENCE,
) -> Any:
    """Half the width of Student's interval of a mean whose variance is moderated by a prior.

    With few samples the sample variance is as noisy as the samples; it is averaged with a variance known beforehand,
    weighted by degrees of freedom (Smyth 2004, "Linear models and empirical Bayes methods", section 4). With many
    samples the prior vanishes.

    Args:
        deviation: standard deviation of one sample, of any shape; ignored without degrees of freedom.
        count: samples, at least 1.
        df: degrees of freedom of ``deviation``, at least 0; one number, or of its shape.
        prior_sd: standard deviation of one sample, expected beforehand; one number, or of the shape of ``deviation``.
        prior_df: how many degrees of freedom that is worth, above 0.
        confidence: of the interval, between 0 and 1.
    """
    variance = (prior_df * np.square(prior_sd) + df * np.square(deviation)) / (prior_df + df)
    return stats.t.ppf((1 + confidence) / 2, prior_df + df) * np.sqrt(variance / count)


def loss_interval(losses: Sequence[float]) -> Interval:
    """Mean LPIPS of at least one picture with its 95% interval, which reaches no further down than 0.

    Of one picture it is what pictures of one candidate are known to vary by.

    Raises:
        ValueError: without losses.
    """
    if len(losses) == 1:
        half = float(half_width(0.0, 1, 0, _LOSS_PRIOR_SHARE * losses[0], _LOSS_PRIOR_DF))
        return Interval(losses[0], max(0.0, losses[0] - half), losses[0] + half)
    mean = mean_interval(losses)
    return Interval(mean.value, max(0.0, mean.low), mean.high)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's 95% interval, of at least two values; equal ones give an interval of no width.

    Raises:
        ValueError: for fewer values: one says nothing of what it varies by.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no interval; at least 2 are needed")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def metric_figures(metric: MetricValues) -> MetricFigures:
    """A secondary metric's mean and its change from the unaccelerated pictures', as far as they are known."""
    if len(metric.values) < 2:
        return MetricFigures(metric.values[0])
    mean = mean_interval(metric.values)
    change = None if metric.baseline is None else relative_change(metric.values, metric.baseline)
    return MetricFigures(mean.value, (mean.low, mean.high), change)


def relative_change(values: Sequence[float], baseline: Sequence[float]) -> Interval | None:
    """By which share of its mean a metric changes from the unaccelerated pictures', with its 95% interval.

    That mean is an estimate as well, so the interval is Fieller's for the ratio of the mean difference to it (Fieller,
    JRSS B 16, 1954), widened for skewed differences. Values below 0 change by a share of the mean's size.

    Args:
        values: of the accelerated pictures.
        baseline: of the unaccelerated picture at the place of each, as many.

    Returns:
        Above 0 where the metric grows. None for fewer than two pictures, and where the unaccelerated pictures' mean is
        not surely another than 0: a share of it would say nothing.

    Raises:
        ValueError: when the numbers differ.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)}")
    count = len(values)
    if count < 2:
        return None
    before = np.asarray(baseline, dtype=float)
    differences = np.asarray(values, dtype=float) - before
    size, difference = float(np.mean(before)), float(np.mean(differences))
    covariance = np.cov(differences, before) / count
    far = _skew_widened(differences, before, count) * float(stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1))
    least = size**2 - far**2 * float(covariance[1, 1])
    if least <= 0:
        return None
    middle = size * difference - far**2 * float(covariance[0, 1])
    reach = math.sqrt(max(0.0, middle**2 - least * (difference**2 - far**2 * float(covariance[0, 0]))))
    sign = math.copysign(1.0, size)
    value = sign * difference / size
    low, high = sorted((sign * (middle - reach) / least, sign * (middle + reach) / least))
    return Interval(value, min(low, value), max(high, value))


def _skew_widened(differences: NDArray[np.float64], before: NDArray[np.float64], count: int) -> float:
    """How many times as wide as Student's an interval of the change is."""
    residuals = differences - np.mean(differences) / np.mean(before) * before if np.mean(before) else differences
    residuals = residuals - np.mean(residuals)
    spread = float(np.sqrt(np.mean(residuals**2)))
    skewness = float(np.mean((residuals / spread) ** 3)) if spread > 0 else 0.0
    return 1 + _SKEWNESS_WIDENS * abs(skewness) / math.sqrt(count)
