"""What is found out in an environment, and is no part of what it is: what a loss means there, what its stack gains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from pytest_diffaccel.measure.measurement import Interval

# Half of the interval of what a stack gains, as a share of it, beyond which another session tries to know it better.
_VAGUE = 0.025
#: What people read of an environment on a terminal, and in scripts.
Word = Annotated[str, Field(pattern=r"\A[\w .,()+-]{0,100}\z")]


@dataclass(frozen=True)
class QualityScale:
    """What LPIPS means in an environment: mean LPIPS to the unaccelerated images, over one batch.

    Attributes:
        repeat: of the same images made again.
        batch: of the same images made one by one.
        one_ulp: of images whose start noise is one unit in the last place larger.
        unrelated: of images of the same prompts with other seeds.
        alone_share: time of a call that draws one image, as a share of the whole batch's: what small calls are worth;
            1 where an older version of this program did not look.
    """

    repeat: float
    batch: float
    one_ulp: float
    unrelated: float
    alone_share: float = 1.0

    @property
    def noise_floor(self) -> float:
        """Below this, a loss is not one."""
        return max(self.repeat, self.batch, self.one_ulp)


@dataclass(frozen=True)
class OverEager:
    """How many times as fast the unaccelerated pipeline is on its stack as on the eager one.

    Attributes:
        scheduler: it was timed with.
        steps: of the generations that were timed.
        measured_at: when a session tried last to know it better, seconds since the epoch.
        wall: by whole generations, with its 95% interval.
        device: by the GPU's own time; None where that was not read.
    """

    scheduler: Word
    steps: int
    measured_at: float
    wall: Interval
    device: Interval | None = None

    def __post_init__(self) -> None:
        for one in (self.wall, self.device):
            if one is not None and not 0 < one.low <= one.value <= one.high:
                raise ValueError(f"{one} is no interval of a speed-up")

    def is_known(self, began_at: float) -> bool:
        """Whether it is known well, or was tried since ``began_at``, seconds since the epoch."""
        return self.wall.half_width_ratio <= _VAGUE or self.measured_at >= began_at

    def speedup(self, over_stack: Interval) -> Interval:
        """Over the eager pipeline by the wall clock, of a speed-up over the stack: both errors count.

        What a stack gains is measured at one number of steps, and taken for the same at others.
        """
        value = over_stack.value * self.wall.value
        if over_stack.low <= 0:  # nothing is known below
            return Interval(value, 0.0, over_stack.high * self.wall.high)

        def end(name: str) -> float:
            parts = (math.log(getattr(one, name) / one.value) for one in (over_stack, self.wall))
            return math.hypot(*parts)

        return Interval(value, value * math.exp(-end("low")), value * math.exp(end("high")))


def better_known(*gains: OverEager | None) -> OverEager | None:
    """The one whose interval is the narrowest, with when the last one was measured."""
    known = [gain for gain in gains if gain is not None]
    if not known:
        return None
    best = min(known, key=lambda gain: gain.wall.half_width_ratio)
    return replace(best, measured_at=max(gain.measured_at for gain in known))
