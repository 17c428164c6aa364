"""The metric that decides which candidate wins: what a search minimises, and how bad a winner may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.lpips import Lpips

#: The metric that decides unless another one is named, and that all pictures get anyway.
LPIPS = "lpips"
#: Loss beyond which a picture counts as another one; LPIPS of unrelated pictures of the embedded pipelines is near 0.5.
DEFAULT_MAX_LOSS = 0.25


@dataclass(frozen=True)
class QualityRule:
    """What decided a search, as records keep it: enough to tell who is better, without the metric itself.

    Attributes:
        metric: its name.
        worst: the worst mean value that a winner may have.
        higher_is_better: whether more is better.
    """

    metric: str
    worst: float
    higher_is_better: bool

    @property
    def shown(self) -> str:
        """The metric's name as sentences have it."""
        return "LPIPS" if self.metric == LPIPS else self.metric

    def values(self, measurement: Measurement) -> tuple[float, ...]:
        """The metric of each of a measurement's pictures; none where it was not computed."""
        if self.metric == LPIPS:
            return measurement.quality.lpips_per_sample
        known = measurement.metrics.get(self.metric)
        return known.values if known else ()

    def value(self, measurement: Measurement) -> float | None:
        """Their mean; None where it was not computed."""
        if self.metric == LPIPS:
            return measurement.quality.lpips.value
        values = self.values(measurement)
        return fmean(values) if values else None

    def cost(self, measurement: Measurement) -> float:
        """What sorts measurements, the best first; those in which it was not computed are last."""
        return self.cost_of(self.value(measurement))

    def cost_of(self, value: float | None) -> float:
        """The same of a value."""
        if value is None:
            return math.inf
        return -value if self.higher_is_better else value

    def allows(self, measurement: Measurement) -> bool:
        """Whether a winner may be as bad."""
        return self.cost(measurement) <= self.cost_of(self.worst)

    def figure(self, value: float | None, decimals: int) -> str:
        """A value: LPIPS to so many decimals, others to as many digits."""
        if value is None:
            return "not computed"
        return f"{value:.{decimals}f}" if self.metric == LPIPS else f"{value:.{decimals}g}"

    def better(self, one: float, other: float | None) -> float:
        """The better of two values."""
        if other is None:
            return one
        return max(one, other) if self.higher_is_better else min(one, other)

    @property
    def too_bad(self) -> str:
        """What no winner may be, in words: ``LPIPS above 0.25``."""
        return f"{self.shown} {'below' if self.higher_is_better else 'above'} {self.worst:g}"


@dataclass(frozen=True, eq=False)
class Deciding:
    """The metric that decides a search. Those of equal rules are equal.

    Attributes:
        metric: compares with the unaccelerated pictures.
        worst: the worst mean value that a winner may have.
    """

    metric: Metric
    worst: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Deciding) and self.rule == other.rule

    def __hash__(self) -> int:
        return hash(self.rule)

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric.name

    @property
    def is_lpips(self) -> bool:
        """Whether it is the one that decides by default."""
        return self.name == LPIPS

    @property
    def max_loss(self) -> float:
        """The largest mean loss (:meth:`.Metric.loss`) that a winner may have."""
        return self.metric.loss(self.worst)

    @cached_property
    def rule(self) -> QualityRule:
        """The same for records."""
        return QualityRule(self.name, self.worst, self.metric.higher_is_better)

    def losses(self, measurement: Measurement) -> tuple[float, ...]:
        """How much each picture lost, of a measurement that has the metric."""
        if self.is_lpips:
            return measurement.quality.lpips_per_sample
        return tuple(map(self.metric.loss, self.rule.values(measurement)))

    def value_text(self, loss: float) -> str:
        """The metric's value at a mean loss: LPIPS to four decimals, others to four digits.

        What is expected of a candidate may lose more than any picture can; then it is the worst value there is.
        """
        value = loss if self.is_lpips else self.metric.value_at(loss)
        return self.rule.figure(min(max(value, self.metric.lowest), self.metric.highest), 4)


#: What decides by default.
BY_LPIPS = Deciding(Lpips(), DEFAULT_MAX_LOSS)
