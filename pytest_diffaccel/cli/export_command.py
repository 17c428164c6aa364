"""The command ``diffaccel export``, and the rows of a store."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.option_types import one_of
from pytest_diffaccel.settings.work_folder import WORK
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.records.export_rows import Row


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    export = commands.add_parser("export", help="all measurements of a store as a table for other tools")
    export.add_argument("--store", default=str(WORK.store), metavar="URL", help=f"default: {WORK.store}")
    export.add_argument(
        "--format",
        type=one_of("csv", "parquet", "json"),
        metavar="FORMAT",
        help="csv, parquet or json; default: the output's suffix, or csv",
    )
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    export.set_defaults(run=_export)


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
    rows = rows_of_store(parsed.store)
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
    print_lines(f"{parsed.output}: {counted(len(rows), 'row')}: {said}")
    return 0


def rows_of_store(address: str) -> list[Row]:
    """All that a store holds, a row per candidate.

    Args:
        address: SQLite file or SQLAlchemy URL.

    Raises:
        FileNotFoundError: when an SQLite file is not there: opening it would make an empty one.
        ValueError: when the store cannot be read.
    """
    from pytest_diffaccel.records.export_rows import export_rows
    from pytest_diffaccel.records.store import Store
    from pytest_diffaccel.records.tables import StoreError
    from pytest_diffaccel.settings.options import FIRST_SEARCH, benches_command

    path = Path(address.removeprefix("sqlite:///"))
    if "://" not in str(address).removeprefix("sqlite:///") and not path.is_file():
        raise FileNotFoundError(f"there is no store {path}; a search makes one: {benches_command(*FIRST_SEARCH)}")
    try:
        with Store.open(address) as store:
            return export_rows(store.contents())
    except StoreError as error:
        raise ValueError(str(error)) from error
