"""The chart of a cell: what each candidate gains and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffaccel.report.html.charts.vega import Chart, Spec, accelerator_scales
from pytest_diffaccel.report.html.content.cells import CellRecord

_HEIGHT = 420
_SPEEDUP = {"field": "speedup", "type": "quantitative", "title": "speed-up (times as fast as unaccelerated)"}
_LPIPS = {"field": "lpips", "type": "quantitative", "title": "LPIPS to the unaccelerated picture (lower is better)"}
# Labels of winners whose speed-ups differ by less than this factor would touch each other.
_CLOSE = 1.12
# Targets are among them: a candidate's place shows which it reaches.
_TICKS = (0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


def _text(name: str, digits: str, unit: str) -> Spec:
    """A figure with its interval, in words."""
    parts = [f"format(datum.{name}{end}, '{digits}')" for end in ("", "_low", "_high")]
    return {"calculate": f"{parts[0]} + '{unit} [' + {parts[1]} + ', ' + {parts[2]} + ']'", "as": f"{name}_text"}


_TRANSFORM = [{"filter": "datum.speedup != null"}, _text("speedup", ".2f", "x"), _text("lpips", ".4f", "")]
_TOOLTIP = [
    {"field": "accelerator"},
    {"field": "params"},
    {"field": "speedup_text", "title": "speed-up"},
    {"field": "lpips_text", "title": "LPIPS"},
    {"field": "verdict"},
    {"field": "reason"},
]


def pareto_chart(
    name: str,
    record: CellRecord,
    rows: Sequence[Mapping[str, Any]],
    frontier: Sequence[tuple[float, float]],
    best: Sequence[Mapping[str, Any]],
    accelerators: Sequence[str],
) -> Chart:
    """Speed-up against LPIPS.

    Args:
        name: the chart's.
        record: the cell.
        rows: its measured candidates, as :mod:`.data` has them.
        frontier: (speed-up, LPIPS) of those that none beats, by rising speed-up; the plain pipeline first.
        best: the best winner of all accelerators at each target: ``speedup``, ``lpips`` and ``text``.
        accelerators: names of all accelerators of the page.
    """
    plain = {"speedup": 1.0, "lpips": 0.0, "low": 0.0, "high": 0.0, "steps": record.cell.steps}
    rivals = [plain] + [
        {
            "speedup": round(rival.speedup.value, 4),
            "lpips": round(rival.quality.lpips.value, 5),
            "low": round(rival.quality.lpips.low, 5),
            "high": round(rival.quality.lpips.high, 5),
            "steps": rival.candidate.cell.steps,
        }
        for rival in record.rivals
    ]
    top = _top(record, rows, rivals)
    # Ratios are shown as ratios; losses by their root, so that small ones do not vanish beside the largest.
    axis = {"values": list(_TICKS), "format": "~g", "labelOverlap": True}
    x = {**_SPEEDUP, "scale": {"type": "log", "domain": _width(rows), "nice": False}, "axis": axis}
    y = {**_LPIPS, "scale": {"type": "sqrt", "domain": [0, top], "nice": False}}
    colour, shape = accelerator_scales(accelerators)
    layers = [
        *_bands(record, top),
        *_intervals(x, y, colour),
        _line([{"speedup": speedup, "lpips": lpips} for speedup, lpips in frontier], x, y, "step-before", []),
        *_rivals(rivals, x, y),
        {
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 0.8, "clip": True},
            "params": [{"name": "shown", "select": {"type": "point", "fields": ["accelerator"]}, "bind": "legend"}],
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "accelerator", "scale": colour, "legend": _legend()},
                "shape": {"field": "accelerator", "scale": shape, "legend": _legend()},
                "opacity": {"condition": {"param": "shown", "value": 0.8}, "value": 0.08},
                "tooltip": _TOOLTIP,
            },
        },
        *_winners(best, x, y),
    ]
    label = f"Speed-up against LPIPS of {len(rows)} candidates of {record.cell}, all of them in the table below"
    spec = {"width": "container", "height": _HEIGHT, "data": {"name": "rows"}, "transform": _TRANSFORM, "layer": layers}
    return Chart(name, label, spec, rows)


def _legend() -> Spec:
    return {"orient": "bottom", "title": None, "columns": 3, "symbolOpacity": 1}


def _width(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where the chart begins and ends; what is slower than 0.7x interests nobody."""
    slowest = min(row["speedup_low"] for row in rows)
    fastest = max(row["speedup"] for row in rows)
    return [round(max(0.7, min(0.98, slowest)), 4), round(max(1.25, 1.06 * fastest), 4)]


def _top(record: CellRecord, rows: Sequence[Mapping[str, Any]], rivals: Sequence[Mapping[str, Any]]) -> float:
    """A little above the largest loss, with the ceiling in sight; a few intervals may be cut."""
    scale = record.described.scale if record.described else None
    shown: list[float] = [row["lpips"] for row in (*rows, *rivals)]
    return round(1.08 * max([0.01, *shown, *([scale.unrelated] if scale else [])]), 4)


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


def _intervals(x: Spec, y: Spec, colour: Spec) -> list[Spec]:
    mark = {"type": "rule", "opacity": 0.22, "clip": True}
    own = {"color": {"field": "accelerator", "scale": colour, "legend": _legend()}}
    across = {**own, "x": {**x, "field": "speedup_low"}, "x2": {"field": "speedup_high"}, "y": y}
    along = {**own, "y": {**y, "field": "lpips_low"}, "y2": {"field": "lpips_high"}, "x": x}
    return [{"mark": mark, "encoding": across}, {"mark": mark, "encoding": along}]


def _line(values: Sequence[Mapping[str, Any]], x: Spec, y: Spec, interpolate: str, dash: Sequence[int]) -> Spec:
    mark = {"type": "line", "color": "currentColor", "strokeWidth": 1.5, "interpolate": interpolate, "clip": True}
    if dash:
        mark["strokeDash"] = list(dash)
    order = {"field": "speedup", "type": "quantitative"}
    return {"data": {"values": list(values)}, "mark": mark, "encoding": {"x": x, "y": y, "order": order}}


def _rivals(rivals: Sequence[Mapping[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    tooltip = [
        {"field": "steps", "title": "unaccelerated, steps"},
        {"field": "speedup", "title": "speed-up"},
        {"field": "lpips", "title": "LPIPS"},
    ]
    data = {"values": list(rivals)}
    return [
        _line(rivals, x, y, "linear", (5, 4)),
        {
            "data": data,
            "mark": {"type": "rule", "opacity": 0.3, "clip": True},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "data": data,
            "mark": {"type": "text", "text": "+", "fontSize": 16, "clip": True},
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
    ]


def _winners(best: Sequence[Mapping[str, Any]], x: Spec, y: Spec) -> list[Spec]:
    ring = {"type": "point", "filled": False, "size": 170, "stroke": "currentColor", "strokeWidth": 1.8, "clip": True}
    rings = {
        "transform": [{"filter": "datum.verdict == 'winner'"}],
        "mark": ring,
        "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
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
