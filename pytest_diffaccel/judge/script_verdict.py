"""What the judge found: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

#: ``"xfailed"``: misses a target that golden records as unattainable; ``"xpassed"``: reaches one.
Outcome: TypeAlias = Literal["passed", "failed", "xfailed", "xpassed", "skipped"]


@dataclass(frozen=True)
class StageResult:
    """One stage's outcome.

    Attributes:
        stage: a name of :data:`pytest_diffaccel.judge.STAGES`.
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
    """

    prompt_id: str
    stages: tuple[StageResult, ...]

    @property
    def failures(self) -> tuple[StageResult, ...]:
        """The stages that failed."""
        return tuple(result for result in self.stages if result.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether no stage failed and at least one was judged."""
        return not self.failures and any(result.outcome != "skipped" for result in self.stages)

    def of(self, stage: str) -> StageResult | None:
        """The result of one stage; None when it was not asked for."""
        return next((result for result in self.stages if result.stage == stage), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``--scores`` writes it and reports carry it."""
        return {"prompt_id": self.prompt_id, "stages": [asdict(result) for result in self.stages]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScriptVerdict:
        """The verdict that :meth:`to_json` wrote."""
        return cls(data["prompt_id"], tuple(StageResult(**fields) for fields in data["stages"]))
