"""Pass rates of many verdicts: as lines of a table, and as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from pytest_diffaccel.judge import DIFFBENCH, STAGES
from pytest_diffaccel.judge.script_verdict import Outcome, ScriptVerdict
from pytest_diffaccel.words import counted

_FORMAT = 1
_WIDTH = 100


class _Counts:
    """What was counted, as a rate."""

    passed: int
    failed: int

    @property
    def pass_rate(self) -> float | None:
        """Passed of those that passed or failed; None without any."""
        judged = self.passed + self.failed
        return self.passed / judged if judged else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "pass_rate": self.pass_rate}


@dataclass(frozen=True)
class Rate(_Counts):
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


@dataclass(frozen=True)
class RuleRate(_Counts):
    """How many tasks passed under one rule, of those whose target golden does not hold to be out of reach.

    Attributes:
        attainable: how many tasks these are.
        passed: those whose script passed.
        failed: those whose script did not.
        not_judged: those that could not be judged.
    """

    attainable: int
    passed: int
    failed: int
    not_judged: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> RuleRate:
        """Count the outcomes of attainable tasks."""
        counts = Counter(outcomes)
        return cls(len(outcomes), counts["passed"], counts["failed"], counts["skipped"])


@dataclass(frozen=True)
class Scores:
    """The pass rates of a session.

    Attributes:
        stages: by stage, in the order judged; a stage that was not asked for is absent.
        overall: of scripts in all, by the rule that decides: failed if any stage failed.
        rules: by rule, the one that decides first.
        verdicts: what they were counted from, by id.
    """

    stages: Mapping[str, Rate]
    overall: Rate
    rules: Mapping[str, RuleRate]
    verdicts: tuple[ScriptVerdict, ...]

    @classmethod
    def of(cls, verdicts: Sequence[ScriptVerdict]) -> Scores:
        """Count verdicts."""
        ordered = tuple(sorted(verdicts, key=lambda verdict: _place(verdict.prompt_id)))
        stages = {}
        for stage in (*STAGES, DIFFBENCH):
            results = [result for verdict in ordered if (result := verdict.of(stage)) is not None]
            if results:
                stages[stage] = _rate([result.outcome for result in results])
        within_reach = [verdict for verdict in ordered if verdict.attainable is not False]
        rules = {
            rule: RuleRate.of([verdict.under(rule) for verdict in within_reach])
            for rule in (ordered[0].rules if ordered else ())
        }
        return cls(stages, _rate([verdict.outcome for verdict in ordered]), rules, ordered)

    def to_json(self) -> str:
        """The text of ``--scores``' file."""
        content = {
            "format": _FORMAT,
            "stages": {stage: rate.to_json() for stage, rate in self.stages.items()},
            "all": self.overall.to_json(),
            "rules": {rule: rate.to_json() for rule, rate in self.rules.items()},
            "scripts": [verdict.to_json() for verdict in self.verdicts],
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def lines(self) -> list[str]:
        """The table, a row per stage and one for all; then one of rules, and what was not judged by them."""
        stages = [
            (stage, rate.passed, rate.failed, rate.xfailed, rate.skipped, _share(rate.pass_rate))
            for stage, rate in {**self.stages, "all": self.overall}.items()
        ]
        rules = [
            (rule, rate.attainable, rate.passed, rate.failed, rate.not_judged, _share(rate.pass_rate))
            for rule, rate in self.rules.items()
        ]
        return [
            *_table(("stage", "passed", "failed", "xfailed", "skipped", "pass rate"), stages),
            "",
            *_table(("rule", "attainable", "passed", "failed", "not judged", "pass rate"), rules),
            *self._scored(),
            *self._not_judged(),
        ]

    def _scored(self) -> list[str]:
        """What DiffBench's rates depend on."""
        figures = [result.figures for verdict in self.verdicts if (result := verdict.of(DIFFBENCH)) is not None]
        found = {(each["prompts"], each["metric"]): None for each in figures if "metric" in each}
        return [f"{DIFFBENCH}: on {counted(prompts, 'prompt')}, by {metric}" for prompts, metric in found]

    def _not_judged(self) -> list[str]:
        """Of DiffBench's rule: what it needs may be missing; ours skips what golden does not hold."""
        reasons = Counter(
            result.detail
            for verdict in self.verdicts
            if (result := verdict.of(DIFFBENCH)) is not None and verdict.under(DIFFBENCH) == "skipped"
        )
        return [f"{DIFFBENCH}: {counted(number, 'script')} {said}" for said, number in reasons.items()]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(str, row))
    text = StringIO()
    Console(file=text, width=_WIDTH).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _place(prompt_id: str) -> tuple[int, str]:
    """The 1134 tasks by number; behind them others by name."""
    return (int(prompt_id), "") if prompt_id.isdecimal() else (sys.maxsize, prompt_id)


def _share(pass_rate: float | None) -> str:
    return "-" if pass_rate is None else f"{pass_rate:.1%}"


def _rate(outcomes: Sequence[str]) -> Rate:
    counts = Counter(outcomes)
    return Rate(counts["passed"] + counts["xpassed"], counts["failed"], counts["xfailed"], counts["skipped"])
