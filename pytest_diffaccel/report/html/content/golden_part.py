"""What a search means for golden, by category, and the command that accepts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_diffaccel.matrix import spaced_params
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_changes import CATEGORIES, categories
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.report.html.content.findings import Findings
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.report.winners import terms_text


@dataclass(frozen=True)
class GoldenPart:
    """Golden and what was found.

    Attributes:
        path: the golden file.
        by_category: changes, each once: one that is faster and worse has a category of its own.
        unchanged: how many keys say the same.
        pending: how many changes golden does not hold yet.
        command: what writes them.
        written: whether a search wrote the changes that are not pending.
    """

    path: str
    by_category: tuple[tuple[str, tuple[Change, ...]], ...]
    unchanged: int
    pending: int
    command: str
    written: bool


def golden_part(material: Material, found: Sequence[Findings]) -> GoldenPart:
    """The part of a page that compares with golden."""
    changes = [change for findings in found for change in findings.changes]
    if material.changes is not None:
        # What was pruned may lie in a cell that the store does not know.
        changes += [change for change in material.changes if change not in changes]
    by_category: dict[tuple[str, ...], list[Change]] = {}
    for change in changes:
        if change.kind != "unchanged":
            by_category.setdefault(categories(change), []).append(change)
    gravest_first = sorted(by_category, key=lambda names: sorted(map(CATEGORIES.index, names)))
    pending = [change for change in changes if _is_pending(change, written=material.changes is not None)]
    return GoldenPart(
        path=str(material.golden.path),
        by_category=tuple((" and ".join(names), tuple(by_category[names])) for names in gravest_first),
        unchanged=sum(change.kind == "unchanged" for change in changes),
        pending=len(pending),
        command=_command(material.command, pending),
        written=material.changes is not None,
    )


def _is_pending(change: Change, *, written: bool) -> bool:
    return change.kind == "differs" or (change.kind == "new" and not written)


def _command(search: str, pending: Iterable[Change]) -> str:
    update = any(change.kind == "differs" for change in pending) and "--update-golden" not in search
    return f"{search} --update-golden" if update else search


def entry_words(entry: GoldenEntry | None) -> str:
    """An entry in one line; a dash for none."""
    if entry is None:
        return "-"
    status = "" if entry.status == "met" else f"unattainable ({entry.reason}), best reached "
    if entry.speedup is None or entry.lpips is None:
        return f"{status}nothing"
    gpu = "" if entry.device_speedup is None else f" (GPU {entry.device_speedup:.2f}x)"
    params = spaced_params(entry.params)
    return "; ".join([f"{status}{entry.speedup:.2f}x{gpu}, LPIPS {entry.lpips:.4f}, {params}", *terms_text(entry)])
