"""What ``--quality``, ``--metrics``, ``--bound`` and ``--gate-quality`` name: metrics that are known, and bounds that
mean something for them.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Collection, Sequence

from pytest_diffaccel.measure.bounds import MetricBound
from pytest_diffaccel.measure.deciding import DEFAULT_MAX_LOSS, LPIPS, Deciding
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.rules import DIFFBENCH, DIFFBENCH_LOSS, DIFFBENCH_METRIC
from pytest_diffaccel.settings.gate_options import DEFAULT_QUALITY
from pytest_diffaccel.settings.option_types import OptionError, number, positive
from pytest_diffaccel.words import meant

_BOUND = re.compile(r"\s*(?P<metric>[^=\s]+)\s*=\s*(?P<change>[+-]?[\d.]+)\s*(?P<percent>%?)\s*")
_EXAMPLE = "write a metric and the largest change, such as clip_score=-5%"


def deciding_metric(name: str | None, worst: str | None, registry: MetricRegistry | None = None) -> Deciding:
    """The metric that decides, and how bad a winner may be.

    Args:
        name: what ``--quality`` was given; None for LPIPS.
        worst: what ``--max-quality-loss`` was given; None for what is as bad as LPIPS 0.25.
        registry: the metrics known; None for the built-in ones.

    Raises:
        OptionError: naming the bad value and the valid ones.
    """
    known = registry or MetricRegistry()
    metric = _metric("--quality", LPIPS if name is None else name, known)
    if not metric.needs_references:
        bound = MetricBound(metric.name, -0.05 if metric.higher_is_better else 0.05, metric.higher_is_better)
        raise OptionError(
            f"--quality: {metric.name} does not compare with the unaccelerated pictures, so it cannot decide: a black "
            f"picture can outscore a good one; choose from {_deciders(known)}, and keep {metric.name} by a bound: "
            f"--bound {bound}"
        )
    if not math.isfinite(metric.best):
        end = "highest" if metric.higher_is_better else "lowest"
        raise OptionError(
            f"--quality: {metric.name} does not say what a picture scores that equals the unaccelerated one; give its "
            f"class that value as {end}, or choose from {_deciders(known)}"
        )
    return Deciding(metric, metric.value_at(DEFAULT_MAX_LOSS) if worst is None else _worst(worst, metric))


def _worst(text: str, metric: Metric) -> float:
    if metric.name == LPIPS:
        try:
            return positive(text)
        except ArgumentTypeError as error:
            raise OptionError(f"--max-quality-loss: {error}") from error
    value = number(text)
    if not (math.isfinite(value) and metric.lowest <= value <= metric.highest and metric.loss(value) > 0):
        worst = metric.lowest if metric.higher_is_better else metric.highest
        end = f", at {'least' if metric.higher_is_better else 'most'} {worst:g}" if math.isfinite(worst) else ""
        raise OptionError(
            f"--max-quality-loss: {text!r} is no mean {metric.name} that a winner may be as bad as; write a number "
            f"{'below' if metric.higher_is_better else 'above'} {metric.best:g}{end}"
        )
    return value


def _deciders(known: MetricRegistry) -> str:
    return ", ".join(metric.name for metric in known if metric.needs_references and math.isfinite(metric.best))


def chosen_metrics(
    names: Sequence[str] | None,
    bounds: Sequence[str] | None,
    samples: int,
    registry: MetricRegistry | None = None,
    quality: str = LPIPS,
    *,
    diffbench: bool = False,
) -> tuple[tuple[str, ...], tuple[MetricBound, ...]]:
    """The metrics that are asked for beside LPIPS, which every picture gets: also those of the bounds and what decides.

    Args:
        names: what ``--metrics`` was given, each a name or several with commas; None for nothing.
        bounds: what ``--bound`` was given; None for nothing.
        samples: pictures of a winner.
        registry: the metrics known; None for the built-in ones.
        quality: the metric that decides.
        diffbench: whether DiffBench's rule decides, which bounds a metric by itself.

    Returns:
        Names in the registry's order, and bounds in the order of their metrics.

    Raises:
        OptionError: naming the bad value and the valid ones.
    """
    if not names and not bounds and quality == LPIPS and not diffbench:
        return (), ()
    known = registry or MetricRegistry()
    made: dict[str, MetricBound] = {}
    for text in bounds or ():
        bound = _bound(text, known, samples, quality)
        if bound.metric in made:
            raise OptionError(f"--bound: {bound.metric} is bounded twice: {made[bound.metric]} and {bound}; keep one")
        made[bound.metric] = bound
    if diffbench:
        if DIFFBENCH_METRIC in made:
            raise OptionError(f"--bound: --rule diffbench bounds {DIFFBENCH_METRIC} itself, to -5%; leave one out")
        _refuse_single("--rule diffbench", samples)
        made[DIFFBENCH_METRIC] = MetricBound(DIFFBENCH_METRIC, -DIFFBENCH_LOSS, higher_is_better=True, by_mean=True)
    asked = [part.strip() for text in names or () for part in text.split(",") if part.strip()]
    chosen = {*(_metric("--metrics", name, known).name for name in asked), *made, quality} - {LPIPS}
    ordered = [name for name in known.names if name in chosen]
    return tuple(ordered), tuple(made[name] for name in ordered if name in made)


def deciding_options(qualities: Collection[str], rules: Collection[str]) -> list[str]:
    """The options of a search that decides as records were decided; none where that is as usual, or differs.

    Args:
        qualities: the metrics that decided them.
        rules: the rules that did.
    """
    metrics = {*qualities} - {LPIPS} if len({*qualities}) == 1 else ()
    by_rule = ["--rule", DIFFBENCH] if {*rules} == {DIFFBENCH} else []
    return [*(part for name in metrics for part in ("--quality", name)), *by_rule]


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
        return {LPIPS: DEFAULT_QUALITY}
    known = registry or MetricRegistry()
    made: dict[str, float] = {}
    for name, smallest in given:
        metric = _metric("--gate-quality", name or LPIPS, known).name
        if metric in made:
            twice = f"{100 * made[metric]:g}% and {100 * smallest:g}%"
            raise OptionError(f"--gate-quality: {metric} is given twice: {twice}; keep one")
        made[metric] = smallest
    made.setdefault(LPIPS, DEFAULT_QUALITY)
    return {name: made[name] for name in known.names if name in made}


def _metric(option: str, name: str, known: MetricRegistry) -> Metric:
    if name not in known:
        near = meant(name.lower(), {other.lower(): other for other in known.names})
        raise OptionError(f"{option}: there is no metric {name!r}{near}; choose from {', '.join(known.names)}")
    return known[name]


def _bound(text: str, known: MetricRegistry, samples: int, quality: str) -> MetricBound:
    found = _BOUND.fullmatch(text)
    change = _change(found["change"], found["percent"]) if found else math.nan
    if found is None or not math.isfinite(change):
        raise OptionError(f"--bound: {text!r} is no bound; {_EXAMPLE}")
    metric = _metric("--bound", found["metric"], known)
    bound = MetricBound(metric.name, change, metric.higher_is_better)
    if metric.needs_references:
        decide = f"let it decide, --quality {metric.name} --max-quality-loss VALUE, or bound {_boundable(known)}"
        instead = "--max-quality-loss bounds it" if metric.name == quality else decide
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
    _refuse_single("--bound", samples)
    return bound


def _refuse_single(option: str, samples: int) -> None:
    if samples < 2:
        raise OptionError(f"{option}: the change of a single picture has no interval; give --num-samples 2 or more")


def _change(number: str, percent: str) -> float:
    """The share that a number is, of hundredths where it is a percentage; NaN for what is none."""
    try:
        value = float(number)
    except ValueError:
        return math.nan
    return value / 100 if percent else value


def _boundable(known: MetricRegistry) -> str:
    return ", ".join(metric.name for metric in known if not metric.needs_references) or "your own that do not"
