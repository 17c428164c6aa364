"""What a store holds, as plain frozen data: for those who read all of it, such as reports and exports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.deciding import QualityRule
from pytest_diffaccel.measure.measurement import Interval, Measurement, Round, Sampling
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.words import counted

#: What is kept of a failure; ``missing``: something that a later session may find.
KeptKind: TypeAlias = Literal["error", "oom", "timeout", "missing", "not-fired"]
#: Those, and what follows from attempts whose process ended: one, or several.
FailureKind: TypeAlias = KeptKind | Literal["interrupted", "crash"]
#: How far a search is with a group: all that may win was evaluated, its winners are found, or more was evaluated since.
GroupState: TypeAlias = Literal["explored", "done", "reopened"]


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
        kind: what went wrong; ``interrupted``: its process ended while it was measured, ``crash``: more than once.
        message: the error in words.
        created_at: when, ISO 8601 in UTC.
        session: of the attempt that was cut off last; empty where none was.
    """

    candidate: Candidate
    environment: str
    sampling: Sampling
    kind: FailureKind
    message: str
    created_at: str
    session: str = ""

    def stands_in(self, session: str, began_at: float) -> bool:
        """Whether a session of that name, which began then (seconds since the epoch), tries the candidate no more.

        One that was cut off once is tried again, but by another session: in this one it would take the next worker
        with it.
        """
        if self.kind == "interrupted":
            return self.session == session
        return self.kind != "missing" or datetime.fromisoformat(self.created_at).timestamp() >= began_at


@dataclass(frozen=True)
class Attempt:
    """A candidate that is being measured, or was when its process ended.

    Attributes:
        candidate: what is measured.
        environment: id of the environment.
        sampling: which images are made.
        what: what is done, such as ``"case"``.
        session: the name of the session.
        host: the host's name.
        process: the process's number there.
        created_at: since when, ISO 8601 in UTC.
    """

    candidate: Candidate
    environment: str
    sampling: Sampling
    what: str
    session: str
    host: str
    process: int
    created_at: str

    def in_words(self) -> str:
        """Since when and by whom."""
        return f"since {self.created_at[:16].replace('T', ' ')} UTC, by process {self.process} on {self.host}"


def cut_off(attempts: Sequence[Attempt]) -> Failure:
    """The failure that attempts to measure a candidate are, one or more of them in their order, all cut off."""
    last, again = attempts[-1], len(attempts) > 1
    message = f"the process ended during this {last.what}" + (", twice" if again else "; it is tried once more")
    kind: FailureKind = "crash" if again else "interrupted"
    return Failure(last.candidate, last.environment, last.sampling, kind, message, last.created_at, last.session)


@dataclass(frozen=True)
class RunningSession:
    """A session that searches into the store, or did when it last gave a sign of life.

    Attributes:
        name: no other session has it.
        host: its host's name.
        folder: where it was started.
        process: its number on that host.
        began_at: seconds since the epoch.
        namespace: where on that host the number holds; containers have numbers of their own.
    """

    name: str
    host: str
    folder: str
    process: int
    began_at: float
    namespace: str = ""


@dataclass(frozen=True)
class Holder:
    """A session that is in groups that another one comes to.

    Attributes:
        session: which.
        since: since when it is in the first of them, seconds since the epoch by the database's clock.
        groups: how many it is in.
    """

    session: RunningSession
    since: float
    groups: int

    def in_words(self) -> str:
        """Who it is, since when, and in how many groups."""
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        one = self.session
        return f"{one.host}, process {one.process}, which is in {counted(self.groups, 'group')} since {since}"


@dataclass(frozen=True)
class Decision:
    """Why a candidate needed no measuring.

    Attributes:
        candidate: what was passed over.
        environment: id of the environment it was decided for.
        sampling: which images were to be made.
        evidence: the reason in words.
        created_at: when, ISO 8601 in UTC.
    """

    candidate: Candidate
    environment: str
    sampling: Sampling
    evidence: str
    created_at: str


@dataclass(frozen=True)
class GroupDecision:
    """How far a search is with a group.

    Attributes:
        cell: the group's cell.
        accelerator: the group's accelerator.
        environment: id of the environment.
        sampling: of the search.
        state: how far.
        created_at: since when, ISO 8601 in UTC.
    """

    cell: Cell
    accelerator: str
    environment: str
    sampling: Sampling
    state: GroupState
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
        barred: why verified candidates could not win within bounds on other metrics, in words; by candidate key.
        quality: what decided; None where that is LPIPS.
    """

    cell: Cell
    accelerator: str
    environment: str
    sampling: Sampling
    entries: Mapping[float, GoldenEntry]
    speedups: Mapping[str, Interval]
    created_at: str = ""
    barred: Mapping[str, str] = field(default_factory=dict)
    quality: QualityRule | None = None


@dataclass(frozen=True)
class Contents:
    """Everything in a store, each part in the order in which it was stored.

    Attributes:
        measurements: of all candidates, environments and samplings.
        failures: candidates that could not be measured.
        decisions: candidates that were passed over, and why.
        environments: what each environment's id stands for.
        rounds: each environment's calibration, by its id.
        winners: what was chosen in each group.
        groups: how far the search is with each.
        running: candidates that sessions are measuring that give signs of life.
    """

    measurements: tuple[Recorded, ...]
    failures: tuple[Failure, ...]
    decisions: tuple[Decision, ...]
    environments: Mapping[str, Environment]
    rounds: Mapping[str, Sequence[Round]] = field(default_factory=dict)
    winners: tuple[GroupWinners, ...] = ()
    groups: tuple[GroupDecision, ...] = ()
    running: tuple[Attempt, ...] = ()
