"""Does a search find the same winners twice? Two searches of one cell, one after the other, compared target by target.

Run ``python -m benchmarks.repeatability -- --pipe SD1.5 --sched DDIM --steps 20 --grid coarse`` on a quiet machine;
what follows ``--`` goes to ``pytest benches``. Each search has a working folder of its own, so that nothing is reused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.golden_key import GoldenKey

ROOT = Path(__file__).resolve().parent.parent


def search(folder: Path, options: Sequence[str]) -> dict[GoldenKey, GoldenEntry]:
    """Search from nothing in ``folder``; the winners."""
    folder.mkdir()
    golden = folder / "golden.json"
    command = [sys.executable, "-m", "pytest", str(ROOT / "benches"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    began = time.monotonic()
    # This clone's package, whatever is installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    command += ["--golden", str(golden), *options]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    print(f"searched in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return read_golden(golden)


def compare(first: Mapping[GoldenKey, GoldenEntry], second: Mapping[GoldenKey, GoldenEntry]) -> list[dict[str, Any]]:
    """A row per target: whether the choice is the same, and whether each speed-up lies in the other's interval."""
    rows = []
    for key in sorted(first, key=lambda key: key.prompt_order):
        one, other = first[key], second[key]
        same = (one.status, one.params) == (other.status, other.params)
        rows.append(
            {
                "accelerator": key.accelerator,
                "target": key.target,
                "same choice": same,
                "speedups agree": same and _within(one, other) and _within(other, one),
                "first": _figures(one),
                "second": _figures(other),
            }
        )
    return rows


def _within(one: GoldenEntry, other: GoldenEntry) -> bool:
    ends = other.speedup_ci95
    return one.speedup is not None and ends is not None and ends[0] <= one.speedup <= ends[1]


def _figures(entry: GoldenEntry) -> str:
    ends = entry.speedup_ci95 or (0.0, 0.0)
    return f"{entry.speedup:.3f}x [{ends[0]:.3f}, {ends[1]:.3f}]" if entry.speedup else "-"


def main() -> None:
    """Search twice and print the comparison."""
    made = parser(__doc__ or "")
    made.add_argument("options", nargs="*", help="options of the search, after --")
    arguments = made.parse_args()
    options = arguments.options or ["--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse"]
    with tempfile.TemporaryDirectory() as name:
        first, second = (search(Path(name) / run, options) for run in ("first", "second"))
    rows = compare(first, second)
    same = [row for row in rows if row["same choice"]]
    # Targets that share a winner share its measurement: one comparison, not several.
    distinct = [next(group) for _, group in groupby(same, key=lambda row: (row["accelerator"], row["first"]))]
    summary = {
        "same_choice_share": len(same) / len(rows),
        "speedups_agree_share": sum(row["speedups agree"] for row in distinct) / len(distinct) if distinct else 0.0,
    }
    show("two searches of one cell", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
