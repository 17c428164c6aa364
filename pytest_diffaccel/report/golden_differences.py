"""What is different in two golden databases, and what a search changed in one, in lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from pytest_diffaccel.records.environment import Environment, differences_text
from pytest_diffaccel.records.golden_changes import CATEGORIES, categories
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.words import counted
from pytest_diffaccel.words import lines as wrapped

# More changes of a category than this are counted, not listed.
_LISTED = 10
# Of what a search changed so many keys are told of, if not all: those of a cell.
_TOLD = 42


def counts_text(changes: Sequence[Change]) -> str:
    """How many changes there are of each kind: ``2 differ, 5 new``."""
    counts = Counter(change.kind for change in changes)
    words = {kind: "differ" if kind == "differs" and count > 1 else kind for kind, count in counts.items()}
    return ", ".join(f"{counts[kind]} {words[kind]}" for kind in sorted(counts)) or "nothing to record"


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
    told = sorted(
        (change for change in changes if change.kind in ("differs", "updated", "pruned")),
        key=lambda change: change.key.prompt_order,
    )
    lines = [f"  {line}" for line in moves_text(told, environments, environments)]
    for (kind, cell, accelerator), own in groupby(
        told[:_TOLD], key=lambda change: (change.kind, change.key.cell, change.key.accelerator)
    ):
        lines.append(f"  {kind}: {cell.in_words}, {accelerator}")
        by_text: dict[str, list[str]] = {}
        for change in own:
            by_text.setdefault(_details(change), []).append(f"{change.key.target:g}x")
        lines += [f"    {', '.join(targets)}: {text}" for text, targets in by_text.items()]
    if len(told) > _TOLD:
        lines.append(f"  and {counted(len(told) - _TOLD, 'key')} more")
    return ["", f"golden: {golden}: {counts_text(changes)}", *(part for line in lines for part in wrapped(line, width))]


def changes_by_category(changes: Sequence[Change], *, every: bool, width: int) -> list[str]:
    """Changes by category, as lines; one of two categories stands under both.

    Args:
        changes: at least one.
        every: list all of them, not only the first of each category.
        width: characters per line.
    """
    lines = []
    for category in CATEGORIES:
        own = [change for change in changes if category in categories(change)]
        listed = own if every else own[:_LISTED]
        lines += [f"{category}: {len(own)}"] if own else []
        for change in listed:
            lines += wrapped(f"  {change.key.in_words}: {_details(change)}", width)
        lines += [f"  and {len(own) - len(listed)} more (--all)"] if len(own) > len(listed) else []
    return lines


def _details(change: Change) -> str:
    return ", ".join(change.details) or "the same choice"


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
        said = differences_text(before.get(old), after.get(new))
        lines.append(f"moved {pairs.count((old, new))} from environment {old} to {new}: {said}")
    return lines
