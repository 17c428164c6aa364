"""What golden has of a cell that is better than a preset: as fast with less loss, or as good and faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pytest_diffaccel.matrix import Cell, Params
from pytest_diffaccel.measure.deciding import LPIPS, QualityRule
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.golden_key import GoldenKey

_Record: TypeAlias = tuple[GoldenKey, GoldenEntry]


@dataclass(frozen=True)
class InGolden:
    """What golden says of a preset's cell.

    Attributes:
        winners: distinct winners whose losses can be compared with the preset's.
        elsewhere: winners that cannot be compared: of other weights, or pictures of another size.
        own: the preset's own settings, where they are a winner's.
        as_fast: at least as fast, and surely with less loss; of several the one with the least.
        as_good: with no more loss, and surely faster; of several the fastest.
        in_mean: as fast, with less loss in the mean, where none is surely better; of several the one with the least.
    """

    winners: int
    elsewhere: int
    own: _Record | None = None
    as_fast: _Record | None = None
    as_good: _Record | None = None
    in_mean: _Record | None = None


def in_golden(
    golden: Golden, cell: Cell, environment: Environment, measurement: Measurement, quality: QualityRule
) -> InGolden:
    """Look a preset's cell up.

    One of two figures must be as good in the mean, and of the other the intervals must not touch: chance alone shall
    not make a preset look worse than a winner.

    Args:
        golden: the database.
        cell: pipe, scheduler and steps of the preset.
        environment: in which the preset was measured.
        measurement: of the preset.
        quality: what tells losses apart.
    """
    met = {key: entry for key, entry in golden.entries.items() if key.cell == cell and entry.status == "met"}
    comparable = {key: entry for key, entry in met.items() if _same_pictures(golden.environment_of(entry), environment)}
    speedup, cost = measurement.speedup, _cost(quality, value_of(measurement, quality))
    rated = [
        ((key, entry), _speedup(entry), theirs)
        for key, entry in comparable.items()
        if (theirs := _cost(quality, _value(entry, quality))) is not None
    ]
    as_fast, as_good, in_mean = [], [], []
    for record, their_speedup, theirs in rated:
        if cost is None:  # golden's may have it, and the preset's pictures are too few for an interval
            continue
        if their_speedup.value >= speedup.value and theirs.value < cost.value:
            in_mean.append((record, theirs.value))
            as_fast += [(record, theirs.value)] if theirs.high < cost.low else []
        if their_speedup.low > speedup.high and theirs.value <= cost.value:
            as_good.append((record, -their_speedup.value))
    return InGolden(
        winners=_distinct(comparable),
        elsewhere=_distinct({key: entry for key, entry in met.items() if key not in comparable}),
        own=next((record for record in comparable.items() if _same(record[1], measurement.candidate.params)), None),
        as_fast=_first(as_fast),
        as_good=_first(as_good),
        in_mean=None if as_fast or as_good else _first(in_mean),
    )


def value_of(measurement: Measurement, quality: QualityRule) -> Interval | None:
    """The mean of what tells losses apart, with its interval; None where it, or the interval, was not computed."""
    if quality.metric == LPIPS:
        return measurement.quality.lpips
    known = measurement.metrics.get(quality.metric)
    if known is None:
        return None
    figures = metric_figures(known)
    return _interval(figures.value, figures.ci95)


def _value(entry: GoldenEntry, quality: QualityRule) -> Interval | None:
    if quality.metric == LPIPS:
        return _interval(entry.lpips, entry.lpips_ci95)
    metric = (entry.metrics or {}).get(quality.metric)
    return _interval(metric.value, metric.ci95) if metric else None


def _interval(value: float | None, ends: tuple[float, float] | None) -> Interval | None:
    return None if value is None or ends is None else Interval(value, *ends)


def _cost(quality: QualityRule, value: Interval | None) -> Interval | None:
    """What grows with the loss."""
    if value is None or not quality.higher_is_better:
        return value
    return Interval(-value.value, -value.high, -value.low)


def _speedup(entry: GoldenEntry) -> Interval:
    return Interval(entry.speedup or 0.0, *(entry.speedup_ci95 or (0.0, 0.0)))


def _same_pictures(theirs: Environment | None, ours: Environment) -> bool:
    """Whether losses are of the same model's pictures, of one size and one guidance."""
    return theirs is not None and all(
        getattr(theirs, name) == getattr(ours, name) for name in ("weights", "image_size", "guidance_scale")
    )


def _same(entry: GoldenEntry, params: Params) -> bool:
    return {name: dict(point) for name, point in entry.params.items()} == {
        name: dict(point) for name, point in params.items()
    }


def _distinct(entries: Mapping[GoldenKey, GoldenEntry]) -> int:
    return len({str(entry.params) for entry in entries.values()})


def _first(rated: Iterable[tuple[_Record, float]]) -> _Record | None:
    best = min(rated, key=lambda one: one[1], default=None)
    return best and best[0]
