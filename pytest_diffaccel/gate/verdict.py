"""What the gate says of a case, as frozen data and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

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
    """

    subject: str
    status: Status
    text: str
    change: float | None = None
    change_ci95: tuple[float, float] | None = None


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
        lines = [f"{finding.subject} {finding.status}: {finding.text}" for finding in self.findings]
        if self.causes:
            lines.append("changed since golden was recorded (likely causes): " + "; ".join(self.causes))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def percent(ratio: float) -> str:
    """``"-3.1%"``, with its sign."""
    return f"{round(ratio, 3) + 0.0:+.1%}"
