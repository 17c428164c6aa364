"""Recorded blocks: what an exhaustive search of a few cells would see, and a machine whose speed has two modes.

The former are the tables of ``benchmarks.record_exhaustive``, the latter a few candidates on an idle virtual machine.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.output import needed
from pytest_diffaccel.accelerators.registry import Registry, default_registry
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
    parquet = needed("pyarrow.parquet")
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


def read_idle_vm() -> list[Point]:
    """DeepCache with intervals 2, 3 and 5 in 19 blocks each, which share their baseline; no losses.

    The virtual machine's speed has two modes, a plain step takes 175 ms or 231, and either lasts from a tenth of a
    second to minutes. Ratios of total times, with twice their standard error: 1.745 +- 0.064, 2.23 +- 0.10 and
    3.09 +- 0.15.
    """
    names = {"P": "plain", "F": "DeepCache:full", "S": "DeepCache:shallow@0"}
    recorded = json.loads((DATA / "blocks-idle-vm.json").read_text(encoding="utf-8"))
    runs = [
        {
            name: RunTiming(run["total_s"], tuple(run["step_s"]), tuple(names[kind] for kind in run["kinds"]))
            for name, run in block["runs"].items()
        }
        for block in recorded["blocks"]
    ]
    cell = Cell("SD1.5", "DDIM", 20)
    points = []
    for interval in (2, 3, 5):
        candidate = Candidate(cell, "DeepCache", {"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}})
        own = f"DeepCache interval {interval} branch 0"
        # Nothing but their order is recorded of when blocks began.
        blocks = (Block(block["baseline"], (block[own],), "", float(place)) for place, block in enumerate(runs))
        points.append(Point(candidate, (), tuple(blocks)))
    return points
