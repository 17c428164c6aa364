"""Two golden databases side by side: what changed, by category; and several of them as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change, Golden, write_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.jsonfile import folder_lock

Category: TypeAlias = Literal[
    "slower", "worse", "faster", "better", "new", "gone", "moved to another environment", "other parameters or status"
]
Prefer: TypeAlias = Literal["first", "last"]
#: In the order in which they are listed: what needs attention first.
CATEGORIES: tuple[Category, ...] = (
    "slower",
    "worse",
    "faster",
    "better",
    "new",
    "gone",
    "moved to another environment",
    "other parameters or status",
)
# More keys in conflict than this are counted, not named.
_NAMED_CONFLICTS = 3


@dataclass(frozen=True)
class Merged:
    """Several golden databases as one.

    Attributes:
        entries: by key.
        environments: by id.
        conflicts: keys of which the databases hold unequal records, in prompt order.
    """

    entries: Mapping[GoldenKey, GoldenEntry]
    environments: Mapping[str, Environment]
    conflicts: tuple[GoldenKey, ...]


def golden_changes(before: Mapping[GoldenKey, GoldenEntry], after: Mapping[GoldenKey, GoldenEntry]) -> list[Change]:
    """What ``after`` says otherwise than ``before``, in prompt order; empty when they say the same.

    Figures differ only when their intervals share no point: repeating a measurement changes nothing.
    """
    keys = sorted({*before, *after}, key=lambda key: key.prompt_order)
    return [change for key in keys if (change := _change(key, before.get(key), after.get(key))) is not None]


def categories(change: Change) -> tuple[Category, ...]:
    """What a change is; a winner that is faster and worse is both.

    Figures of another environment are another machine's, or of other weights: such a change is a move, nothing else.
    """
    before, after = change.before, change.after
    if before is None:
        return ("new",)
    if after is None:
        return ("gone",)
    if before.environment != after.environment:
        return ("moved to another environment",)
    return tuple(_compared(before, after)) or ("other parameters or status",)


def merged(databases: Sequence[Golden], prefer: Prefer | None = None) -> Merged:
    """All keys of all databases.

    Args:
        databases: at least one.
        prefer: whose record stands where two are unequal; None refuses that.

    Raises:
        ValueError: when records are unequal and nothing is preferred; names the keys and the choice.
    """
    entries: dict[GoldenKey, GoldenEntry] = {}
    environments: dict[str, Environment] = {}
    conflicts: set[GoldenKey] = set()
    for database in databases:
        unequal = {key for key, entry in database.entries.items() if entries.get(key, entry) != entry}
        conflicts |= unequal
        kept = () if prefer == "last" else unequal
        entries.update({key: entry for key, entry in database.entries.items() if key not in kept})
        for name, environment in database.environments.items():
            # Equal otherwise, or the id were another: each may tell what was found out in it.
            earlier = environments.get(name)
            environments[name] = earlier.knowing_also(environment) if earlier else environment
    ordered = tuple(sorted(conflicts, key=lambda key: key.prompt_order))
    if ordered and prefer is None:
        named = ", ".join(map(str, ordered[:_NAMED_CONFLICTS]))
        more = f" and {len(ordered) - _NAMED_CONFLICTS} more" if len(ordered) > _NAMED_CONFLICTS else ""
        raise ValueError(f"unequal records of {named}{more}: choose with --prefer first or --prefer last")
    return Merged(entries, environments, ordered)


def merge_files(sources: Sequence[Path], target: Path, prefer: Prefer | None = None) -> Merged:
    """Merge golden files into one, and the environments beside them into those beside it.

    Args:
        sources: golden files, in the order that ``prefer`` speaks of.
        target: what is written; an existing file must be among the sources, so that no key of it is lost.
        prefer: see :func:`merged`.

    Raises:
        FileNotFoundError: when a source is missing.
        FileExistsError: when the target exists and is no source.
        ValueError: for conflicts, and (``JsonFileError``) for files that do not parse; nothing is written.
    """
    if target.exists() and target.resolve() not in {source.resolve() for source in sources}:
        raise FileExistsError(f"{target} exists: name it among the files to merge, or give another --output")
    with folder_lock(target.resolve().parent):
        result = merged([Golden.existing(source) for source in sources], prefer)
        write_golden(target.resolve(), result.entries, result.environments)
    return result


def _change(key: GoldenKey, before: GoldenEntry | None, after: GoldenEntry | None) -> Change | None:
    if before is None:
        return Change(key, "new", None, after)
    if after is None:
        return Change(key, "pruned", before, None)
    return Change(key, "differs", before, after) if before.difference(after) else None


def _compared(before: GoldenEntry, after: GoldenEntry) -> Iterator[Category]:
    names: tuple[tuple[str, Category, Category], ...] = (("speedup", "slower", "faster"), ("lpips", "better", "worse"))
    for name, below, above in names:
        old, new = (getattr(entry, f"{name}_ci95") for entry in (before, after))
        if old is None or new is None:
            continue
        if new[1] < old[0]:
            yield below
        elif new[0] > old[1]:
            yield above
