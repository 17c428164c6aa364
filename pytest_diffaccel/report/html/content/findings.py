"""A cell's findings: its records, its winners, and how the winners of its groups stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pytest_diffaccel.matrix import Cell, format_params
from pytest_diffaccel.measure.deciding import BY_LPIPS, LPIPS, QualityRule
from pytest_diffaccel.records.contents import GroupWinners
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change, differences_from
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.html.content.candidate_rows import Row, rows_of
from pytest_diffaccel.report.html.content.cells import CellRecord, cells_of
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.rules import DIFFBENCH


@dataclass(frozen=True)
class Findings:
    """What was found in a cell.

    Attributes:
        record: what the store holds.
        entries: winners, and what comes nearest to targets that none reaches.
        rows: its candidates.
        quality: what decided.
        changes: what its entries are to golden.
    """

    record: CellRecord
    entries: Mapping[GoldenKey, GoldenEntry]
    rows: tuple[Row, ...]
    quality: QualityRule
    changes: tuple[Change, ...]

    @property
    def cell(self) -> Cell:
        """The cell."""
        return self.record.cell

    @property
    def groups(self) -> list[str]:
        """Accelerators that were begun."""
        return list(dict.fromkeys(row.accelerator for row in self.rows))

    @property
    def unfinished(self) -> list[str]:
        """Accelerators whose winners are not all found, as far as the store says."""
        return [name for name in self.groups if name not in self.record.finished]

    @property
    def best(self) -> list[tuple[tuple[float, ...], GoldenKey, GoldenEntry]]:
        """Of all accelerators' winners at a target the one that loses least, with the targets that it is that of."""
        best: dict[float, tuple[GoldenKey, GoldenEntry]] = {}
        for key, entry in sorted(self.entries.items(), key=lambda item: item[0].prompt_order):
            if entry.status == "met" and entry.lpips is not None:
                known = best.get(key.target)
                if known is None or self._cost(entry) < self._cost(known[1]):
                    best[key.target] = key, entry
        shown = groupby(sorted(best), key=lambda target: (best[target][0].accelerator, best[target][1].params))
        return [(targets, *best[targets[0]]) for targets in (tuple(same) for _, same in shown)]

    def _cost(self, entry: GoldenEntry) -> float:
        """What sorts entries, the best first; those that what decided the cell does not know are last."""
        if self.quality.metric == LPIPS:
            return self.quality.cost_of(entry.lpips)
        metric = (entry.metrics or {}).get(self.quality.metric)
        return self.quality.cost_of(metric.value if metric else None)

    @property
    def by_diffbench(self) -> bool:
        """Whether DiffBench's rule decided any entry."""
        return any(entry.rule == DIFFBENCH for entry in self.entries.values())

    @property
    def has_metrics(self) -> bool:
        """Whether any entry has secondary metrics."""
        return any(entry.metrics for entry in self.entries.values())

    @property
    def beaten(self) -> tuple[int, int]:
        """How many winning settings lose more than the plain pipeline with fewer steps, and of how many."""
        shown = {(row.accelerator, row.params) for row in self.rows if row.verdict == "winner"}
        beats = {
            setting: entry.beats_fewer_steps
            for key, entry in self.entries.items()
            if entry.status == "met" and (setting := (key.accelerator, format_params(entry.params))) in shown
        }
        compared = [is_better for is_better in beats.values() if is_better is not None]
        return compared.count(False), len(compared)

    @property
    def counts(self) -> Counter[str]:
        """How many rows have each verdict."""
        return Counter(row.verdict for row in self.rows)


def decided_by(winners: Collection[GroupWinners], otherwise: QualityRule) -> QualityRule:
    """What decided the newest of some groups' winners.

    Args:
        winners: of the groups.
        otherwise: what decides where there are none; if that is LPIPS, with the worst that LPIPS allows.
    """
    newest = max(winners, key=lambda won: won.created_at, default=None)
    if newest is None:
        return otherwise
    # Whose session did not come so far: what is told is an earlier search's.
    by_lpips = otherwise if otherwise.metric == LPIPS else BY_LPIPS.rule
    return newest.quality or by_lpips


def find(material: Material) -> list[Findings]:
    """The findings of every wanted cell that the store knows, in order."""
    records = cells_of(material.contents)
    found = []
    for record in records:
        if not material.wanted(record.cell):
            continue
        in_golden = {
            key: entry
            for key, entry in material.golden.entries.items()
            if key.cell == record.cell
            and entry.environment == record.environment
            # Of those that were searched to their end, what golden has else is undecided by now.
            and key.accelerator not in record.winners
        }
        changes = _changes(material, record.cell, record.entries)
        just_found = {change.key: change.after for change in changes if change.after is not None}
        entries = {**in_golden, **record.entries, **just_found}
        quality = decided_by(record.winners.values(), material.quality)
        rows = rows_of(record, entries, material.prompts, quality)
        found.append(Findings(record, entries, tuple(rows), quality, changes))
    return found


def _changes(material: Material, cell: Cell, entries: Mapping[GoldenKey, GoldenEntry]) -> tuple[Change, ...]:
    if material.changes is not None:
        return tuple(change for change in material.changes if change.key.cell == cell)
    return tuple(differences_from(material.golden.entries, entries))


def accelerators_of(found: Sequence[Findings], registry_names: Sequence[str]) -> list[str]:
    """All accelerators of the findings: those that are registered first, in their order."""
    seen = {row.accelerator for findings in found for row in findings.rows}
    return [name for name in registry_names if name in seen] + sorted(seen - set(registry_names))
