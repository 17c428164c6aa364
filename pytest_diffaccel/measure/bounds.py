"""Bounds on secondary metrics: by how much pictures may change from the unaccelerated ones, and whether they surely do
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pytest_diffaccel.measure.measurement import Interval, MetricFigures

#: Whether a candidate surely keeps its bounds, surely breaks one, or neither.
Kept: TypeAlias = Literal["kept", "broken", "open"]

_DECIMALS = 6


@dataclass(frozen=True)
class MetricBound:
    """The largest change of a metric that a winner may show, judged by the end of the change's interval.

    Attributes:
        metric: the metric's name.
        change: that change, as a share of the unaccelerated pictures' mean: at most 0 where more is better, and the
            metric may fall so far; else at least 0.
        higher_is_better: whether more is better.
        by_mean: whether the change itself is judged, without its interval.
    """

    metric: str
    change: float
    higher_is_better: bool
    by_mean: bool = False

    def __str__(self) -> str:
        """As ``--bound`` spells it."""
        return f"{self.metric}={100 * self.change:+.6g}%{' in the mean' if self.by_mean else ''}"

    def judge(self, change: Interval | None) -> Kept:
        """Whether a change surely keeps within it; one that is not known does not."""
        if change is None:
            return "open"
        if self.by_mean:
            # Beyond these decimals a change of exactly the bound would be more by rounding.
            value = round(change.value, _DECIMALS)
            change = Interval(value, value, value)
        # Both as losses, which may be as large as the bound.
        low, high = (-change.high, -change.low) if self.higher_is_better else (change.low, change.high)
        most = -self.change if self.higher_is_better else self.change
        return "kept" if high <= most else "broken" if low > most else "open"


@dataclass(frozen=True)
class Barring:
    """Why a verified candidate cannot win.

    Attributes:
        is_broken: whether it surely breaks a bound; else it does not surely keep one.
        text: which bound, and by how much, in words.
    """

    is_broken: bool
    text: str


def barring(bounds: Iterable[MetricBound], figures: Mapping[str, MetricFigures]) -> Barring | None:
    """Why a candidate cannot win within bounds; None where it keeps all of them.

    Args:
        bounds: those to keep.
        figures: its secondary metrics by name.
    """
    kept = [(bound, bound.judge(figures[bound.metric].change if bound.metric in figures else None)) for bound in bounds]
    broken = [bound for bound, verdict in kept if verdict == "broken"]
    unsure = [bound for bound, verdict in kept if verdict == "open"]
    if not broken and not unsure:
        return None
    words = "breaks" if broken else "does not surely keep"
    said = [f"{words} {bound}: {change_text(figures.get(bound.metric))}" for bound in broken or unsure]
    return Barring(bool(broken), "; ".join(said))


def change_text(figures: MetricFigures | None) -> str:
    """A change in words, ``-3.1% [-4.0%, -2.2%]``, to a tenth of a percent."""
    if figures is None:
        return "its change is not known"
    if figures.change is None:
        return "its change is not known, as the unaccelerated pictures' mean may be 0"
    change = figures.change
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
