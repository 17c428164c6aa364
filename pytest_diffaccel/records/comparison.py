"""Two sets of measurements side by side: matched by what was measured, judged by the interval of what changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.records.export_rows import Row
from pytest_diffaccel.records.golden_file import Golden


@dataclass(frozen=True)
class ComparedFigures:
    """What is compared of a measurement.

    Attributes:
        speedup: with its interval.
        lpips: with its interval.
        noise_floor: LPIPS below which a difference is none; 0 where it is not known.
        decided_by: the metric that decided, as far as a golden record says so.
    """

    speedup: Interval
    lpips: Interval
    noise_floor: float
    decided_by: str = LPIPS


#: By candidate, or golden key, and sampling, in words.
Subjects: TypeAlias = Mapping[tuple[str, str], ComparedFigures]


@dataclass(frozen=True)
class Compared:
    """One subject in both sets.

    Attributes:
        name: the candidate, or the golden key.
        sampling: which images, in words.
        before: its figures in the first set.
        after: those in the second.
    """

    name: str
    sampling: str
    before: ComparedFigures
    after: ComparedFigures

    @property
    def ratio(self) -> Interval:
        """Speed-up after over speed-up before; both errors, as independent, add up in quadrature of logarithms."""
        old, new = self.before.speedup, self.after.speedup
        ratio = math.log(new.value / old.value)
        below = math.hypot(math.log(new.value / new.low), math.log(old.high / old.value))
        above = math.hypot(math.log(new.high / new.value), math.log(old.value / old.low))
        return Interval(math.exp(ratio), math.exp(ratio - below), math.exp(ratio + above))

    @property
    def lpips_change(self) -> Interval:
        """LPIPS after less LPIPS before; both errors, as independent, add up in quadrature."""
        old, new = self.before.lpips, self.after.lpips
        change = new.value - old.value
        below = math.hypot(new.value - new.low, old.high - old.value)
        above = math.hypot(new.high - new.value, old.value - old.low)
        return Interval(change, change - below, change + above)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """``"slower"`` or ``"faster"``, ``"worse"`` or ``"better"``, where the change is sure; else none.

        Intervals of both figures may well overlap where that of their ratio excludes 1.
        """
        ratio, change, found = self.ratio, self.lpips_change, []
        if ratio.low > 1 or ratio.high < 1:
            found.append("faster" if ratio.value > 1 else "slower")
        noise = max(self.before.noise_floor, self.after.noise_floor)
        if (change.low > 0 or change.high < 0) and abs(change.value) > noise:
            found.append("worse" if change.value > 0 else "better")
        return tuple(found)

    @property
    def regressed(self) -> bool:
        """Whether it became slower or worse."""
        return "slower" in self.verdicts or "worse" in self.verdicts


@dataclass(frozen=True)
class ComparedSets:
    """Two sets of measurements.

    Attributes:
        compared: what both have.
        only_before: how many subjects only the first has.
        only_after: how many only the second has.
    """

    compared: tuple[Compared, ...]
    only_before: int
    only_after: int

    @property
    def other_deciders(self) -> list[str]:
        """Metrics than LPIPS, by which all are compared, that decided records, in alphabetical order."""
        return sorted({one.decided_by for both in self.compared for one in (both.before, both.after)} - {LPIPS})


def compare(before: Subjects, after: Subjects) -> ComparedSets:
    """Match two sets, in the first one's order.

    Raises:
        ValueError: when they have nothing in common, which must not look as if nothing had changed.
    """
    common = [subject for subject in before if subject in after]
    if not common:
        raise ValueError(
            f"nothing to compare: of {len(before)} and {len(after)} measurements none are of the same candidate, "
            "samples, prompts and seed"
        )
    compared = tuple(Compared(*subject, before[subject], after[subject]) for subject in common)
    return ComparedSets(compared, len(before) - len(common), len(after) - len(common))


def subjects_of_rows(rows: Iterable[Row]) -> dict[tuple[str, str], ComparedFigures]:
    """What rows of an export measured; the newest where several environments measured the same."""
    measured = sorted((row for row in rows if row["status"] == "measured"), key=lambda row: str(row["created_at"]))
    return {
        (str(row["candidate"]), _sampling(row)): ComparedFigures(
            _interval(row, "speedup"), _interval(row, "lpips"), row.get("lpips_noise_floor") or 0.0
        )
        for row in measured
    }


def subjects_of_golden(golden: Golden) -> dict[tuple[str, str], ComparedFigures]:
    """What golden entries recorded, those without figures excepted."""
    found = {}
    for key, entry in golden.entries.items():
        environment = golden.environment_of(entry)
        floor = environment.scale.noise_floor if environment and environment.scale else 0.0
        if entry.speedup and entry.speedup_ci95 and entry.lpips is not None and entry.lpips_ci95:
            speedup, lpips = Interval(entry.speedup, *entry.speedup_ci95), Interval(entry.lpips, *entry.lpips_ci95)
            found[str(key), f"{entry.num_samples} samples"] = ComparedFigures(speedup, lpips, floor, entry.quality)
    return found


def _sampling(row: Row) -> str:
    return "{num_samples} samples of batch {batch_size}, seed {seed}, prompts {prompts_digest}, {purpose}".format(**row)


def _interval(row: Row, name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])
