"""What a store holds, as plain frozen data: for those who read all of it, such as reports and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement, Round, Sampling
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry

FailureKind: TypeAlias = Literal["error", "oom", "timeout", "interrupted", "crash", "not-fired"]


@dataclass(frozen=True)
class Recorded:
    """A measurement and when it was stored.

    Attributes:
        measurement: what was measured.
        created_at: when, ISO 8601 in UTC.
    """

    measurement: Measurement
    created_at: str


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be measured.

    Attributes:
        candidate: what was tried.
        environment: id of the environment it was tried in.
        sampling: which images were to be made.
        kind: what went wrong; ``interrupted``: its process ended while it was measured, ``crash``: twice.
        message: the error in words.
        created_at: when, ISO 8601 in UTC.
    """

    candidate: Candidate
    environment: str
    sampling: Sampling
    kind: FailureKind
    message: str
    created_at: str

    def stands_in(self, session_began_at: float) -> bool:
        """Whether a session that began then (seconds since the epoch) tries the candidate no more.

        One that was cut off once is tried again, but by another session: in this one it would take the next worker
        with it.
        """
        made_at = datetime.fromisoformat(self.created_at).timestamp()
        return self.kind != "interrupted" or made_at >= session_began_at


@dataclass(frozen=True)
class Decision:
    """Why a candidate or a whole group needed no measuring.

    Attributes:
        subject: the candidate's key, or the group's name.
        environment: id of the environment it was decided for.
        sampling: which images were to be made.
        evidence: the reason in words.
        created_at: when, ISO 8601 in UTC.
    """

    subject: str
    environment: str
    sampling: Sampling
    evidence: str
    created_at: str


@dataclass(frozen=True)
class GroupWinners:
    """What a search chose in a group, and by which speed-ups.

    Attributes:
        cell: the group's cell.
        accelerator: the group's accelerator.
        environment: id of the environment.
        sampling: of the search.
        entries: what golden records, by target; a target that is undecided is not in it.
        speedups: of all of the group's candidates that were evaluated, as they were known then; by candidate key.
        created_at: when, ISO 8601 in UTC.
    """

    cell: Cell
    accelerator: str
    environment: str
    sampling: Sampling
    entries: Mapping[float, GoldenEntry]
    speedups: Mapping[str, Interval]
    created_at: str = ""


@dataclass(frozen=True)
class Contents:
    """Everything in a store, each part in the order in which it was stored.

    Attributes:
        measurements: of all candidates, environments and samplings.
        failures: candidates that could not be measured.
        decisions: what was passed over, and why.
        environments: what each environment's id stands for.
        rounds: each environment's calibration, by its id.
        winners: what was chosen in each group.
    """

    measurements: tuple[Recorded, ...]
    failures: tuple[Failure, ...]
    decisions: tuple[Decision, ...]
    environments: Mapping[str, Environment]
    rounds: Mapping[str, Sequence[Round]] = field(default_factory=dict)
    winners: tuple[GroupWinners, ...] = ()
