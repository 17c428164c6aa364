"""Score the embedded pipelines' recorded points in cells of which ``record_exhaustive`` holds none.

``python -m benchmarks.record_losses --device cuda --shard 0/8`` records one share of every missing pipe and scheduler
at 20 steps, and of FLUX.1's cells, into a folder per cell; ``python -m benchmarks.record_losses --pack`` joins the
folders into ``benchmarks/data/losses.parquet``; what they do not hold stays as it was packed before. The golden records
of a GPU take the order of parameters by quality from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.output import needed
from benchmarks.record_exhaustive import CELLS, candidates, record_quality, rows_of
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, Cell, cells
from pytest_diffaccel.pipes import described

STEPS = 20
DATA = Path(__file__).resolve().parent / "data" / "losses.parquet"


def flux_cells() -> list[Cell]:
    """FLUX.1's cells: its caches' parameters say in whole steps what they do, so each number of them is scored."""
    flux = described("FLUX.1")
    return list(cells([flux.name], flux.schedulers, flux.steps))


def missing_cells() -> list[Cell]:
    """A cell of 20 steps for every pipe and scheduler that was not recorded with any number of steps; and FLUX.1's."""
    recorded = {(cell.pipe, cell.scheduler) for cell in CELLS.values()}
    known = [Cell(pipe, name, STEPS) for name in SCHEDULERS for pipe in PIPES if (pipe, name) not in recorded]
    return [*known, *flux_cells()]


def packed(folder: Path, before: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row per point that was scored.

    Args:
        folder: what was recorded.
        before: rows of what was packed before.
    """
    known = {_name(row): row["lpips"] for row in before}
    for cell in missing_cells():
        found = {row["key"]: row["lpips"] for path in (folder / str(cell)).glob("*.jsonl") for row in rows_of(path)}
        for one in candidates(cell, default_registry()):
            where = {"pipe": cell.pipe, "scheduler": cell.scheduler, "steps": cell.steps}
            row = {**where, "accelerator": one.accelerator, "params": json.dumps(one.params)}
            lpips = found.get(one.key, known.get(_name(row)))
            if lpips:
                yield {**row, "lpips": lpips, "blocks": []}


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[field] for field in ("pipe", "scheduler", "steps", "accelerator", "params"))


def main() -> None:
    """Record a share, or pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", action="store_true", help="join what was recorded")
    parser.add_argument("--folder", type=Path, default=Path(".diffaccel/losses"), help="working folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cell", choices=[str(cell) for cell in missing_cells()], action="append", help="default: all")
    parser.add_argument("--shard", default="0/1", help="this process's share, as 0/8")
    arguments = parser.parse_args()
    if arguments.pack:
        pa, parquet = needed("pyarrow"), needed("pyarrow.parquet")
        before = parquet.read_table(DATA).to_pylist() if DATA.exists() else []
        table = pa.Table.from_pylist(list(packed(arguments.folder, before)))
        parquet.write_table(table, DATA, compression="zstd", compression_level=19)
        print(f"{DATA.name}: {table.num_rows} rows")
        return
    shard, shards = (int(part) for part in arguments.shard.split("/"))
    for cell in missing_cells():
        if arguments.cell and str(cell) not in arguments.cell:
            continue
        folder = arguments.folder / str(cell)
        folder.mkdir(parents=True, exist_ok=True)
        record_quality(cell, folder, arguments.device, shard, shards)


if __name__ == "__main__":
    main()
