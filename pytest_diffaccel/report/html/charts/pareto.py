"""The chart of a cell: what each candidate gains and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.report.html.charts.vega import Chart, Spec, accelerator_scales
from pytest_diffaccel.report.html.content.cells import CellRecord
from pytest_diffaccel.report.html.content.scores import Axis

_HEIGHT = 420
_SPEEDUP = {"field": "speedup", "type": "quantitative", "title": "speed-up (times as fast as unaccelerated)"}
# Labels of winners whose speed-ups differ by less than this factor would touch each other.
_CLOSE = 1.12
# Targets are among them: a candidate's place shows which it reaches.
_TICKS = (0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


@dataclass(frozen=True)
class Points:
    """What a chart shows. Scores are in the field :func:`score_field`.

    Attributes:
        axis: what quality is told by.
        rows: measured candidates, as :mod:`.data` has them; their scores are None where they lack the metric.
        lacking: how many do.
        rivals: the plain pipeline with fewer steps, by rising number of steps, after itself where it has a score:
            ``speedup``, the score, ``low``, ``high`` and ``steps``.
        frontier: (speed-up, score) of those that none beats, by rising speed-up.
        best: the best winner of all accelerators at each target: ``speedup``, the score and ``text``.
    """

    axis: Axis
    rows: Sequence[Mapping[str, Any]]
    lacking: int
    rivals: Sequence[Mapping[str, Any]]
    frontier: Sequence[tuple[float, float]]
    best: Sequence[Mapping[str, Any]]


def score_field(axis: Axis) -> str:
    """Where rows have their scores: of LPIPS in its column, else where the page's script puts what was chosen."""
    return LPIPS if axis.name == LPIPS else "quality"


def _text(name: str, digits: str, unit: str) -> Spec:
    """A figure with its interval, if it has one, in words."""
    value, low, high = (f"format(datum.{name}{end}, '{digits}')" for end in ("", "_low", "_high"))
    interval = f"(datum.{name}_low == null ? '' : ' [' + {low} + ', ' + {high} + ']')"
    # A unit is whatever a metric says: text, which an expression must not take for more.
    return {"calculate": f"{value} + {json.dumps(unit)} + {interval}", "as": f"{name}_text"}


def _tooltip(*scores: Spec) -> list[Spec]:
    """What pointing at a candidate shows."""
    first = [{"field": "accelerator"}, {"field": "params"}, {"field": "speedup_text", "title": "speed-up"}]
    return [*first, *scores, {"field": "verdict"}, {"field": "reason"}]


def pareto_chart(name: str, record: CellRecord, points: Points, accelerators: Sequence[str]) -> Chart:
    """Speed-up against quality.

    Args:
        name: the chart's.
        record: the cell.
        points: what it shows.
        accelerators: names of all accelerators of the page.
    """
    axis, rows, frontier = points.axis, points.rows, points.frontier
    field = score_field(axis)
    least, most = _range(record, points)
    # Ratios are shown as ratios; losses by their root, so that small ones do not vanish beside the largest.
    across = {"values": list(_TICKS), "format": "~g", "labelOverlap": True}
    x = {**_SPEEDUP, "scale": {"type": "log", "domain": _width(rows), "nice": False}, "axis": across}
    scale = {"type": "sqrt" if axis.name == LPIPS else "linear", "domain": [least, most], "nice": False, "zero": False}
    y = {"field": field, "type": "quantitative", "title": axis.titled, "scale": scale, "axis": {"titleLimit": _HEIGHT}}
    colour, shape = accelerator_scales(accelerators)
    has_score = [{"filter": f"datum.{field} != null"}]
    tooltip = _tooltip({"field": f"{field}_text", "title": axis.words})
    layers = [
        *(_bands(record, most) if axis.name == LPIPS else _level(axis, y)),
        *_intervals(x, y, colour),
        _line([{"speedup": round(one[0], 4), field: round(one[1], 6)} for one in frontier], x, y, "step-before", []),
        *_rivals(points, x, y),
        {
            "transform": has_score,
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.8, "clip": True},
            "params": [{"name": "shown", "select": {"type": "point", "fields": ["accelerator"]}, "bind": "legend"}],
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "accelerator", "scale": colour, "legend": _legend()},
                "shape": {"field": "accelerator", "scale": shape, "legend": _legend()},
                "opacity": {"condition": {"param": "shown", "value": 0.8}, "value": 0.08},
                "tooltip": tooltip,
            },
        },
        *(_ticks(field, x, colour) if points.lacking else []),
        *_winners(points.best, x, y, tooltip),
    ]
    label = (
        f"Speed-up against {axis.words} of {len(rows) - points.lacking} candidates of {record.cell}, all of them in "
        "the table below"
    )
    transform = [
        {"filter": "datum.speedup != null"},
        _text("speedup", ".2f", "x"),
        _text(field, axis.digits, axis.unit),
    ]
    spec = {"width": "container", "height": _HEIGHT, "data": {"name": "rows"}, "transform": transform, "layer": layers}
    return Chart(name, label, spec, rows)


def _legend() -> Spec:
    return {"orient": "bottom", "title": None, "columns": 3, "symbolOpacity": 1}


def _width(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where the chart begins and ends; what is slower than 0.7x interests nobody."""
    slowest = min(row["speedup_low"] for row in rows)
    fastest = max(row["speedup"] for row in rows)
    return [round(max(0.7, min(0.98, slowest)), 4), round(max(1.25, 1.06 * fastest), 4)]


def _range(record: CellRecord, points: Points) -> tuple[float, float]:
    """Where the axis begins and ends: a little beyond all scores; a few intervals may be cut."""
    field = score_field(points.axis)
    shown: list[float] = [row[field] for row in (*points.rows, *points.rivals) if row[field] is not None]
    if points.axis.name == LPIPS:
        scale = record.described.scale if record.described else None
        # With the ceiling in sight.
        return 0.0, round(1.08 * max([0.01, *shown, *([scale.unrelated] if scale else [])]), 4)
    least, most = min(shown), max(shown)
    beyond = 0.08 * (most - least) or 0.01 * abs(most) or 0.01
    return round(least - beyond, 6), round(most + beyond, 6)


def _bands(record: CellRecord, top: float) -> list[Spec]:
    """The ceiling, from which on pictures have nothing but their prompt in common, and the noise floor."""
    scale = record.described.scale if record.described else None
    if scale is None:
        return []
    rows = [
        {"low": scale.unrelated, "high": top, "text": f"unrelated pictures: {scale.unrelated:.3f} and more"},
        {"low": 0, "high": scale.noise_floor, "text": f"noise floor: {scale.noise_floor:.1g}"},
    ]
    low = {"field": "low", "type": "quantitative"}
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "rect", "color": "#8a8f98", "opacity": 0.22, "clip": True},
            "encoding": {"y": low, "y2": {"field": "high"}},
        },
        # Where a cell has the fewest points: slow ones that lose much, fast ones that lose little.
        _note(rows[0], "left", 0),
        _note(rows[1], "right", "width"),
    ]


def _note(row: Mapping[str, Any], align: str, place: int | str) -> Spec:
    shift = 6 if align == "left" else -6
    return {
        "data": {"values": [row]},
        "mark": {"type": "text", "align": align, "baseline": "bottom", "dx": shift, "dy": -3, "fontSize": 12},
        "encoding": {
            "y": {"field": "low", "type": "quantitative"},
            "x": {"value": place},
            "text": {"field": "text"},
        },
    }


def _level(axis: Axis, y: Spec) -> list[Spec]:
    """Where the unaccelerated pipeline is, from side to side."""
    if axis.plain is None:
        return []
    row = {"low": round(axis.plain, 6), "text": "unaccelerated"}
    line = {"type": "rule", "strokeDash": [2, 3], "opacity": 0.6, "clip": True}
    level = {"data": {"values": [row]}, "mark": line, "encoding": {"y": {**y, "field": "low"}}}
    return [level, _note(row, "right", "width")]


def _ticks(field: str, x: Spec, colour: Spec) -> list[Spec]:
    """How fast those are that lack the metric, at the chart's bottom."""
    return [
        {
            "transform": [{"filter": f"datum.{field} == null"}],
            "mark": {
                "type": "tick",
                "orient": "vertical",
                "bandSize": 14,
                "thickness": 3,
                "opacity": 0.6,
                "clip": True,
            },
            "encoding": {
                "x": x,
                "y": {"value": _HEIGHT - 7},
                "color": {"field": "accelerator", "scale": colour, "legend": _legend()},
                "tooltip": _tooltip(),
            },
        }
    ]


def _intervals(x: Spec, y: Spec, colour: Spec) -> list[Spec]:
    mark = {"type": "rule", "opacity": 0.22, "clip": True}
    own = {"color": {"field": "accelerator", "scale": colour, "legend": _legend()}}
    across = {**own, "x": {**x, "field": "speedup_low"}, "x2": {"field": "speedup_high"}, "y": y}
    low, high = f"{y['field']}_low", f"{y['field']}_high"
    along = {**own, "y": {**y, "field": low}, "y2": {"field": high}, "x": x}
    return [
        {"transform": [{"filter": f"datum.{y['field']} != null"}], "mark": mark, "encoding": across},
        {"transform": [{"filter": f"datum.{low} != null"}], "mark": mark, "encoding": along},
    ]


def _line(values: Sequence[Mapping[str, Any]], x: Spec, y: Spec, interpolate: str, dash: Sequence[int]) -> Spec:
    mark = {"type": "line", "color": "currentColor", "strokeWidth": 1.5, "interpolate": interpolate, "clip": True}
    if dash:
        mark["strokeDash"] = list(dash)
    order = {"field": "speedup", "type": "quantitative"}
    return {"data": {"values": list(values)}, "mark": mark, "encoding": {"x": x, "y": y, "order": order}}


def _rivals(points: Points, x: Spec, y: Spec) -> list[Spec]:
    tooltip = [
        {"field": "steps", "title": "unaccelerated, steps"},
        {"field": "speedup", "title": "speed-up"},
        {"field": y["field"], "title": points.axis.words, "format": points.axis.digits},
        {"field": "pictures", "title": "scored pictures"},
    ]
    data = {"values": list(points.rivals)}
    return [
        _line(points.rivals, x, y, "linear", (5, 4)),
        {
            "data": data,
            "transform": [{"filter": "datum.low != null"}],
            "mark": {"type": "rule", "opacity": 0.3, "clip": True},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "data": data,
            "mark": {"type": "text", "text": "+", "fontSize": 16, "clip": True},
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
    ]


def _winners(best: Sequence[Mapping[str, Any]], x: Spec, y: Spec, tooltip: Sequence[Spec]) -> list[Spec]:
    ring = {"type": "point", "filled": False, "size": 170, "stroke": "currentColor", "strokeWidth": 1.8, "clip": True}
    rings = {
        "transform": [{"filter": f"datum.verdict == 'winner' && datum.{y['field']} != null"}],
        "mark": ring,
        "encoding": {"x": x, "y": y, "tooltip": list(tooltip)},
    }
    return [rings, *_labels(best, x, y)]


def _labels(best: Sequence[Mapping[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    """Their targets, below them: two that are close stand apart, and each covers what it touches."""
    ordered = sorted(best, key=lambda one: one["speedup"])
    sides: dict[str, list[Mapping[str, Any]]] = {"left": [], "center": [], "right": []}
    for place, one in enumerate(ordered):
        before, after = (
            0 <= other < len(ordered)
            and max(one["speedup"], ordered[other]["speedup"]) < _CLOSE * min(one["speedup"], ordered[other]["speedup"])
            for other in (place - 1, place + 1)
        )
        sides["center" if before == after else "left" if before else "right"].append(one)
    text = {"type": "text", "dy": 18, "fontSize": 12, "fontWeight": "bold"}
    under = {"stroke": "var(--paper)", "strokeWidth": 4, "strokeJoin": "round"}
    return [
        {
            "data": {"values": values},
            "mark": {**text, "align": side, **paint},
            "encoding": {"x": x, "y": y, "text": {"field": "text"}},
        }
        for side, values in sides.items()
        if values
        for paint in (under, {})
    ]
