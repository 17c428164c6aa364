"""Under which conditions a case was timed: what disturbed its blocks, whether they drifted, what the GPU waited for."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from scipy import stats

from pytest_diffaccel.gate.speed import Timed
from pytest_diffaccel.gate.verdict import percent
from pytest_diffaccel.measure.busy_clock import LAUNCH_BOUND_SHARE
from pytest_diffaccel.words import counted

# A trend less certain than this is noise; one smaller than this does not matter.
_TREND_P, _TREND_RATIO = 0.01, 0.02


def conditions(timed: Timed) -> list[str]:
    """Notes on what could make a verdict doubtful; empty when nothing was seen."""
    notes = []
    seen = Counter(block.disturbance for block in timed.blocks if block.disturbance)
    if seen:
        commonest = seen.most_common(1)[0][0]
        notes.append(f"disturbed: {seen.total()} of {counted(len(timed.blocks), 'block')} ({commonest})")
    for name, values in (
        ("unaccelerated runs", np.log([figure.baseline_s for figure in timed.figures])),
        ("speed-ups", timed.log_speedups),
    ):
        drift = _drift(np.asarray(values))
        if drift is not None:
            notes.append(f"{name} drifted by {percent(math.expm1(drift))} from the first block to the last")
    return notes


def launch_bound(share: float) -> str:
    """A note on a GPU that waits for the host; empty when it hardly does.

    Args:
        share: of the wall time of a run, during which the GPU worked.
    """
    if share >= LAUNCH_BOUND_SHARE:
        return ""
    return f"launch-bound: the GPU was busy for {share:.0%} of a run, so that the host's speed counts too"


def _drift(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    """Change from the first to the last by a straight line; None when there is none to speak of."""
    if len(values) < 4 or np.ptp(values) == 0:
        return None
    line = stats.linregress(np.arange(len(values)), values)
    whole = float(line.slope) * (len(values) - 1)
    return whole if line.pvalue < _TREND_P and abs(whole) > _TREND_RATIO else None
