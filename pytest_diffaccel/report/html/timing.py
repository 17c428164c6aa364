"""When and how long each timed run took, and what its kinds of steps cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffaccel.matrix import format_params
from pytest_diffaccel.measure.measurement import Block, Measurement
from pytest_diffaccel.measure.step_kinds import RunTimes
from pytest_diffaccel.report.html.charts import COLOURS, Chart, accelerator_scales
from pytest_diffaccel.report.html.rows import Row

_BASELINE = "unaccelerated"
_OUTSIDE = "outside the steps"
_BAR_PX = 26


def samples_chart(name: str, measured: Sequence[Measurement], accelerators: Sequence[str]) -> Chart | None:
    """Every timed run of a cell in the order in which they ran; None where nothing was timed.

    Args:
        name: the chart's.
        measured: the cell's measurements.
        accelerators: names of all accelerators of the page.
    """
    blocks = [(one, block) for one in measured for block in one.blocks]
    if not blocks:
        return None
    blocks.sort(key=lambda pair: pair[1].started_at)
    rows: list[dict[str, Any]] = []
    # Candidates that were verified together share their blocks' unaccelerated run.
    order = {block.baseline: place for place, block in enumerate(_distinct(blocks))}
    told = set()
    for one, block in blocks:
        place = order[block.baseline] + 1
        if block.baseline not in told:
            told.add(block.baseline)
            rows.append(_sample(place, _BASELINE, "", block.baseline.total_s, block))
        for run in block.runs:
            params = format_params(one.candidate.params)
            rows.append(_sample(place, one.candidate.accelerator, params, run.total_s, block))
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
    shape = {"domain": [_BASELINE, *shape["domain"]], "range": ["stroke", *shape["range"]]}
    x = {"field": "block", "type": "quantitative", "title": "timed block, in run order", "axis": {"tickMinStep": 1}}
    x["scale"] = {"zero": False, "padding": 8}
    y = {"field": "seconds", "type": "quantitative", "title": "seconds a generation", "scale": {"domainMin": 0}}
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
        "layer": [line, point, disturbed],
    }


def kind_costs_chart(name: str, winners: Sequence[tuple[Row, Measurement]]) -> Chart | None:
    """What a generation's kinds of steps cost, a bar a winner; None where no winner was timed.

    Args:
        name: the chart's.
        winners: with their measurements.
    """
    timed = [(row, one) for row, one in winners if one.blocks]
    if not timed:
        return None
    first = timed[0][1]
    rows = _bar(_BASELINE, 0, RunTimes.of([(block.baseline,) for block in first.blocks]))
    for place, (row, one) in enumerate(timed, start=1):
        rows += _bar(f"{row.accelerator}: {row.params}", place, RunTimes.of([block.runs for block in one.blocks]))
    label = "Seconds of a generation by kind of step: the unaccelerated pipeline and each winner"
    return Chart(name, label, _bars_spec(rows))


def _bar(label: str, place: int, times: RunTimes) -> list[dict[str, Any]]:
    costs = times.costs()
    outside = float(times.seconds()) - sum(float(costs[kind]) * count for kind, count in times.counts.items())
    rows = [{"bar": label, "place": place, "kind": _OUTSIDE, "steps": 0, "seconds": round(outside, 4), "each": None}]
    for kind, count in times.counts.items():
        each = float(costs[kind])
        rows.append(
            {
                "bar": label,
                "place": place,
                "kind": kind.replace("|", " | "),
                "steps": count,
                "seconds": round(each * count, 4),
                "each": round(each, 5),
            }
        )
    return rows


def _bars_spec(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    others = [kind for kind in kinds if kind not in (_OUTSIDE, "plain")]
    scale = {
        "domain": [_OUTSIDE, "plain", *others],
        "range": ["#c9ccd1", "#8a8f98", *(COLOURS[place % (len(COLOURS) - 1)] for place in range(len(others)))],
    }
    bars = {row["bar"] for row in rows}
    return {
        "width": "container",
        "height": _BAR_PX * len(bars),
        "data": {"values": list(rows)},
        "mark": {"type": "bar", "stroke": "currentColor", "strokeWidth": 0.4},
        "encoding": {
            "y": {
                "field": "bar",
                "type": "nominal",
                "title": None,
                "sort": {"field": "place", "op": "min"},
                "axis": {"labelLimit": 300},
            },
            "x": {"field": "seconds", "type": "quantitative", "title": "seconds a generation"},
            "color": {
                "field": "kind",
                "scale": scale,
                "legend": {"orient": "bottom", "title": None, "columns": 3},
            },
            "tooltip": [
                {"field": "bar", "title": "what"},
                {"field": "kind"},
                {"field": "steps"},
                {"field": "each", "title": "seconds a step"},
                {"field": "seconds", "title": "seconds in all"},
            ],
        },
    }
