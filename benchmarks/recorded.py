"""The recorded tables of ``benchmarks.record_exhaustive``: what an exhaustive search of a few cells would see."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_diffaccel.accelerators.composition import Registry, default_registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Block, RunTiming

DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Point:
    """One recorded candidate.

    Attributes:
        candidate: what it is; without params for the baseline against itself.
        losses: LPIPS of each sample, the same prompts and seeds for all.
        blocks: timed next to the baseline; none where only losses are recorded yet.
    """

    candidate: Candidate
    losses: tuple[float, ...]
    blocks: tuple[Block, ...]


def read(name: str) -> dict[Cell, list[Point]]:
    """A table, by cell, in the recorder's order: a group's grid first.

    Args:
        name: ``"exhaustive"`` or ``"blocks"`` (fewer candidates, many blocks each).
    """
    from pyarrow import parquet

    registry = default_registry()
    points: defaultdict[Cell, list[Point]] = defaultdict(list)
    for row in parquet.read_table(DATA / f"{name}.parquet").to_pylist():
        cell = Cell(row["pipe"], row["scheduler"], row["steps"])
        candidate = Candidate(cell, row["accelerator"], json.loads(row["params"]))
        points[cell].append(Point(candidate, tuple(row["lpips"]), tuple(_blocks(candidate, row["blocks"], registry))))
    return dict(points)


def _blocks(candidate: Candidate, rows: Sequence[dict[str, Any]], registry: Registry) -> list[Block]:
    kinds = registry.for_params(candidate.params).kinds(candidate.params, candidate.cell.steps)
    plain = registry.for_params({}).kinds({}, candidate.cell.steps)
    return [
        Block(
            RunTiming(row["baseline"]["total_s"], tuple(row["baseline"]["step_s"]), plain),
            (RunTiming(row["run"]["total_s"], tuple(row["run"]["step_s"]), kinds),),
            row["disturbance"],
            row.get("started_at") or 0.0,
        )
        for row in rows
    ]
