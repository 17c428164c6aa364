"""What ``--metrics``, ``--bound`` and ``--gate-quality`` name: metrics that are known, and bounds that mean something
for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pytest_diffaccel.measure.bounds import MetricBound
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.settings.gate_options import DEFAULT_QUALITY
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.words import meant

#: The metric that decides, and that every picture gets anyway.
DECIDING = "lpips"
_BOUND = re.compile(r"\s*(?P<metric>[^=\s]+)\s*=\s*(?P<change>[+-]?[\d.]+)\s*(?P<percent>%?)\s*")
_EXAMPLE = "write a metric and the largest change, such as clip_score=-5%"


def chosen_metrics(
    names: Sequence[str] | None, bounds: Sequence[str] | None, samples: int, registry: MetricRegistry | None = None
) -> tuple[tuple[str, ...], tuple[MetricBound, ...]]:
    """The metrics that are asked for, those of the bounds among them, and the bounds.

    Args:
        names: what ``--metrics`` was given, each a name or several with commas; None for nothing.
        bounds: what ``--bound`` was given; None for nothing.
        samples: pictures of a winner.
        registry: the metrics known; None for the built-in ones.

    Returns:
        Names in the registry's order, without the metric that decides; and bounds in the order of their metrics.

    Raises:
        OptionError: naming the bad value and the valid ones.
    """
    if not names and not bounds:
        return (), ()
    known = registry or MetricRegistry()
    made: dict[str, MetricBound] = {}
    for text in bounds or ():
        bound = _bound(text, known, samples)
        if bound.metric in made:
            raise OptionError(f"--bound: {bound.metric} is bounded twice: {made[bound.metric]} and {bound}; keep one")
        made[bound.metric] = bound
    asked = [part.strip() for text in names or () for part in text.split(",") if part.strip()]
    chosen = {*(_metric("--metrics", name, known).name for name in asked), *made} - {DECIDING}
    ordered = [name for name in known.names if name in chosen]
    return tuple(ordered), tuple(made[name] for name in ordered if name in made)


def losses_that_matter(
    given: Sequence[tuple[str, float]] | None, registry: MetricRegistry | None = None
) -> dict[str, float]:
    """The smallest relative loss that matters to the gate, by metric in the registry's order; LPIPS is always one.

    Args:
        given: what ``--gate-quality`` was given, by name, which is empty for LPIPS; None for nothing.
        registry: the metrics known; None for the built-in ones.

    Raises:
        OptionError: naming the bad value and the valid ones.
    """
    if not given:
        return {DECIDING: DEFAULT_QUALITY}
    known = registry or MetricRegistry()
    made: dict[str, float] = {}
    for name, smallest in given:
        metric = _metric("--gate-quality", name or DECIDING, known).name
        if metric in made:
            twice = f"{100 * made[metric]:g}% and {100 * smallest:g}%"
            raise OptionError(f"--gate-quality: {metric} is given twice: {twice}; keep one")
        made[metric] = smallest
    made.setdefault(DECIDING, DEFAULT_QUALITY)
    return {name: made[name] for name in known.names if name in made}


def _metric(option: str, name: str, known: MetricRegistry) -> Metric:
    if name not in known:
        near = meant(name, {other: other for other in known.names})
        raise OptionError(f"{option}: there is no metric {name!r}{near}; choose from {', '.join(known.names)}")
    return known[name]


def _bound(text: str, known: MetricRegistry, samples: int) -> MetricBound:
    found = _BOUND.fullmatch(text)
    change = _change(found["change"], found["percent"]) if found else math.nan
    if found is None or not math.isfinite(change):
        raise OptionError(f"--bound: {text!r} is no bound; {_EXAMPLE}")
    metric = _metric("--bound", found["metric"], known)
    bound = MetricBound(metric.name, change, metric.higher_is_better)
    if metric.needs_references:
        instead = "--max-quality-loss bounds it" if metric.name == DECIDING else f"bound one of {_boundable(known)}"
        raise OptionError(
            f"--bound: {metric.name} compares with the unaccelerated pictures, so it has no change from them; {instead}"
        )
    if (change > 0) if metric.higher_is_better else (change < 0):
        better, right = ("more", "-") if metric.higher_is_better else ("less", "+")
        raise OptionError(
            f"--bound: {text!r} bounds the wrong side: {better} of {metric.name} is better, so write "
            f"{MetricBound(metric.name, -change, metric.higher_is_better)} for a change of at most {right}"
            f"{abs(100 * change):g}%"
        )
    if change <= -1:
        raise OptionError(f"--bound: {text!r} bounds nothing: nothing is left after {100 * change:g}%; {_EXAMPLE}")
    if samples < 2:
        raise OptionError("--bound: the change of a single picture has no interval; give --num-samples 2 or more")
    return bound


def _change(number: str, percent: str) -> float:
    """The share that a number is, of hundredths where it is a percentage; NaN for what is none."""
    try:
        value = float(number)
    except ValueError:
        return math.nan
    return value / 100 if percent else value


def _boundable(known: MetricRegistry) -> str:
    return ", ".join(metric.name for metric in known if not metric.needs_references) or "your own that do not"
