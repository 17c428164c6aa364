"""The part of a page that shows one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.report.html.charts.gallery import Gallery, WinnerPictures
from pytest_diffaccel.report.html.charts.pareto_axes import AxisChart, pareto_charts
from pytest_diffaccel.report.html.charts.sensitivity import sensitivity_charts
from pytest_diffaccel.report.html.charts.timing_charts import kind_costs_chart, samples_chart
from pytest_diffaccel.report.html.charts.vega import Chart
from pytest_diffaccel.report.html.content.candidate_rows import RECORDED
from pytest_diffaccel.report.html.content.cells import CellRecord
from pytest_diffaccel.report.html.content.data import row_data
from pytest_diffaccel.report.html.content.failures import FailurePart, failure_parts
from pytest_diffaccel.report.html.content.findings import Findings, accelerators_of, find
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.report.html.content.scores import metric_seconds
from pytest_diffaccel.report.winners import stack_notes


@dataclass(frozen=True)
class CellPart:
    """One cell's part.

    Attributes:
        number: the cell's place on the page, from 0.
        findings: what was found.
        data: its rows, by column.
        pareto: what each candidate gains and costs, by LPIPS and by each other metric; empty where nothing was
            measured.
        metric_seconds: what computing each secondary metric took, seconds.
        pictures: of its winners.
        sensitivity: a chart per accelerator.
        samples_chart: timed runs in order; None where nothing was timed.
        kind_costs: what its winners' steps cost; None where no winner was timed.
        failures: what failed, with its log.
    """

    number: int
    findings: Findings
    data: tuple[dict[str, Any], ...]
    pareto: tuple[AxisChart, ...]
    metric_seconds: Mapping[str, float]
    pictures: tuple[WinnerPictures, ...]
    sensitivity: tuple[Chart, ...]
    samples_chart: Chart | None
    kind_costs: Chart | None
    failures: list[FailurePart]

    @property
    def cell(self) -> Cell:
        """The cell."""
        return self.findings.cell

    @property
    def notes_on_stack(self) -> list[str]:
        """What its speed-ups are over, where that is not the eager pipeline."""
        return stack_notes(self.record.described)

    @property
    def record(self) -> CellRecord:
        """What the store holds of it."""
        return self.findings.record


def cell_parts(material: Material, path: Path, progress: Callable[[str], None]) -> list[CellPart]:
    """The parts of all wanted cells.

    Args:
        material: what they are made of.
        path: the page, beside which full-size pictures go.
        progress: told which cell is being made.
    """
    progress("reading what was found")
    found = find(material)
    accelerators = accelerators_of(found, material.registry.names)
    gallery = Gallery(path, material.images, material.prompts, found)
    parts = []
    for number, findings in enumerate(found):
        progress(f"{findings.cell} ({number + 1} of {len(found)})")
        parts.append(_part(number, findings, accelerators, gallery, material.logs))
    return parts


def _part(number: int, findings: Findings, accelerators: Sequence[str], gallery: Gallery, logs: Path) -> CellPart:
    known = list(findings.record.best_known.values())
    winners = [(row, findings.record.best_known[row.key]) for row in findings.rows if row.verdict in RECORDED]
    winners.sort(
        key=lambda pair: (accelerators.index(pair[0].accelerator), findings.record.speedups[pair[0].key].value)
    )
    timed = [*findings.record.searched.values(), *findings.record.verified.values()]
    data = tuple(row_data(row) for row in findings.rows)
    return CellPart(
        number=number,
        findings=findings,
        data=data,
        pareto=tuple(pareto_charts(f"pareto-{number}", findings, data, accelerators)) if known else (),
        metric_seconds=metric_seconds(findings.record),
        pictures=tuple(gallery.of(findings)),
        sensitivity=tuple(sensitivity_charts(f"sensitivity-{number}", known, findings.record.speedups, accelerators)),
        samples_chart=samples_chart(f"samples-{number}", timed, accelerators),
        kind_costs=kind_costs_chart(f"kinds-{number}", winners),
        failures=failure_parts(findings.record, logs),
    )
