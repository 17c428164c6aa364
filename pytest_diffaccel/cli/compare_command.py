"""The command ``diffaccel compare``."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.cli.export_command import rows_of_store
from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.option_types import one_of

if TYPE_CHECKING:
    from pytest_diffaccel.records.comparison import ComparedSets, Subjects

# Suffixes of what `export` writes.
_FILES = (".csv", ".json", ".parquet")
_WIDTH = 150
_LONGEST_TABLE = 40


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    compare = commands.add_parser("compare", help="two stores, exports or golden files: what became slower or worse?")
    compare.add_argument("before", metavar="A")
    compare.add_argument("after", metavar="B")
    compare.add_argument(
        "--fail-on",
        type=one_of("regressed"),
        metavar="regressed",
        help="exit status 1 when a candidate is slower or worse",
    )
    compare.add_argument("--all", action="store_true", help="list also what stayed the same")
    compare.set_defaults(run=_compare)


def _compare(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.comparison import compare

    comparison = compare(_subjects(parsed.before), _subjects(parsed.after))
    for line in _table(comparison, every=parsed.all):
        print(line)
    regressed = sum(subject.regressed for subject in comparison.compared)
    counts = Counter(", ".join(subject.verdicts) or "same" for subject in comparison.compared)
    said = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    print_lines(f"{len(comparison.compared)} compared: {said}")
    if deciders := comparison.other_deciders:
        print_lines(f"worse and better are by LPIPS; {' and '.join(deciders)} decided some of these records")
    if comparison.only_before or comparison.only_after:
        print_lines(f"not compared: {comparison.only_before} only in A, {comparison.only_after} only in B")
    return 1 if parsed.fail_on and regressed else 0


def _subjects(address: str) -> Subjects:
    from pytest_diffaccel.records.comparison import subjects_of_golden, subjects_of_rows
    from pytest_diffaccel.records.export_files import read_export
    from pytest_diffaccel.records.golden_file import Golden

    path = Path(address)
    if path.suffix in _FILES and not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; name a store, an export ({', '.join(_FILES)}) or a golden file"
        )
    if path.suffix == ".json" and _is_golden(path):
        return subjects_of_golden(Golden.existing(path))
    if path.suffix in _FILES:
        try:
            return subjects_of_rows(read_export(path))
        except KeyError as error:
            raise ValueError(f"{path} has no column {error}; compare what `diffaccel export` wrote, whole") from error
    return subjects_of_rows(rows_of_store(address))


def _is_golden(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (ValueError, RecursionError):
        return True  # golden's reader says which line is wrong


def _table(comparison: ComparedSets, *, every: bool) -> list[str]:
    from rich.table import Table

    from pytest_diffaccel.report.table_text import table_lines

    rows = [subject for subject in comparison.compared if every or subject.verdicts]
    rows.sort(key=lambda subject: (not subject.regressed, not subject.verdicts, subject.ratio.value))
    listed = rows if every else rows[:_LONGEST_TABLE]
    table = Table(box=None, pad_edge=False)
    for heading in ("candidate", "speedup", "B/A [95%]", "LPIPS", "verdict"):
        table.add_column(heading, overflow="fold")
    for subject in listed:
        old, new, ratio = subject.before, subject.after, subject.ratio
        table.add_row(
            subject.name.replace(",", ", "),
            f"{old.speedup.value:.2f}x -> {new.speedup.value:.2f}x",
            f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            f"{old.lpips.value:.4f} -> {new.lpips.value:.4f}",
            ", ".join(subject.verdicts) or "same",
        )
    if len(rows) > len(listed):
        table.add_row(f"and {len(rows) - len(listed)} more (--all)")
    return table_lines(table, _WIDTH) if rows else []
