"""All rows of a page as plain JSON types: what its charts draw, its CSV holds and other programs may read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.report.html.cells import CellRecord
from pytest_diffaccel.report.html.pareto import target_words
from pytest_diffaccel.report.html.rows import Figures, Row

#: Columns of a row, in the CSV's order.
COLUMNS = (
    *("pipe", "scheduler", "steps", "accelerator", "params", "verdict", "targets", "reason"),
    *("speedup", "speedup_low", "speedup_high", "wall_speedup", "wall_speedup_low", "wall_speedup_high"),
    *("baseline_s", "seconds", "lpips", "lpips_low", "lpips_high", "worst_lpips", "worst_prompt"),
    *("psnr_db", "ssim", "peak_memory_mb", "samples", "blocks", "verified", "estimates_agree", "environment", "key"),
)


def row_data(record: CellRecord, row: Row) -> dict[str, Any]:
    """A row as :data:`COLUMNS` name its parts; None where nothing is known."""
    cell = record.cell
    known: dict[str, Any] = dict.fromkeys(COLUMNS)
    known |= {
        "pipe": cell.pipe,
        "scheduler": cell.scheduler,
        "steps": cell.steps,
        "accelerator": row.accelerator,
        "params": row.params,
        "verdict": row.verdict,
        "targets": target_words(row.targets),
        "reason": row.reason,
        "environment": record.environment,
        "key": row.key,
    }
    return known | (_figures(row.figures) if row.figures else {})


def _figures(figures: Figures) -> dict[str, Any]:
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
        "samples": figures.samples,
        "blocks": figures.blocks,
        "verified": figures.verified,
        "estimates_agree": figures.estimates_agree,
    }


def chart_row(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a chart draws of a row and shows when it is pointed at; the page's script makes the same of its JSON."""
    return {
        **{name: known[name] for name in ("accelerator", "params", "verdict", "reason", "targets", "key")},
        **{f"{of}{end}": known[f"{of}{end}"] for of in ("speedup", "lpips") for end in ("", "_low", "_high")},
    }


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return {f"{name}{end}": _number(value) for end, value in zip(("", "_low", "_high"), ends, strict=True)}


def _number(value: float | None) -> float | None:
    """Five significant digits, more than any figure here is known to; None for what JSON has no word for."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
