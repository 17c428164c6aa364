"""How far a training is, and the learning rate at that point."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP_STEPS = 200


@dataclass(frozen=True)
class Budget:
    """The end of a training: after so many steps, or after so many minutes of training, whichever comes first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a training needs an end: give steps, minutes, or both")

    def fraction(self, step: int, elapsed_s: float) -> float:
        """The spent part of the budget, 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = elapsed_s / (60 * self.minutes) if self.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def left_s(self, step: int, elapsed_s: float, step_s: float) -> float:
        """Seconds of training until the end, where a step takes ``step_s``; whichever of the two ends comes first."""
        by_steps = (self.steps - step) * step_s if self.steps else math.inf
        by_time = 60 * self.minutes - elapsed_s if self.minutes else math.inf
        return max(min(by_steps, by_time), 0.0)


def learning_rate(peak: float, step: int, fraction: float) -> float:
    """Linear warm-up over the first steps, under a cosine over the budget that ends at a hundredth of the peak."""
    warm = min((step + 1) / WARM_UP_STEPS, 1.0)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fraction)))
