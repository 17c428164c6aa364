"""Two golden databases side by side, as a table of what changed; and what a search changed in one, in lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from pytest_diffaccel.matrix import spaced_params
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.records.environment import Environment, differences
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_changes import CATEGORIES, categories
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.report.table_text import table_lines
from pytest_diffaccel.report.winners import terms_text
from pytest_diffaccel.words import counted
from pytest_diffaccel.words import lines as wrapped

# Wide enough for a change of figures and of parameters on one line each.
_WIDTH = 150
# More changes of a category than this are counted, not listed.
_LISTED = 10
# Of what a search changed so many keys are told of, if not all: those of a cell.
_TOLD = 42


def changes_text(
    changes: Sequence[Change], golden: Path, environments: Mapping[str, Environment], width: int
) -> list[str]:
    """What became of the golden file: counts, and every difference, in lines of ``width`` characters at most.

    Args:
        changes: of all keys that the search decided.
        golden: the file.
        environments: those before and after, by id.
        width: characters per line.
    """
    counts = Counter(change.kind for change in changes)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing to record"
    told = sorted(
        (change for change in changes if change.kind in ("differs", "updated", "pruned")),
        key=lambda change: change.key.prompt_order,
    )
    lines = [f"  {line}" for line in moves_text(told, environments, environments)]
    for (kind, cell, accelerator), own in groupby(
        told[:_TOLD], key=lambda change: (change.kind, change.key.cell, change.key.accelerator)
    ):
        lines.append(f"  {kind}: {cell.pipe} {cell.scheduler} {cell.steps} steps, {accelerator}")
        by_text: dict[str, list[str]] = {}
        for change in own:
            by_text.setdefault(", ".join(change.details) or "the same choice", []).append(f"{change.key.target:g}x")
        lines += [f"    {', '.join(targets)}: {text}" for text, targets in by_text.items()]
    if len(told) > _TOLD:
        lines.append(f"  and {counted(len(told) - _TOLD, 'key')} more")
    return ["", f"golden: {golden}: {said}", *(part for line in lines for part in wrapped(line, width))]


def changes_table(changes: Sequence[Change], *, every: bool) -> list[str]:
    """Changes by category, as lines; one of two categories stands under both.

    Args:
        changes: at least one.
        every: list all of them, not only the first of each category.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("change", "speedup [95%]", "LPIPS [95%]", "parameters"):
        table.add_column(heading, overflow="fold")
    for category in CATEGORIES:
        own = [change for change in changes if category in categories(change)]
        listed = own if every else own[:_LISTED]
        if own:
            table.add_row(f"{category}: {len(own)}")
        for change in listed:
            table.add_row(*_cells(change))
        if len(own) > len(listed):
            table.add_row(f"  and {len(own) - len(listed)} more (--all)")
    return table_lines(table, _WIDTH)


def moves_text(
    changes: Sequence[Change], before: Mapping[str, Environment], after: Mapping[str, Environment]
) -> list[str]:
    """What is different in the environments that records moved between, one line per pair.

    Args:
        changes: of golden.
        before: environments of the old database, by id.
        after: those of the new one.
    """
    pairs = [
        (change.before.environment, change.after.environment)
        for change in changes
        if change.before and change.after and change.before.environment != change.after.environment
    ]
    lines = []
    for old, new in dict.fromkeys(pairs):
        known = old in before and new in after
        said = "; ".join(differences(before[old], after[new])) if known else "one of them is not in environments.json"
        lines.append(f"moved {pairs.count((old, new))} from environment {old} to {new}: {said}")
    return lines


def _cells(change: Change) -> tuple[str, str, str, str]:
    key = change.key
    entries = [entry for entry in (change.before, change.after) if entry is not None]
    name = f"  {key.cell.pipe} {key.cell.scheduler} {key.cell.steps} {key.accelerator} {key.target:g}x"
    speedups, losses = ([words(entry) for entry in entries] for words in (_speedup, _lpips))
    return name, _arrow(speedups), _arrow(losses), _params(entries)


def _params(entries: Sequence[GoldenEntry]) -> str:
    """Both settings, with what decided where that is not the same, or not what decides by default."""
    said = []
    for entry in entries:
        notes = [] if entry.reason is None else [f"unattainable: {entry.reason}"]
        notes += terms_text(entry)
        if entry.quality == LPIPS and any(other.quality != LPIPS for other in entries):
            notes.append("decided by LPIPS")
        said.append(spaced_params(entry.params) + (f" ({'; '.join(notes)})" if notes else ""))
    return _arrow(said)


def _arrow(said: Sequence[str]) -> str:
    """Both on lines of their own; once when they are equal."""
    return "\n-> ".join(dict.fromkeys(said))


def _speedup(entry: GoldenEntry) -> str:
    if entry.speedup is None or entry.speedup_ci95 is None:
        return "-"
    return f"{entry.speedup:.2f}x [{entry.speedup_ci95[0]:.2f}, {entry.speedup_ci95[1]:.2f}]"


def _lpips(entry: GoldenEntry) -> str:
    if entry.lpips is None or entry.lpips_ci95 is None:
        return "-"
    return f"{entry.lpips:.3f} [{entry.lpips_ci95[0]:.3f}, {entry.lpips_ci95[1]:.3f}]"
