"""The command ``diffaccel export``: the rows of a store, or a winner as the lines that another tool takes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.cli.generate_command import asked_task, put, say_notes
from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.option_types import one_of
from pytest_diffaccel.settings.work_folder import GOLDEN, WORK
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.records.export_rows import Row

_EXAMPLE = "'FLUX.1, flow match euler, 28 steps, TaylorSeer, 1.5x'"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    export = commands.add_parser(
        "export",
        help="all measurements of a store as a table for other tools, or a winner (KEY) as the lines that a tool takes",
    )
    export.add_argument("key", nargs="?", metavar="KEY", help=f"with --as, a winner: {_EXAMPLE}, or a key of golden")
    export.add_argument(
        "--as",
        dest="tool",
        type=one_of("diffusers", "cache-dit"),
        metavar="TOOL",
        help="diffusers or cache-dit: its cache's config, in Python",
    )
    export.add_argument("--golden", type=Path, metavar="FILE", help=f"of a winner; default: {GOLDEN}")
    export.add_argument("--models", metavar="FILE", help="of a winner: models file that describes a pipe of your own")
    export.add_argument("--store", metavar="URL", help=f"of a table; default: {WORK.store}")
    export.add_argument(
        "--format",
        type=one_of("csv", "parquet", "json"),
        metavar="FORMAT",
        help="of a table: csv, parquet or json; default: the output's suffix, or csv",
    )
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    export.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    is_winner = parsed.key is not None
    if is_winner and parsed.tool is None:
        raise ValueError(f"{parsed.key!r} is one winner; say which tool is to take it: --as diffusers or cache-dit")
    if parsed.tool is not None and not is_winner:
        raise ValueError(f"--as {parsed.tool} is for one winner; name it, for example: {_EXAMPLE}")
    foreign = ("store", "format") if is_winner else ("golden", "models")
    if misplaced := [f"--{name}" for name in foreign if getattr(parsed, name) is not None]:
        other = "not with a KEY: winners are of --golden" if is_winner else "only with a KEY: tables are of --store"
        raise ValueError(f"{', '.join(misplaced)}: {other}")
    return _export_winner(parsed) if is_winner else _export_table(parsed)


def _export_winner(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.codegen.lookup import find
    from pytest_diffaccel.codegen.script import TOOLS, render_cache
    from pytest_diffaccel.records.golden_file import Golden

    task, registry = asked_task(_sentence(parsed.key), parsed.models or "embedded")
    answer = find(task, Golden.read(parsed.golden or GOLDEN), registry)
    text = render_cache(answer, parsed.tool)
    if not text:
        if other := next((tool for tool in TOOLS if tool != parsed.tool and render_cache(answer, tool)), ""):
            raise ValueError(f"{task.accelerator} is a cache of {other}, not of {parsed.tool}: --as {other}")
        given = [("--golden", parsed.golden), ("--models", parsed.models)]
        places = [word for name, place in given if place is not None for word in (name, str(place))]
        command = shlex.join(["diffaccel", "generate", task.sentence, *places])
        raise ValueError(
            f"{parsed.tool} has no cache for {task.accelerator}; a script has all that it takes: {command}"
        )
    say_notes(answer)
    put(text, parsed.output, f"the cache for {parsed.tool}, of: {task.sentence}")
    return 0


def _sentence(text: str) -> str:
    """A key of golden as a sentence; what is none stays as it is."""
    from pytest_diffaccel.records.golden_key import GoldenKey

    if not text.startswith("("):
        return text
    key = GoldenKey.parse(text)
    return f"{key.cell.pipe}, {key.cell.scheduler}, {key.cell.steps} steps, {key.accelerator}, {key.target}x"


def _export_table(parsed: argparse.Namespace) -> int:
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
    rows = rows_of_store(parsed.store or str(WORK.store))
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
        FileNotFoundError: when an SQLite file is not there.
        ValueError: when the store cannot be read.
    """
    from pytest_diffaccel.records.export_rows import export_rows
    from pytest_diffaccel.records.places import refuse_missing
    from pytest_diffaccel.records.store import Store
    from pytest_diffaccel.records.tables import StoreError

    refuse_missing(address)
    try:
        with Store.open(address) as store:
            return export_rows(store.contents())
    except StoreError as error:
        raise ValueError(str(error)) from error
