"""How a search goes on, as its processes tell each other: what is under way, decided and ended."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any, get_args

from sqlalchemy import Connection, Row, delete

from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.records.contents import (
    Attempt,
    Decision,
    Failure,
    GroupDecision,
    GroupState,
    KeptKind,
    cut_off,
)
from pytest_diffaccel.records.leases import Leases
from pytest_diffaccel.records.rows import (
    attempt_of,
    conditions,
    decision_of,
    dump_candidate,
    dump_params,
    equal,
    failure_of,
    identity,
    now,
    place,
    storable,
    upsert,
    written,
)
from pytest_diffaccel.records.tables import ATTEMPTS, DECISIONS, ENDED_GROUPS, FAILURES

#: Purpose of short runs that are attempted, which its clock may follow: they say nothing of candidates.
CALIBRATION_PURPOSE = "calibration"
# State of a candidate that was passed over; groups have theirs (GroupState).
_SKIPPED = "skipped"


class Bookkeeping(Leases):
    """The part of a store that its search's processes share while they search."""

    def begin(
        self,
        candidate: Candidate,
        environment: str,
        sampling: Sampling,
        what: str,
        *,
        session: str,
        since: float = 0.0,
    ) -> None:
        """Keep that a candidate is being measured by this process, until what comes of it is kept or forgotten.

        A process that ends meanwhile leaves it behind: an ``interrupted`` failure, and a ``crash`` where one of another
        session had ended so before.

        Args:
            candidate: the candidate.
            environment: an environment's id.
            sampling: which images are made.
            what: what is done, such as ``"case"``, for the message.
            session: what all processes of this session call it, and no other session; they have one attempt.
            since: what was attempted before then (seconds since the epoch) does not count any more.
        """
        chosen = identity(candidate.key, environment, sampling)
        values = {
            **chosen,
            **place(candidate.cell, candidate.accelerator),
            "session": session,
            "host": platform.node(),
            "process": os.getpid(),
            "what": what,
            "created_at": now(),
            "candidate": dump_candidate(candidate),
        }
        before = ATTEMPTS.c.created_at < written(since)

        def begin(connection: Connection) -> None:
            connection.execute(delete(FAILURES).where(equal(FAILURES, chosen)))
            connection.execute(delete(ATTEMPTS).where(equal(ATTEMPTS, chosen), before))
            upsert(connection, ATTEMPTS, values)

        self._write(begin)

    def save_failure(
        self, candidate: Candidate, environment: str, sampling: Sampling, kind: KeptKind, message: str
    ) -> None:
        """Keep why a candidate could not be measured, in place of an older failure; a measurement stays.

        Raises:
            ValueError: when ``kind`` is unknown.
        """
        if kind not in get_args(KeptKind):
            raise ValueError(f"unknown kind of failure {kind!r}; known: {', '.join(get_args(KeptKind))}")
        chosen = identity(candidate.key, environment, sampling)
        values = {
            **chosen,
            **place(candidate.cell, candidate.accelerator),
            "kind": kind,
            "message": storable(message),
            "created_at": now(),
            "candidate": dump_candidate(candidate),
        }

        def save(connection: Connection) -> None:
            connection.execute(delete(ATTEMPTS).where(equal(ATTEMPTS, chosen)))
            upsert(connection, FAILURES, values)

        self._write(save)

    def forget_failure(self, candidate: Candidate, environment: str, sampling: Sampling) -> None:
        """Remove the failure of a candidate that works after all, and that it is being measured."""
        chosen = identity(candidate.key, environment, sampling)
        self._execute(*(delete(table).where(equal(table, chosen)) for table in (FAILURES, ATTEMPTS)))

    def failures(
        self, environment: str, sampling: Sampling, since: float = 0.0, session: str | None = None
    ) -> list[Failure]:
        """All failures in an environment and sampling, by candidate key.

        Args:
            environment: an environment's id.
            sampling: which images are made.
            since: only those since then, seconds since the epoch.
            session: who asks. What it has under way itself is among them, as if it had been cut off; what other
                sessions that live are at is not. None: all that is under way is.
        """
        where = conditions(environment, sampling)
        failed = [failure_of(row) for row in self._rows(FAILURES, where, since)]
        attempts = [attempt_of(row) for row in self._rows(ATTEMPTS, where, since)]
        if session is not None and any(attempt.session != session for attempt in attempts):
            others = {other.name for other in self.sessions()} - {session}
            attempts = [attempt for attempt in attempts if attempt.session not in others]
        return sorted([*failed, *_cut_off(attempts)], key=lambda failure: failure.candidate.key)

    def _all_failures(self) -> tuple[list[Failure], list[Attempt]]:
        """Of candidates, in every environment: what failed or was cut off, and what is under way."""
        living = {session.name for session in self.sessions()}
        rows = {table: self._rows(table, {}) for table in (FAILURES, ATTEMPTS)}
        with self._understanding("a failure"):
            failed = [failure_of(row) for row in rows[FAILURES] if _is_of_candidate(row)]
            attempts = [attempt_of(row) for row in rows[ATTEMPTS] if _is_of_candidate(row)]
        running = [attempt for attempt in attempts if attempt.session in living]
        failed += _cut_off([attempt for attempt in attempts if attempt.session not in living])
        return sorted(failed, key=lambda failure: failure.created_at), running

    def save_decision(self, candidate: Candidate, environment: str, sampling: Sampling, evidence: str) -> None:
        """Keep that a candidate needs no measuring, and why."""
        self._decide(candidate.cell, candidate.accelerator, candidate.params, environment, sampling, _SKIPPED, evidence)

    def decision(self, candidate: Candidate, environment: str, sampling: Sampling, since: float = 0.0) -> str | None:
        """Why a candidate needs no measuring; None when that was not decided since then (seconds since the epoch)."""
        where = place(candidate.cell, candidate.accelerator) | conditions(environment, sampling)
        rows = self._rows(DECISIONS, where | {"params": dump_params(candidate.params)}, since)
        return str(rows[0].evidence) if rows else None

    def save_group(self, cell: Cell, accelerator: str, environment: str, sampling: Sampling, state: GroupState) -> None:
        """Keep how far the search is with a group."""
        self._decide(cell, accelerator, {}, environment, sampling, state)

    def group_state(
        self, cell: Cell, accelerator: str, environment: str, sampling: Sampling, since: float = 0.0
    ) -> GroupState | None:
        """How far the search is with a group; None where nothing was decided since then (seconds since the epoch)."""
        where = place(cell, accelerator) | conditions(environment, sampling) | {"params": dump_params({})}
        rows = self._rows(DECISIONS, where, since)
        return rows[0].state if rows else None

    def _decide(
        self,
        cell: Cell,
        accelerator: str,
        params: Params,
        environment: str,
        sampling: Sampling,
        state: str,
        evidence: str = "",
    ) -> None:
        values = {
            **place(cell, accelerator),
            "params": dump_params(params),
            **conditions(environment, sampling),
            "state": state,
            "evidence": evidence,
            "created_at": now(),
        }
        self._upsert(DECISIONS, values)

    def _all_decisions(self) -> tuple[tuple[Decision, ...], tuple[GroupDecision, ...]]:
        """In every environment, on candidates and on groups."""
        rows = self._rows(DECISIONS, {})
        with self._understanding("a decision"):
            made = [decision_of(row) for row in rows]
        on_candidates = tuple(decision for decision in made if isinstance(decision, Decision))
        return on_candidates, tuple(decision for decision in made if isinstance(decision, GroupDecision))

    def end_group(
        self, cell: Cell, accelerator: str, environment: str, sampling: Sampling, session: str, untried: int
    ) -> None:
        """Keep that a session has decided a group, and how many promising candidates it had no time for."""
        values = {
            **place(cell, accelerator),
            **conditions(environment, sampling),
            "session": session,
            "untried": untried,
            "created_at": now(),
        }
        self._upsert(ENDED_GROUPS, values)

    def ended_groups(self, cell: Cell, environment: str, sampling: Sampling, session: str) -> Mapping[str, int]:
        """The accelerators of a cell's groups that a session has decided, with what it had no time for in each."""
        where = {"pipe": cell.pipe, "scheduler": cell.scheduler, "steps": cell.steps, "session": session}
        rows = self._rows(ENDED_GROUPS, where | conditions(environment, sampling))
        return {row.accelerator: row.untried for row in rows}


def _is_of_candidate(row: Row[Any]) -> bool:
    return not row.purpose.startswith(CALIBRATION_PURPOSE)


def _cut_off(attempts: list[Attempt]) -> list[Failure]:
    """The failures that attempts are, one per candidate, environment and sampling."""
    by_identity: dict[tuple[str, str, Sampling], list[Attempt]] = {}
    for attempt in attempts:
        by_identity.setdefault((attempt.candidate.key, attempt.environment, attempt.sampling), []).append(attempt)
    return [cut_off(own) for own in by_identity.values()]
