"""A cell's chart by each metric that anything is known by: what it shows, and which candidates lack the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_diffaccel.report.html.charts.pareto import Points, pareto_chart, score_field
from pytest_diffaccel.report.html.charts.vega import Chart
from pytest_diffaccel.report.html.content.candidate_rows import Row, RowFigures, target_words
from pytest_diffaccel.report.html.content.cells import CellRecord
from pytest_diffaccel.report.html.content.data import chart_row
from pytest_diffaccel.report.html.content.findings import Findings
from pytest_diffaccel.report.html.content.scores import PSNR, Axis, Score, axes_of, frontier_points, scores_of
from pytest_diffaccel.words import counted


@dataclass(frozen=True)
class AxisChart:
    """A cell's chart by one metric.

    Attributes:
        axis: what quality is told by.
        chart: the chart.
        note: what it does not show, in words; empty where it shows all.
    """

    axis: Axis
    chart: Chart
    note: str


def pareto_charts(
    name: str, findings: Findings, data: Sequence[dict[str, Any]], accelerators: Sequence[str]
) -> list[AxisChart]:
    """Speed-up against each metric, LPIPS first.

    Args:
        name: the charts': one of them is shown at a time.
        findings: of the cell.
        data: its rows, by column.
        accelerators: names of all accelerators of the page.
    """
    measured = [(chart_row(known), row.figures) for known, row in zip(data, findings.rows, strict=True) if row.figures]
    charts = []
    for axis in axes_of(findings.record):
        scores = [(figures.speedup.value, figures.scores.get(axis.name)) for _, figures in measured]
        scored = [(speedup, score.value) for speedup, score in scores if score is not None]
        points = Points(
            axis=axis,
            rows=[row | _scored(axis, figures.scores.get(axis.name)) for row, figures in measured],
            lacking=len(measured) - len(scored),
            rivals=_rivals(axis, findings.record),
            frontier=frontier_points(axis, scored),
            best=_best_at_targets(axis, findings),
        )
        chart = pareto_chart(name, findings.record, points, accelerators)
        charts.append(AxisChart(axis, chart, _note(points, len(findings.record.rivals))))
    return charts


def _scored(axis: Axis, score: Score | None) -> dict[str, float | None]:
    """A candidate's score as its row in a chart has it."""
    field = score_field(axis)
    ends = (score.value, score.low, score.high) if score else (None, None, None)
    return dict(zip((field, f"{field}_low", f"{field}_high"), ends, strict=True))


def _note(points: Points, rivals: int) -> str:
    axis, words = points.axis, points.axis.words
    drawn = len(points.rivals) - (axis.plain is not None)
    said = []
    if points.lacking:
        said.append(
            f"Without {words}: {points.lacking} of {counted(len(points.rows), 'measured candidate')}. Ticks at the "
            "bottom show how fast they are. It is computed of winners and of fewer plain steps only."
        )
    if drawn < rivals:
        said.append(f"Without {words} and not drawn: {rivals - drawn} of {rivals} points of fewer plain steps.")
    if axis.name == PSNR:
        said.append("The unaccelerated pipeline is not drawn: identical pictures have no finite PSNR.")
    return " ".join(said)


def _rivals(axis: Axis, record: CellRecord) -> list[dict[str, Any]]:
    """The plain pipeline, and with fewer steps, as far as the metric is known of them."""
    field = score_field(axis)
    known = [(rival, scores_of(rival).get(axis.name)) for rival in record.rivals]
    ends = {field: axis.plain, "low": axis.plain, "high": axis.plain}
    plain = {"speedup": 1.0, **ends, "steps": record.cell.steps, "pictures": ""}
    return ([plain] if axis.plain is not None else []) + [
        {
            "speedup": round(rival.speedup.value, 4),
            field: round(score.value, 5),
            "low": None if score.low is None else round(score.low, 5),
            "high": None if score.high is None else round(score.high, 5),
            "steps": rival.candidate.cell.steps,
            "pictures": rival.sampling.num_samples,
        }
        for rival, score in known
        if score is not None
    ]


def _best_at_targets(axis: Axis, findings: Findings) -> list[Mapping[str, Any]]:
    """Of the winners of all accelerators at a target the one that loses least, with its targets as a label.

    Those are chosen by the metric that decided, whatever the axis.
    """

    def cost(figures: RowFigures) -> float:
        score = figures.scores.get(findings.quality.metric)
        return findings.quality.cost_of(score.value if score else None)

    best: dict[float, tuple[Row, RowFigures]] = {}
    for row in findings.rows:
        figures = row.figures
        for target in row.targets:
            if figures and (target not in best or cost(figures) < cost(best[target][1])):
                best[target] = row, figures
    labels: dict[str, list[float]] = {}
    for target, (row, _) in sorted(best.items()):
        labels.setdefault(row.key, []).append(target)
    shown = {row.key: figures for row, figures in best.values()}
    return [
        {
            "speedup": round(shown[key].speedup.value, 4),
            score_field(axis): round(shown[key].scores[axis.name].value, 5),
            "text": target_words(targets),
        }
        for key, targets in labels.items()
        if axis.name in shown[key].scores
    ]
