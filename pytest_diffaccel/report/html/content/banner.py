"""The top of a page: what ran, on what, what came of it, and how to run it again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_diffaccel import __version__
from pytest_diffaccel.matrix import TARGETS
from pytest_diffaccel.records.environment import Environment, differences
from pytest_diffaccel.report.html.content.candidate_rows import MEASURED
from pytest_diffaccel.report.html.content.findings import Findings
from pytest_diffaccel.report.html.content.material import Material


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
        undecided: targets of groups that were searched to their end, of which neither is known.
        beaten: winning settings that lose more than the plain pipeline with fewer steps, and of how many that is known.
        running: groups whose winners are not found yet.
        groups: groups begun.
        drift: what differs between golden's environments and these, with the pipe, each once.
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
    undecided: int
    beaten: tuple[int, int]
    running: int
    groups: int
    drift: tuple[tuple[str, str], ...]
    command: str
    complete: bool
    made_at: str
    version: str

    @classmethod
    def of(cls, material: Material, found: Sequence[Findings]) -> Banner:
        """The banner of these cells."""
        records = [findings.record for findings in found]
        environments = {record.environment: record.described for record in records if record.described}
        entries = [entry for findings in found for entry in findings.entries.values()]
        counts: Counter[str] = sum((findings.counts for findings in found), Counter())
        sources = tuple(dict.fromkeys(record.model_source for record in records))
        return cls(
            sources=sources,
            stand_ins=any("stand-in" in source for source in sources),
            hardware=tuple(dict.fromkeys(_hardware(environment) for environment in environments.values())),
            environments=tuple(environments.items()),
            counts=counts,
            measured=sum(counts[verdict] for verdict in MEASURED),
            met=sum(entry.status == "met" for entry in entries),
            unattainable=sum(entry.status == "unattainable" for entry in entries),
            undecided=sum(map(_undecided, found)),
            beaten=(sum(findings.beaten[0] for findings in found), sum(findings.beaten[1] for findings in found)),
            running=sum(len(findings.unfinished) for findings in found),
            groups=sum(len(findings.groups) for findings in found),
            drift=_drift(material, found),
            command=material.command,
            complete=material.changes is not None,
            made_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            version=__version__,
        )


def _undecided(findings: Findings) -> int:
    ended = set(findings.groups) - set(findings.unfinished)
    return max(0, len(ended) * len(TARGETS) - sum(key.accelerator in ended for key in findings.entries))


def _hardware(environment: Environment) -> str:
    driver = f", driver {environment.driver}" if environment.driver else ""
    return f"{environment.device}{driver}, {environment.threads} thread{'s' * (environment.threads != 1)}"


def _drift(material: Material, found: Sequence[Findings]) -> tuple[tuple[str, str], ...]:
    """Pipes with what changed since golden was recorded; what several of golden's environments have in common, once."""
    pairs: dict[tuple[str, str], tuple[Environment, Environment]] = {}
    for findings in found:
        now = findings.record.described
        for key, entry in material.golden.entries.items():
            before = material.golden.environment_of(entry)
            if key.cell == findings.cell and now and before and before.id != now.id:
                pairs[before.id, now.id] = before, now
    return tuple(dict.fromkeys((now.pipe, line) for before, now in pairs.values() for line in differences(before, now)))
