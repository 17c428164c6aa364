"""When and how long each timed run took, and what its kinds of steps cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffaccel.matrix import format_params, slug
from pytest_diffaccel.measure.measurement import Block, Measurement
from pytest_diffaccel.measure.step_kinds import RunTimes
from pytest_diffaccel.report.html.charts.vega import Chart, accelerator_scales
from pytest_diffaccel.report.html.content.candidate_rows import Row, target_words

_BASELINE = "unaccelerated"
_OUTSIDE = "outside the steps"
_BAR_PX = 26
# Width of a letter in a bar.
_LETTER_PX = 6.5
# What names a method in a kind of step.
_METHOD = re.compile(r"[^|:]+:")


def samples_chart(name: str, measured: Sequence[Measurement], accelerators: Sequence[str]) -> Chart | None:
    """Every timed run of a cell in the order in which they ran; None where nothing was timed.

    Args:
        name: the chart's.
        measured: the cell's measurements.
        accelerators: names of all accelerators of the page.
    """
    blocks = [(measurement, block) for measurement in measured for block in measurement.blocks]
    if not blocks:
        return None
    blocks.sort(key=lambda pair: pair[1].started_at)
    rows: list[dict[str, Any]] = []
    # Candidates that were verified together share their blocks' unaccelerated run.
    order = {block.baseline: place for place, block in enumerate(_distinct(blocks))}
    told = set()
    for measurement, block in blocks:
        place = order[block.baseline] + 1
        if block.baseline not in told:
            told.add(block.baseline)
            rows.append(_sample(place, _BASELINE, "", block.baseline.total_s, block))
        for run in block.runs:
            params = format_params(measurement.candidate.params)
            rows.append(_sample(place, measurement.candidate.accelerator, params, run.total_s, block))
    return Chart(
        name, f"Seconds of {len(rows)} timed runs in the order of their blocks", _samples_spec(rows, accelerators)
    )


def _distinct(blocks: Sequence[tuple[Measurement, Block]]) -> list[Block]:
    return list({block.baseline: block for _, block in blocks}.values())


def _sample(place: int, what: str, params: str, seconds: float, block: Block) -> dict[str, Any]:
    disturbed = {"disturbance": block.disturbance} if block.disturbance else {}
    return {"block": place, "what": what, "params": params, "seconds": round(seconds, 4), **disturbed}


def _samples_spec(rows: Sequence[Mapping[str, Any]], accelerators: Sequence[str]) -> dict[str, Any]:
    colour, shape = accelerator_scales(accelerators)
    colour = {"domain": [_BASELINE, *colour["domain"]], "range": ["#8a8f98", *colour["range"]]}
    shape = {"domain": [_BASELINE, *shape["domain"]], "range": ["circle", *shape["range"]]}
    x = {"field": "block", "type": "quantitative", "title": "timed block, in run order", "axis": {"tickMinStep": 1}}
    x["scale"] = {"domain": [0, 1 + max(row["block"] for row in rows)], "nice": False}
    y = {"field": "seconds", "type": "quantitative", "title": "seconds per generation", "scale": {"domainMin": 0}}
    legend = {"orient": "bottom", "title": None, "columns": 3}
    point = {
        "mark": {"type": "point", "filled": True, "size": 32, "opacity": 0.75},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "what", "scale": colour, "legend": legend},
            "shape": {"field": "what", "scale": shape, "legend": legend},
            "tooltip": [{"field": name} for name in ("what", "params", "block", "seconds", "disturbance")],
        },
    }
    line = {
        "transform": [{"filter": f"datum.what == '{_BASELINE}'"}],
        "mark": {"type": "line", "color": "#8a8f98", "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y},
    }
    disturbed = {
        "transform": [{"filter": "datum.disturbance"}],
        "mark": {"type": "point", "filled": False, "size": 150, "stroke": "currentColor", "strokeWidth": 1},
        "encoding": {"x": x, "y": y},
    }
    return {
        "width": "container",
        "height": 260,
        "data": {"values": list(rows)},
        "layer": [line, point, *([disturbed] if any("disturbance" in row for row in rows) else [])],
    }


def kind_costs_chart(name: str, winners: Sequence[tuple[Row, Measurement]]) -> Chart | None:
    """What a generation's kinds of steps cost, a bar per winner; None where no winner was timed.

    Each winner ran beside baselines of its own, at speeds that the machine had then. So the bars are as long, beside
    the unaccelerated one, as the table's speed-ups say, and the winner's own blocks divide them.

    Args:
        name: the chart's.
        winners: with their measurements.
    """
    timed = [
        (row, row.figures.speedup.value, measurement)
        for row, measurement in winners
        if measurement.blocks and row.figures
    ]
    if not timed:
        return None
    blocks = _distinct([(measurement, block) for _, _, measurement in timed for block in measurement.blocks])
    baseline = RunTimes.of([(block.baseline,) for block in blocks])
    plain_s = max(float(cost) for cost in baseline.costs().values())
    rows = _bar(_BASELINE, "", 0, baseline, plain_s)
    for place, (row, speedup, measurement) in enumerate(timed, start=1):
        times = RunTimes.of([block.runs for block in measurement.blocks])
        scale = _seconds(baseline) / speedup / _seconds(times)
        label = f"{slug(row.accelerator)} {target_words(row.targets) or 'nearest'}"
        if any(bar["bar"] == label for bar in rows):
            label += f" ({place})"
        rows += _bar(label, row.params, place, times, plain_s, scale)
    label = "Seconds of a generation by kind of step: the unaccelerated pipeline and each winner"
    return Chart(name, label, _bars_spec(rows))


def _seconds(times: RunTimes) -> float:
    """What a generation takes."""
    return float(times.fixed_seconds() + times.steps_seconds())


def _bar(
    label: str, params: str, place: int, times: RunTimes, plain_s: float, scale: float = 1.0
) -> list[dict[str, Any]]:
    costs = times.costs()
    parts = [(kind, count, scale * float(costs[kind])) for kind, count in times.counts.items()]
    outside = scale * float(times.fixed_seconds())
    rows: list[dict[str, Any]] = []
    start = 0.0
    for kind, count, each in [(_OUTSIDE, 1, outside), *parts]:
        end = start + count * each
        rows.append(
            {
                "bar": label,
                "params": params,
                "place": place,
                "kind": kind.replace("|", " and "),
                "short": kind
                if kind == _OUTSIDE
                else f"{round(count, 1):g} × {_METHOD.sub('', kind).replace('|', ' · ')}",
                "steps": None if kind == _OUTSIDE else count,
                "start": round(start, 4),
                "end": round(end, 4),
                "each": round(each, 5),
                "share": 0 if kind == _OUTSIDE else round(each / plain_s, 4),
            }
        )
        start = end
    return rows


def _bars_spec(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bars = {row["bar"] for row in rows}
    longest = max(row["end"] for row in rows)
    colour = {
        "field": "share",
        "type": "quantitative",
        "title": ["cost of a step", "(unaccelerated: 1)"],
        "scale": {"scheme": "viridis", "domain": [0, 1.2], "clamp": True},
        "legend": {"orient": "bottom", "direction": "horizontal", "tickCount": 4},
    }
    tooltip = [
        {"field": "bar", "title": "what"},
        {"field": "params"},
        {"field": "kind"},
        {"field": "steps"},
        {"field": "each", "title": "seconds each"},
        {"field": "share", "title": "of an unaccelerated step"},
    ]
    place = {"x": {"field": "start", "type": "quantitative", "title": "seconds per generation"}, "x2": {"field": "end"}}
    unknown = {"condition": {"test": "datum.steps == null", "value": "#c9ccd1"}, **colour}
    # What does not fit into its bar is left to the pointer.
    fits = f"(datum.end - datum.start) / {longest} * width > (length(datum.short) + 1) * {_LETTER_PX}"
    return {
        "width": "container",
        "height": _BAR_PX * len(bars),
        "data": {"values": list(rows)},
        "encoding": {
            "y": {
                "field": "bar",
                "type": "nominal",
                "title": None,
                "sort": {"field": "place", "op": "min"},
                "axis": {"labelLimit": 300},
            }
        },
        "layer": [
            {
                "mark": {"type": "bar", "stroke": "currentColor", "strokeWidth": 0.5},
                "encoding": {**place, "color": unknown, "tooltip": tooltip},
            },
            {
                "transform": [{"filter": fits}, {"calculate": "(datum.start + datum.end) / 2", "as": "middle"}],
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "x": {"field": "middle", "type": "quantitative"},
                    "text": {"field": "short"},
                    "color": {
                        "condition": {"test": "datum.share < 0.6 && datum.steps != null", "value": "#fff"},
                        "value": "#111",
                    },
                },
            },
        ],
    }
