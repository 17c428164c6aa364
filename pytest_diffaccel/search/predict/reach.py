"""Whether a speed-up that is known with an interval reaches a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from pytest_diffaccel.matrix import TARGETS
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.predict.regression import Array

#: The lower end of a winner's interval may miss its target by this share of it: about half an interval's width, so that
#: the speed-up itself seldom does.
SPEED_TOLERANCE = 0.02
#: A speed-up predicted less well than this is vague: timing will narrow it before it decides.
VAGUE_SPEEDUP = 0.06
_NORMAL_95 = 1.96
# Of the logarithm of a speed-up that is known exactly: keeps what is divided by it finite.
_LEAST_SD = 1e-9
# How far an interval reaches to either side after several blocks, as a logarithm; a chance below this is none.
_TIMED_HALF_WIDTH, _SOME_CHANCE = 0.025, 0.1


def reaches(speedup: Interval, target: float) -> bool:
    """Whether it surely reaches the target: the lower end of its interval, less the tolerance."""
    return speedup.low >= target * (1 - SPEED_TOLERANCE)


def may_reach(speedup: Interval, target: float) -> bool:
    """Whether it may reach the target."""
    return speedup.high >= target * (1 - SPEED_TOLERANCE)


def is_borderline(speedup: Interval, target: float) -> bool:
    """Whether it is open if it reaches the target."""
    return may_reach(speedup, target) and not reaches(speedup, target)


def is_open(speedup: Interval) -> bool:
    """Whether it is open if it reaches some target."""
    return any(is_borderline(speedup, target) for target in TARGETS)


def timing_may_show(speedup: Interval, target: float) -> bool:
    """Whether it is open if it reaches the target, and timing has some chance to show that it does."""
    if not is_borderline(speedup, target):
        return False
    sd = math.log(speedup.high / speedup.low) / (2 * _NORMAL_95)
    needed = math.log(target * (1 - SPEED_TOLERANCE)) + _TIMED_HALF_WIDTH
    return bool(ndtr((math.log(speedup.value) - needed) / sd) >= _SOME_CHANCE)


def probabilities(speedups: Sequence[Interval], targets: Sequence[float], *, by_mean: bool = False) -> Array:
    """That each speed-up will be found to reach each target, (speed-ups, targets): that it surely does by its interval,
    or, where that is vague, that it does. By the mean, a speed-up reaches a target that it is not below itself.
    """
    low, value, high = (np.log([[getattr(speedup, end)] for speedup in speedups]) for end in ("low", "value", "high"))
    needed = np.log(np.array(targets) * (1.0 if by_mean else 1 - SPEED_TOLERANCE))
    sd = np.maximum((high - low) / (2 * _NORMAL_95), _LEAST_SD)
    vague = np.array([[speedup.half_width_ratio > VAGUE_SPEEDUP] for speedup in speedups])
    margin = np.where(vague | by_mean, 0.0, _NORMAL_95)
    found: Array = np.where(vague & (high < needed), 0.0, ndtr((value - needed) / sd - margin))
    return found
