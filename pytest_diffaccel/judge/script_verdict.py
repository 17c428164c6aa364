"""What the judge found: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from pytest_diffaccel.judge import DIFFBENCH, OURS, STAGES_OF_RULE

#: ``"xfailed"``: misses a target that golden records as unattainable; ``"xpassed"``: reaches one.
Outcome: TypeAlias = Literal["passed", "failed", "xfailed", "xpassed", "skipped"]
# Of several stages' outcomes, the one that is the script's.
_FIRST: tuple[Outcome, ...] = ("failed", "xfailed", "passed", "xpassed")


@dataclass(frozen=True)
class StageResult:
    """One stage's outcome.

    Attributes:
        stage: a name of :data:`pytest_diffaccel.judge.STAGES`, or :data:`.DIFFBENCH`.
        outcome: how it ended.
        detail: why, in a sentence, or what was not judged; empty for a plain pass.
        figures: what was measured, by name; plain JSON values.
    """

    stage: str
    outcome: Outcome
    detail: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScriptVerdict:
    """What the judge found of one script.

    Attributes:
        prompt_id: the task's id.
        stages: results in the order judged; stages that were not asked for are absent.
        rules: by which it was judged; the first decides whether it passed.
        attainable: whether golden holds the task's target to be within reach; None where that is not known.
    """

    prompt_id: str
    stages: tuple[StageResult, ...]
    rules: tuple[str, ...] = (OURS,)
    attainable: bool | None = None

    @property
    def failures(self) -> tuple[StageResult, ...]:
        """The stages that failed, of those that decide."""
        return tuple(result for result in self._stages_of(self.rules[0]) if result.outcome == "failed")

    @property
    def outcome(self) -> Outcome:
        """By the rule that decides."""
        return self.under(self.rules[0])

    @property
    def passed(self) -> bool:
        """Whether no stage that decides failed, and at least one was judged."""
        return self.outcome not in ("failed", "skipped")

    def under(self, rule: str) -> Outcome:
        """The outcome by one of its rules: failed if any stage of it failed.

        DiffBench's is then that of its own stage: where that is skipped, nothing is known.
        """
        outcomes = {result.outcome for result in self._stages_of(rule)}
        if rule == DIFFBENCH and "failed" not in outcomes:
            measured = self.of(DIFFBENCH)
            return "skipped" if measured is None else measured.outcome
        return next((known for known in _FIRST if known in outcomes), "skipped")

    def of(self, stage: str) -> StageResult | None:
        """The result of one stage; None when it was not asked for."""
        return next((result for result in self.stages if result.stage == stage), None)

    def _stages_of(self, rule: str) -> list[StageResult]:
        return [result for result in self.stages if result.stage in STAGES_OF_RULE[rule]]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``--scores`` writes it and reports carry it."""
        return {
            "prompt_id": self.prompt_id,
            "attainable": self.attainable,
            "rules": {rule: self.under(rule) for rule in self.rules},
            "stages": [asdict(result) for result in self.stages],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScriptVerdict:
        """The verdict that :meth:`to_json` wrote."""
        stages = tuple(StageResult(**fields) for fields in data["stages"])
        return cls(data["prompt_id"], stages, tuple(data["rules"]), data["attainable"])
