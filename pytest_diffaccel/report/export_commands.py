"""The commands ``diffaccel export`` and ``diffaccel compare``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_diffaccel.records.comparison import Comparison, Subjects
    from pytest_diffaccel.records.export_rows import Row

_STORE = ".diffaccel/search.sqlite"
# Suffixes of what `export` writes.
_FILES = (".csv", ".json", ".parquet")
_WIDTH = 150
_LONGEST_TABLE = 40


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    export = commands.add_parser("export", help="all measurements of a store as a table for other tools")
    export.add_argument("--store", default=_STORE, metavar="URL", help=f"default: {_STORE}")
    export.add_argument("--format", choices=["csv", "parquet", "json"], help="default: the output's suffix, or csv")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    export.set_defaults(run=_export)
    compare = commands.add_parser("compare", help="two stores, exports or golden files: what became slower or worse?")
    compare.add_argument("before", metavar="A")
    compare.add_argument("after", metavar="B")
    compare.add_argument("--fail-on", choices=["regressed"], help="exit status 1 when a candidate is slower or worse")
    compare.add_argument("--all", action="store_true", help="list also what stayed the same")
    compare.set_defaults(run=_compare)


def _export(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.export_files import FORMATS, dump_csv, dump_json, write_parquet

    suffix = parsed.output.suffix.lstrip(".").lower() if parsed.output else ""
    if suffix and suffix not in FORMATS and not parsed.format:
        raise ValueError(
            f"{parsed.output}: .{suffix} is none of the formats, which are {', '.join(FORMATS)}; "
            "name the file after one of them, or give --format"
        )
    chosen = parsed.format or suffix or "csv"
    if chosen == "parquet" and parsed.output is None:
        raise ValueError("Parquet is not text: give a file with --output")
    rows = _rows_of_store(parsed.store)
    if chosen == "parquet":
        write_parquet(rows, parsed.output)
    else:
        text = dump_csv(rows) if chosen == "csv" else dump_json(rows)
        if parsed.output is None:
            sys.stdout.write(text)
            return 0
        parsed.output.write_text(text, encoding="utf-8", newline="\n")
    counts = Counter(row["status"] for row in rows)
    said = ", ".join(f"{counts[status]} {status}" for status in ("measured", "failed", "skipped"))
    print(f"{parsed.output}: {len(rows)} rows: {said}")
    return 0


def _rows_of_store(address: str) -> list[Row]:
    from pytest_diffaccel.records.export_rows import export_rows
    from pytest_diffaccel.records.store import Store
    from pytest_diffaccel.records.tables import StoreError
    from pytest_diffaccel.settings.options import benches_command

    path = Path(address.removeprefix("sqlite:///"))
    if "://" not in str(address).removeprefix("sqlite:///") and not path.is_file():
        raise FileNotFoundError(f"there is no store {path}; a search makes one: {benches_command()}")
    try:
        with Store.open(address) as store:
            return export_rows(store.contents())
    except StoreError as error:
        raise ValueError(str(error)) from error


def _compare(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.comparison import compare

    comparison = compare(_subjects(parsed.before), _subjects(parsed.after))
    for line in _table(comparison, every=parsed.all):
        print(line)
    regressed = sum(one.regressed for one in comparison.compared)
    counts = Counter(", ".join(one.verdicts) or "same" for one in comparison.compared)
    print(f"{len(comparison.compared)} compared: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    if comparison.only_before or comparison.only_after:
        print(f"not compared: {comparison.only_before} only in A, {comparison.only_after} only in B")
    return 1 if parsed.fail_on and regressed else 0


def _subjects(address: str) -> Subjects:
    from pytest_diffaccel.records.comparison import subjects_of_golden, subjects_of_rows
    from pytest_diffaccel.records.export_files import read_export
    from pytest_diffaccel.records.golden_changes import Golden

    path = Path(address)
    if path.suffix in _FILES and not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; name a store, an export ({', '.join(_FILES)}) or a golden file"
        )
    if path.suffix == ".json" and _is_golden(path):
        return subjects_of_golden(Golden.read(path))
    if path.suffix in _FILES:
        try:
            return subjects_of_rows(read_export(path))
        except KeyError as error:
            raise ValueError(f"{path} has no column {error}; compare what `diffaccel export` wrote, whole") from error
    return subjects_of_rows(_rows_of_store(address))


def _is_golden(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except ValueError:
        return True  # golden's reader says which line is wrong


def _table(comparison: Comparison, *, every: bool) -> list[str]:
    from rich.table import Table

    from pytest_diffaccel.report.table_text import table_lines

    rows = [one for one in comparison.compared if every or one.verdicts]
    rows.sort(key=lambda one: (not one.regressed, not one.verdicts, one.ratio.value))
    listed = rows if every else rows[:_LONGEST_TABLE]
    table = Table(box=None, pad_edge=False)
    for heading in ("candidate", "speedup", "B/A [95%]", "LPIPS", "verdict"):
        table.add_column(heading, overflow="fold")
    for one in listed:
        old, new, ratio = one.before, one.after, one.ratio
        table.add_row(
            one.name.replace(",", ", "),
            f"{old.speedup.value:.2f}x -> {new.speedup.value:.2f}x",
            f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            f"{old.lpips.value:.4f} -> {new.lpips.value:.4f}",
            ", ".join(one.verdicts) or "same",
        )
    if len(rows) > len(listed):
        table.add_row(f"and {len(rows) - len(listed)} more (--all)")
    return table_lines(table, _WIDTH) if rows else []
