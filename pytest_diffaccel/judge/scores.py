"""Pass rates of many verdicts: as lines of a table, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from pytest_diffaccel.judge import STAGES
from pytest_diffaccel.judge.script_verdict import ScriptVerdict

_FORMAT = 1
_WIDTH = 100


@dataclass(frozen=True)
class Rate:
    """How many scripts passed one stage, or all.

    Attributes:
        passed: those that did, also those that reached a target recorded as unattainable.
        failed: those that did not.
        xfailed: those that missed a target recorded as unattainable; they count neither way.
        skipped: those that could not be judged for want of a record.
    """

    passed: int
    failed: int
    xfailed: int
    skipped: int

    @property
    def pass_rate(self) -> float | None:
        """Passed of those that passed or failed; None without any."""
        judged = self.passed + self.failed
        return self.passed / judged if judged else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "pass_rate": self.pass_rate}


@dataclass(frozen=True)
class Scores:
    """The pass rates of a session.

    Attributes:
        stages: by stage, in the order judged; a stage that was not asked for is absent.
        overall: of scripts in all: failed if any stage failed.
        verdicts: what they were counted from, by id.
    """

    stages: Mapping[str, Rate]
    overall: Rate
    verdicts: tuple[ScriptVerdict, ...]

    @classmethod
    def of(cls, verdicts: Sequence[ScriptVerdict]) -> Scores:
        """Count verdicts."""
        ordered = tuple(sorted(verdicts, key=lambda verdict: int(verdict.prompt_id)))
        stages = {}
        for stage in STAGES:
            results = [result for verdict in ordered if (result := verdict.of(stage)) is not None]
            if results:
                stages[stage] = _rate([result.outcome for result in results])
        return cls(stages, _rate([_in_all(verdict) for verdict in ordered]), ordered)

    def to_json(self) -> str:
        """The text of ``--scores``' file."""
        content = {
            "format": _FORMAT,
            "stages": {stage: rate.to_json() for stage, rate in self.stages.items()},
            "all": self.overall.to_json(),
            "scripts": [verdict.to_json() for verdict in self.verdicts],
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def lines(self) -> list[str]:
        """The table, a row per stage and one for all."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("stage")
        for name in ("passed", "failed", "xfailed", "skipped", "pass rate"):
            table.add_column(name, justify="right")
        for stage, rate in {**self.stages, "all": self.overall}.items():
            share = "-" if rate.pass_rate is None else f"{rate.pass_rate:.1%}"
            table.add_row(stage, *map(str, (rate.passed, rate.failed, rate.xfailed, rate.skipped)), share)
        text = StringIO()
        Console(file=text, width=_WIDTH).print(table)
        return [line.rstrip() for line in text.getvalue().splitlines()]


def _rate(outcomes: Sequence[str]) -> Rate:
    counts = Counter(outcomes)
    return Rate(counts["passed"] + counts["xpassed"], counts["failed"], counts["xfailed"], counts["skipped"])


def _in_all(verdict: ScriptVerdict) -> str:
    outcomes = {result.outcome for result in verdict.stages}
    return next((outcome for outcome in ("failed", "xfailed", "passed", "xpassed") if outcome in outcomes), "skipped")
