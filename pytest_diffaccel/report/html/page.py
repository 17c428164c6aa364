"""The page: every part of a report, in one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.matrix import spaced_params
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.jsonfile import write_text
from pytest_diffaccel.report.html.cell_part import CellPart, cell_parts
from pytest_diffaccel.report.html.charts.vega import CONFIG, NOT_DRAWN, can_draw, library
from pytest_diffaccel.report.html.content.banner import Banner
from pytest_diffaccel.report.html.content.candidate_rows import target_words
from pytest_diffaccel.report.html.content.data import CELL_COLUMNS, COLUMNS, cell_data, rounded, score_data
from pytest_diffaccel.report.html.content.golden_part import entry_words, golden_part
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.report.winners import interval_text, metrics_text, over_eager
from pytest_diffaccel.settings.options import benches_command

if TYPE_CHECKING:
    from jinja2 import Environment


class NothingToReport(ValueError):
    """The store holds nothing of the chosen cells."""


def write_report(path: Path, material: Material, progress: Callable[[str], None] = lambda _: None) -> None:
    """Write the report; a reader of the file never sees half of it.

    Args:
        path: the HTML file; its folder is made, and a folder for full-size pictures beside it.
        material: what it is made of.
        progress: told which part is being made.

    Raises:
        NothingToReport: when the store holds nothing of the chosen cells.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = cell_parts(material, path, progress)
    if not parts:
        raise NothingToReport(f"the store holds nothing of the chosen cells; search them first: {benches_command()}")
    progress("writing")
    write_text(path, _render(material, parts))


def path_and_size(path: Path) -> str:
    """What to say of a report: where it is, how large, and what it lacks."""
    lacking = "" if can_draw() else f", {NOT_DRAWN}"
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB{lacking})"


def _render(material: Material, parts: Sequence[CellPart]) -> str:
    found = [part.findings for part in parts]
    drawn = can_draw()
    scripts = [*([library()] if drawn else []), _asset("report.js")]
    return (
        _templates()
        .get_template("report.html")
        .render(
            banner=Banner.of(material, found),
            cells=parts,
            golden=golden_part(material, found),
            drawn=drawn,
            not_drawn=NOT_DRAWN,
            config=CONFIG,
            columns=(*CELL_COLUMNS, *COLUMNS),
            data=_data(parts),
            style=_asset("report.css"),
            scripts=scripts,
            license=_asset("vega-license.txt"),
            script_hashes=[_hash(script) for script in scripts],
        )
    )


def _data(parts: Sequence[CellPart]) -> dict[str, Any]:
    """Everything that the page shows, for its charts, its CSV and other programs; names of columns are told once."""
    return {
        "columns": COLUMNS,
        "cell_columns": CELL_COLUMNS,
        "cells": [cell_data(part.record, part.data, score_data(part.findings.rows)) for part in parts],
        "environments": {
            part.record.environment: part.record.described.to_json() for part in parts if part.record.described
        },
        "golden": {
            str(key): json.loads(entry.to_json()) for part in parts for key, entry in part.findings.entries.items()
        },
    }


def _hash(script: str) -> str:
    """What the page's content security policy knows a script of its own by: no other runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files("pytest_diffaccel.report.html") / "assets" / name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pytest_diffaccel.report.html", "assets")
    templates = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    templates.filters |= {
        "figure": figure,
        "interval": interval,
        "entry_words": entry_words,
        "fact": fact,
        "ends": ends,
        "params": spaced_params,
        "targets": target_words,
        "metrics": metrics_text,
        "over_eager": over_eager,
    }
    return templates


def ends(entry: GoldenEntry, name: str, decimals: int, unit: str = "") -> str:
    """A golden record's figure with its interval."""
    return interval_text(getattr(entry, name), getattr(entry, f"{name}_ci95"), decimals, unit)


def figure(value: float | None, decimals: int = 2, unit: str = "") -> str:
    """A number as people read it; empty for none."""
    # As rows are rounded already: rounding twice in one place and once in another shows two figures for one number.
    return "" if value is None else f"{rounded(value):.{decimals}f}{unit}"


def interval(row: dict[str, Any], name: str, decimals: int = 2, unit: str = "") -> str:
    """``"1.67x [1.65, 1.69]"`` of a row's columns ``name``, ``name_low`` and ``name_high``; empty for none."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return ""
    return f"{value:.{decimals}f}{unit} [{figure(low, decimals)}, {figure(high, decimals)}]"


def fact(value: Any) -> str:
    """Part of an environment as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {fact(part)}" for name, part in value.items())
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
