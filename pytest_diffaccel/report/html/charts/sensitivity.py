"""How a method's loss and speed depend on its parameters: heat maps over two of them, small multiples for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffaccel.matrix import Number, slug
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.report.html.charts.vega import Chart

# Fewer points than this show no shape.
_LEAST_POINTS = 4
# More small multiples than this are left out, those with the fewest points first.
_MOST_MULTIPLES = 9
_SQUARE = 40
# A heading is wider than its map; this is where it breaks.
_BREAK = "; "


def sensitivity_charts(
    name: str, measured: Sequence[Measurement], speedups: Mapping[str, Interval], accelerators: Sequence[str]
) -> list[Chart]:
    """A chart an accelerator with enough measured points.

    Args:
        name: what the charts' names begin with.
        measured: a cell's measurements.
        speedups: by key.
        accelerators: names of all accelerators of the page, in order.
    """
    by_accelerator: dict[str, list[Measurement]] = {}
    for measurement in measured:
        by_accelerator.setdefault(measurement.candidate.accelerator, []).append(measurement)
    charts = []
    for accelerator, own in sorted(by_accelerator.items(), key=lambda item: accelerators.index(item[0])):
        chart = _chart(f"{name}-{_plain(accelerator)}", accelerator, own, speedups)
        if chart is not None:
            charts.append(chart)
    return charts


def _plain(accelerator: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in slug(accelerator))


def _point(measurement: Measurement) -> dict[str, Number]:
    return {name: value for point in measurement.candidate.params.values() for name, value in point.items()}


def _chart(
    name: str, accelerator: str, measured: Sequence[Measurement], speedups: Mapping[str, Interval]
) -> Chart | None:
    points = [_point(measurement) for measurement in measured]
    names = list(dict.fromkeys(parameter for point in points for parameter in point))
    varied = {parameter: len({point.get(parameter) for point in points}) for parameter in names}
    telling = [parameter for parameter in names if varied[parameter] > 1]
    axes = sorted(telling, key=lambda parameter: -varied[parameter])[:2]
    if len(axes) < 2 or len(points) < _LEAST_POINTS:
        return None
    rest = _needed([parameter for parameter in telling if parameter not in axes], axes, points)
    rows = [
        {
            "x": point[axes[0]],
            "y": point[axes[1]],
            "rest": _heading([f"{parameter}={point[parameter]}" for parameter in rest]),
            "lpips": round(measurement.quality.lpips.value, 5),
            "speedup": round(speedups[measurement.candidate.key].value, 3),
        }
        for point, measurement in zip(points, measured, strict=True)
        if all(parameter in point for parameter in (*axes, *rest))
    ]
    most = [text for text, _ in Counter(row["rest"] for row in rows).most_common(_MOST_MULTIPLES)]
    left_out = len({row["rest"] for row in rows}) - len(most)
    rows = [row for row in rows if row["rest"] in most]
    label = f"{accelerator}: {axes[0]} (across) and {axes[1]} (down)"
    if rest:
        label += f", a map each {', '.join(rest)}"
    if left_out:
        label += f"; {left_out} maps with fewer points are left out"
    return Chart(name, label, _spec(rows, axes, several=bool(rest)))


def _needed(names: Sequence[str], axes: Sequence[str], points: Sequence[Mapping[str, Number]]) -> list[str]:
    """Those of ``names`` that tell points apart which agree in ``axes`` and in the names before."""
    needed: list[str] = []
    for name in names:
        known = {tuple(point.get(parameter) for parameter in (*axes, *needed)) for point in points}
        further = {tuple(point.get(parameter) for parameter in (*axes, *needed, name)) for point in points}
        if len(further) > len(known):
            needed.append(name)
    return needed


def _numbers(text: str) -> list[float]:
    """The values of ``name=value`` pairs: 6 comes before 12."""
    return [float(pair.partition("=")[2]) for pair in text.replace(_BREAK, ", ").split(", ")]


def _heading(pairs: Sequence[str]) -> str:
    """All pairs, in two lines where they are more than two."""
    half = (len(pairs) + 1) // 2 if len(pairs) > 2 else len(pairs)
    return _BREAK.join(filter(None, (", ".join(pairs[:half]), ", ".join(pairs[half:]))))


_NAME_ABOVE = {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": -24, "titleY": -6}


def _spec(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], *, several: bool) -> dict[str, Any]:
    losses = [row["lpips"] for row in rows]
    middle = (min(losses) + max(losses)) / 2
    encoding = {
        "x": {"field": "x", "type": "ordinal", "title": axes[0], "axis": {"labelAngle": 0}},
        # Beside several small maps there is no room for its name, which stands in the label.
        # Beside one, it stands above: there may be two rows only.
        "y": {"field": "y", "type": "ordinal", "title": None if several else axes[1], "axis": dict(_NAME_ABOVE)},
    }
    colour = {
        "field": "lpips",
        "type": "quantitative",
        "title": "LPIPS",
        "scale": {"scheme": "viridis", "zero": False},
        "legend": {"orient": "bottom", "direction": "horizontal", "gradientLength": 160},
    }
    tooltip = [
        {"field": "x", "title": axes[0]},
        {"field": "y", "title": axes[1]},
        {"field": "rest", "title": "others"},
        {"field": "lpips", "title": "LPIPS"},
        {"field": "speedup", "title": "speed-up"},
    ]
    number = {
        "text": {"field": "speedup", "type": "quantitative", "format": ".2f"},
        # Dark on the light half of the colours, light on the dark one.
        "color": {"condition": {"test": f"datum.lpips > {middle}", "value": "#111"}, "value": "#fff"},
    }
    layers = {
        "width": {"step": _SQUARE},
        "height": {"step": 24},
        "layer": [
            {"mark": {"type": "rect"}, "encoding": {"color": colour, "tooltip": tooltip}},
            {"mark": {"type": "text", "fontSize": 11}, "encoding": number},
        ],
        "encoding": encoding,
    }
    if not several:
        return {"data": {"values": list(rows)}, **layers}
    order = sorted({row["rest"] for row in rows}, key=_numbers)
    facet = {
        "field": "rest",
        "type": "nominal",
        "title": None,
        "sort": order,
        "header": {"labelExpr": f"split(datum.value, '{_BREAK}')"},
    }
    return {"data": {"values": list(rows)}, "facet": facet, "columns": 3, "spec": layers}
