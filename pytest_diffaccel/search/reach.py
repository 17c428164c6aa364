"""Whether a speed-up that is known with an interval reaches a target."""

from __future__ import annotations

import math

from scipy.special import ndtr

from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.select import SPEED_TOLERANCE

#: A speed-up predicted less well than this gets the benefit of its interval.
VAGUE_SPEEDUP = 0.06
_NORMAL_95 = 1.96


def may_reach(speedup: Interval, target: float) -> bool:
    """Whether it may reach the target."""
    return speedup.high >= target * (1 - SPEED_TOLERANCE)


def is_borderline(speedup: Interval, target: float) -> bool:
    """Whether it is open if it reaches the target."""
    return speedup.low < target * (1 - SPEED_TOLERANCE) <= speedup.high


def probability(speedup: Interval, target: float) -> float:
    """That the speed-up will be found to reach the target; 1 where it may and too little is known to say."""
    if speedup.half_width_ratio > VAGUE_SPEEDUP:
        return float(may_reach(speedup, target))
    sd = math.log(speedup.high / speedup.low) / (2 * _NORMAL_95)
    distance = math.log(speedup.value / (target * (1 - SPEED_TOLERANCE)))
    return float(ndtr(distance / sd - _NORMAL_95)) if sd > 0 else float(distance >= 0)
