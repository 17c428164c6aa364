"""The top of a page: what ran, on what, what came of it, and how to run it again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_diffaccel import __version__
from pytest_diffaccel.records.environment import Environment, differences
from pytest_diffaccel.report.html.findings import Findings
from pytest_diffaccel.report.html.material import Material
from pytest_diffaccel.report.html.rows import MEASURED

if TYPE_CHECKING:
    from pytest_diffaccel.report.html.cell_part import CellPart


@dataclass(frozen=True)
class Banner:
    """The top of a page.

    Attributes:
        sources: model sources, in plain words.
        stand_ins: whether some of them are the embedded stand-ins.
        hardware: the devices.
        environments: each environment of the cells shown, with its id.
        counts: candidates by verdict.
        measured: candidates that were measured.
        met: targets that a winner reaches.
        unattainable: targets that none reaches.
        running: groups whose winners are not found yet.
        groups: groups begun.
        drift: what differs between golden's environments and these, by pipe.
        command: what searches again.
        complete: whether the command has all options that the search had.
        made_at: when the page was made.
        version: of this program.
    """

    sources: tuple[str, ...]
    stand_ins: bool
    hardware: tuple[str, ...]
    environments: tuple[tuple[str, Environment], ...]
    counts: Counter[str]
    measured: int
    met: int
    unattainable: int
    running: int
    groups: int
    drift: tuple[tuple[str, tuple[str, ...]], ...]
    command: str
    complete: bool
    made_at: str
    version: str

    @classmethod
    def of(cls, material: Material, parts: Sequence[CellPart]) -> Banner:
        """The banner of these cells."""
        found = [part.findings for part in parts]
        records = [one.record for one in found]
        environments = {one.environment: one.described for one in records if one.described}
        entries = [entry for one in found for entry in one.entries.values()]
        counts: Counter[str] = sum((one.counts for one in found), Counter())
        sources = tuple(dict.fromkeys(one.model_source for one in records))
        return cls(
            sources=sources,
            stand_ins=any("stand-in" in source for source in sources),
            hardware=tuple(dict.fromkeys(_hardware(one) for one in environments.values())),
            environments=tuple(environments.items()),
            counts=counts,
            measured=sum(counts[verdict] for verdict in MEASURED),
            met=sum(entry.status == "met" for entry in entries),
            unattainable=sum(entry.status == "unattainable" for entry in entries),
            running=sum(len(one.unfinished) for one in found),
            groups=sum(len(one.groups) for one in found),
            drift=_drift(material, found),
            command=material.command,
            complete=material.changes is not None,
            made_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            version=__version__,
        )


def _hardware(environment: Environment) -> str:
    driver = f", driver {environment.driver}" if environment.driver else ""
    return f"{environment.device}{driver}, {environment.threads} thread{'s' * (environment.threads != 1)}"


def _drift(material: Material, found: Sequence[Findings]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What changed since golden was recorded, once a pair of environments."""
    drift: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    for one in found:
        now = one.record.described
        for key, entry in material.golden.entries.items():
            before = material.golden.environment_of(entry)
            if key.cell == one.cell and now and before and before.id != now.id:
                drift[before.id, now.id] = key.cell.pipe, tuple(differences(before, now))
    return tuple(drift.values())
