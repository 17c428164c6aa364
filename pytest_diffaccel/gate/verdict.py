"""What the gate says of a case, as frozen data and in words; and what travels of it to the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.records.gate_sessions import GateSession

Status: TypeAlias = Literal["ok", "improved", "warning", "inconclusive", "regressed", "refused"]

#: Gravest last: a case is what its gravest finding is.
_ORDER: tuple[Status, ...] = ("ok", "improved", "warning", "inconclusive", "regressed", "refused")


@dataclass(frozen=True)
class Finding:
    """What was found of a case's speed, its quality, or of how it works.

    Attributes:
        subject: ``"speed"``, ``"host"`` (speed by the host's clock), ``"baseline"`` (its own device time),
            ``"quality"``, ``"function"`` (does it still do what it should) or ``"environment"``.
        status: what follows.
        text: figure, interval and reason, in words.
        change: relative change of the figure, 0.03 for 3% more; None where there is none.
        change_ci95: its 95% interval.
        metric: of quality, the metric's name; empty where it is of none, and for LPIPS.
        fix: what would decide it where its reference cannot, in words; else empty.
    """

    subject: str
    status: Status
    text: str
    change: float | None = None
    change_ci95: tuple[float, float] | None = None
    metric: str = ""
    fix: str = ""

    @property
    def title(self) -> str:
        """The subject as people read it, with its metric: ``"speed"``, ``"quality"``, ``"quality by psnr"``."""
        return f"{self.subject} by {self.metric}" if self.metric else self.subject

    @property
    def key(self) -> str:
        """The same as names of properties begin: ``"speed"``, ``"quality"``, ``"metric_psnr"``."""
        return f"metric_{self.metric}" if self.metric else self.subject


@dataclass(frozen=True)
class Verdict:
    """All that a case showed.

    Attributes:
        findings: at least one.
        causes: what differs from the environment golden was recorded in: likely causes.
        notes: information that decides nothing: conditions, absolute times.
        figures: numbers by name, for machines.
    """

    findings: tuple[Finding, ...]
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()

    @property
    def status(self) -> Status:
        """The gravest of the findings; improved only where nothing is undecided."""
        return max((finding.status for finding in self.findings), key=_ORDER.index)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"status": self.status, **asdict(self), "figures": dict(self.figures)}

    def describe(self) -> str:
        """Several lines for a failing case."""
        lines = [f"{finding.title} {finding.status}: {finding.text}" for finding in self.findings]
        if self.causes:
            lines.append("changed since golden was recorded (likely causes): " + "; ".join(self.causes))
        lines += [f"it takes: {fix}" for fix in dict.fromkeys(finding.fix for finding in self.findings) if fix]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class GateVerdict:
    """What a case of the gate sends from its worker to the controller.

    Attributes:
        cell: where.
        candidate: the winner; None for the cell's baseline.
        case: the case's name.
        targets: what it is the winner for, ascending.
        verdict: what follows.
        rounds_s: seconds of each timed run.
        sessions: what may be recorded as a reference, by subject.
        seconds: what judging it took of the budget.
        kind: which of the results it is.
    """

    cell: Cell
    candidate: Candidate | None
    case: str
    targets: tuple[float, ...]
    verdict: Verdict
    rounds_s: tuple[float, ...] = ()
    sessions: Mapping[str, GateSession] = field(default_factory=dict)
    seconds: float = 0.0
    kind: Literal["gate"] = "gate"

    @property
    def accelerator(self) -> str:
        """The winner's accelerator; empty for a baseline."""
        return self.candidate.accelerator if self.candidate else ""

    @property
    def status(self) -> Status:
        """The verdict's."""
        return self.verdict.status

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, as logs and properties have them."""
        return {
            "cell": str(self.cell),
            "accelerator": self.accelerator,
            "params": self.candidate.params if self.candidate else {},
            "case": self.case,
            "targets": list(self.targets),
            "verdict": self.verdict.to_json(),
            "text": self.verdict.describe(),
            "rounds_s": list(self.rounds_s),
            "sessions": {subject: asdict(session) for subject, session in self.sessions.items()},
            "seconds": self.seconds,
        }


def percent(ratio: float) -> str:
    """``"-3.1%"``, with its sign."""
    return f"{round(ratio, 3) + 0.0:+.1%}"
