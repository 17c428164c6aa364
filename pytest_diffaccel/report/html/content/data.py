"""All rows of a page as plain JSON types: what its charts draw, its CSV holds and other programs may read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffaccel.matrix import format_params
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.report.html.content.candidate_rows import Row, RowFigures, target_words
from pytest_diffaccel.report.html.content.cells import CellRecord
from pytest_diffaccel.report.html.content.scores import Score

#: Columns of a row.
COLUMNS = (
    *("accelerator", "params", "verdict", "targets", "reason"),
    *("speedup", "speedup_low", "speedup_high", "wall_speedup", "wall_speedup_low", "wall_speedup_high"),
    *("baseline_s", "seconds", "lpips", "lpips_low", "lpips_high", "worst_lpips", "worst_prompt"),
    *("psnr_db", "ssim", "metrics", "peak_memory_mb", "fired", "samples", "blocks", "verified", "estimates_agree"),
)
#: What all rows of a cell have in common; the first columns of the CSV.
CELL_COLUMNS = ("pipe", "scheduler", "steps", "environment")
# What a chart draws of a row, and shows when it is pointed at.
_CHARTED = (
    *("accelerator", "params", "verdict", "reason"),
    *("speedup", "speedup_low", "speedup_high", "lpips", "lpips_low", "lpips_high"),
)


def row_data(row: Row) -> dict[str, Any]:
    """A row as :data:`COLUMNS` name its parts; None where nothing is known."""
    known: dict[str, Any] = dict.fromkeys(COLUMNS)
    known |= {
        "accelerator": row.accelerator,
        "params": row.params,
        "verdict": row.verdict,
        "targets": target_words(row.targets),
        "reason": row.reason,
    }
    return known | (_figures(row.figures) if row.figures else {})


def chart_row(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a chart draws of a row; the page's script gives it all columns, and the scores of what the reader chose."""
    return {name: known[name] for name in _CHARTED}


def score_data(rows: Sequence[Row]) -> dict[str, list[list[float | None] | None]]:
    """By axis, but for LPIPS, which has columns: each row's mean with the ends of its interval, if it has one.

    None for a row without; what is missing at the end is left out.
    """
    known = [row.figures.scores if row.figures else {} for row in rows]
    names = dict.fromkeys(name for scores in known for name in scores if name != LPIPS)
    return {name: _without_end([_score(scores.get(name)) for scores in known]) for name in names}


def _score(score: Score | None) -> list[float | None] | None:
    if score is None:
        return None
    return _without_end([_number(value) for value in (score.value, score.low, score.high)]) or None


def cell_data(record: CellRecord, rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> dict[str, Any]:
    """A cell: its rows, each a list in the columns' order without the nulls at its end, and what its measurements are
    made of.

    ``measurements`` holds the loss of each sample, its other metrics if it has any, and the seconds of each timed
    block's runs, the unaccelerated one's first, ``row`` being their row's place; those of ``fewer_steps`` belong to the
    unaccelerated pipeline. ``scores`` is what :func:`score_data` makes of the rows.
    """
    cell = record.cell
    places = {(row["accelerator"], row["params"]): place for place, row in enumerate(rows)}
    return {
        "pipe": cell.pipe,
        "scheduler": cell.scheduler,
        "steps": cell.steps,
        "environment": record.environment,
        "rows": [_without_end([row[name] for name in COLUMNS]) for row in rows],
        "scores": scores,
        "measurements": [
            {"row": places[measurement.candidate.accelerator, format_params(measurement.candidate.params)]}
            | _made_of(measurement)
            for measurement in (*record.searched.values(), *record.verified.values())
        ],
        "fewer_steps": [{"steps": rival.candidate.cell.steps} | _made_of(rival) for rival in record.rivals],
    }


def _without_end(values: list[Any]) -> list[Any]:
    """Without what is not known at the end: of candidates that were not measured that is nearly all."""
    known = [place for place, value in enumerate(values) if value is not None]
    return values[: known[-1] + 1]


def _made_of(measurement: Measurement) -> dict[str, Any]:
    made: dict[str, Any] = {
        "purpose": measurement.sampling.purpose,
        "lpips": [_number(loss) for loss in measurement.quality.lpips_per_sample],
    }
    if measurement.metrics:
        made["metrics"] = {
            name: {"values": [_number(value) for value in metric.values]}
            | ({"unaccelerated": [_number(value) for value in metric.baseline]} if metric.baseline else {})
            | ({"seconds": metric.seconds} if metric.seconds is not None else {})
            for name, metric in measurement.metrics.items()
        }
    if measurement.blocks:
        made["blocks_s"] = [
            [_number(block.baseline.total_s), *(_number(run.total_s) for run in block.runs)]
            for block in measurement.blocks
        ]
    return made


def _figures(figures: RowFigures) -> dict[str, Any]:
    return {
        **_interval("speedup", figures.speedup),
        **_interval("wall_speedup", figures.wall_speedup),
        "baseline_s": _number(figures.baseline_s),
        "seconds": _number(figures.seconds),
        **_interval("lpips", figures.lpips),
        "worst_lpips": _number(figures.worst_lpips),
        "worst_prompt": figures.worst_prompt,
        "psnr_db": _number(figures.psnr_db),
        "ssim": _number(figures.ssim),
        "peak_memory_mb": _number(figures.peak_memory_mb),
        "fired": ", ".join(f"{name}={count}" for name, count in figures.fired.items() if count),
        "samples": figures.samples,
        "blocks": figures.blocks,
        "verified": figures.verified,
        "estimates_agree": figures.estimates_agree,
        "metrics": figures.metrics or None,
    }


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return {f"{name}{end}": _number(value) for end, value in zip(("", "_low", "_high"), ends, strict=True)}


def _number(value: float | None) -> float | None:
    """None for what JSON has no word for."""
    return rounded(value) if value is not None and math.isfinite(value) else None


def rounded(value: float) -> float:
    """Five significant digits, more than any figure here is known to."""
    return float(f"{value:.5g}")
