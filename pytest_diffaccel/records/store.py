"""The store: measurements and failures in SQL, written by many processes, whole after a kill at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, get_args

from sqlalchemy import Connection, Engine, Row, Table, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Measurement, Round, Sampling
from pytest_diffaccel.records.contents import Contents, Failure, FailureKind, GroupWinners, Recorded
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.rows import (
    conditions,
    decision_of,
    dump_record,
    dump_winners,
    equal,
    failure_of,
    figures,
    identity,
    now,
    place,
    storable,
    upsert,
    winners_of,
    written,
)
from pytest_diffaccel.records.tables import (
    CALIBRATION,
    DECISIONS,
    ENVIRONMENTS,
    FAILURES,
    MEASUREMENTS,
    WINNERS,
    StoreError,
    database_reason,
    open_engine,
)

#: Purposes of rows that say how a search goes on, and nothing of its candidates: short runs that took their process
#: with them, groups that a session has decided, and sessions that are under way.
CALIBRATION_PURPOSE, SESSION_PURPOSE = INTERNAL = ("calibration", "session")


class Store:
    """Measurements, failures and environments in one database.

    Each call is one transaction. A store may be shared by threads and opened by many processes at once, but
    not carried through ``os.fork``: open it in each process. Database errors of a call are :class:`StoreError`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Store:
        """The store at ``url``, created if missing.

        Args:
            url: the path of an SQLite file, or a SQLAlchemy URL of SQLite or PostgreSQL.

        Raises:
            StoreError: when the database cannot be reached, is of another kind or of another schema version.
        """
        return cls(open_engine(url))

    def close(self) -> None:
        """Close the connections; the store opens new ones when it is used again."""
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def try_writing(self) -> None:
        """Write a transaction that changes nothing.

        Raises:
            StoreError: when nothing can be written.
        """
        with self._writing() as connection:
            connection.execute(delete(DECISIONS).where(equal(DECISIONS, {"candidate_key": ""})))

    def save(self, measurement: Measurement) -> None:
        """Keep a measurement, in place of an older one of the same candidate, environment and sampling.

        A failure recorded for them is removed.

        Raises:
            ValueError: when the measurement holds a number that is not finite; nothing is stored.
        """
        chosen = identity(measurement.candidate.key, measurement.environment, measurement.sampling)
        values = {
            **chosen,
            **place(measurement.candidate.cell, measurement.candidate.accelerator),
            **figures("speedup", measurement.speedup),
            **figures("wall_speedup", measurement.wall_speedup),
            **figures("lpips", measurement.quality.lpips),
            "created_at": now(),
            "record": dump_record(measurement),
        }
        with self._writing() as connection:
            upsert(connection, MEASUREMENTS, values)
            connection.execute(delete(FAILURES).where(equal(FAILURES, chosen)))

    def find(self, candidate_key: str, environment: str, sampling: Sampling, since: float = 0.0) -> Measurement | None:
        """The measurement of a candidate, if it was stored ``since`` then (seconds since the epoch), or None.

        Raises:
            StoreError: when the record cannot be read.
        """
        found = self._measurements(identity(candidate_key, environment, sampling), since)
        return found[0] if found else None

    def group(
        self, cell: Cell, accelerator: str, environment: str, sampling: Sampling, since: float = 0.0
    ) -> list[Measurement]:
        """All measurements of a cell and accelerator since then (seconds since the epoch), by candidate key.

        Raises:
            StoreError: when a record cannot be read.
        """
        return self._measurements({**place(cell, accelerator), **conditions(environment, sampling)}, since)

    def evaluations(
        self, environment: str, sampling: Sampling, cell: Cell | None = None, since: float = 0.0
    ) -> list[Measurement]:
        """Each candidate's measurement with the most samples, up to ``sampling``'s number; by candidate key.

        Args:
            environment: an environment's id.
            sampling: what is made; measurements of fewer samples begin with the same ones.
            cell: only of this cell; None for all.
            since: only what was stored then or later, seconds since the epoch.

        Raises:
            StoreError: when a record cannot be read.
        """
        where = conditions(environment, sampling) | (asdict(cell) if cell else {})
        del where["num_samples"]
        most: dict[str, Measurement] = {}
        for measurement in self._measurements(where, since):
            key, samples = measurement.candidate.key, measurement.sampling.num_samples
            if samples <= sampling.num_samples and (key not in most or samples > most[key].sampling.num_samples):
                most[key] = measurement
        return list(most.values())

    def save_failure(
        self, candidate: Candidate, environment: str, sampling: Sampling, kind: FailureKind, message: str
    ) -> None:
        """Keep why a candidate could not be measured, in place of an older failure; a measurement stays.

        Raises:
            ValueError: when ``kind`` is unknown.
        """
        if kind not in get_args(FailureKind):
            raise ValueError(f"unknown kind of failure {kind!r}; known: {', '.join(get_args(FailureKind))}")
        values = {
            **identity(candidate.key, environment, sampling),
            **place(candidate.cell, candidate.accelerator),
            "kind": kind,
            "message": storable(message),
            "created_at": now(),
            "candidate": json.dumps(asdict(candidate), allow_nan=False),
        }
        with self._writing() as connection:
            upsert(connection, FAILURES, values)

    def begin(
        self,
        candidate: Candidate,
        environment: str,
        sampling: Sampling,
        what: str,
        *,
        session_began_at: float,
        since: float = 0.0,
    ) -> None:
        """Keep that a candidate is being measured, until what comes of it is kept or forgotten.

        A process that ends meanwhile leaves an ``interrupted`` failure; one of a later session, too, leaves a
        ``crash``. What other processes of this session measure now has ended nobody.

        Args:
            candidate: the candidate.
            environment: an environment's id.
            sampling: which images are made.
            what: what is done, such as ``"case"``, for the message.
            session_began_at: seconds since the epoch.
            since: failures before then (seconds since the epoch) do not count.
        """
        rows = self._rows(FAILURES, identity(candidate.key, environment, sampling), since)
        again = any(
            row.kind == "crash" or (row.kind == "interrupted" and row.created_at < written(session_began_at))
            for row in rows
        )
        message = f"the process ended during this {what}" + (", twice" if again else "; it is tried once more")
        self.save_failure(candidate, environment, sampling, "crash" if again else "interrupted", message)

    def forget_failure(self, candidate: Candidate, environment: str, sampling: Sampling) -> None:
        """Remove the failure of a candidate that works after all."""
        with self._writing() as connection:
            chosen = identity(candidate.key, environment, sampling)
            connection.execute(delete(FAILURES).where(equal(FAILURES, chosen)))

    def failures(self, environment: str, sampling: Sampling, since: float = 0.0) -> list[Failure]:
        """All failures in an environment and sampling since then (seconds since the epoch), by candidate key."""
        rows = self._rows(FAILURES, conditions(environment, sampling), since)
        return [failure_of(row) for row in rows]

    def save_decision(self, subject: str, environment: str, sampling: Sampling, evidence: str) -> None:
        """Keep that ``subject``, a candidate's key or a group's name, needs no measuring, and why."""
        values = {**identity(subject, environment, sampling), "evidence": evidence, "created_at": now()}
        with self._writing() as connection:
            upsert(connection, DECISIONS, values)

    def decision(self, subject: str, environment: str, sampling: Sampling, since: float = 0.0) -> str | None:
        """Why ``subject`` needs no measuring; None when that was not decided since then (seconds since the epoch)."""
        rows = self._rows(DECISIONS, identity(subject, environment, sampling), since)
        return str(rows[0].evidence) if rows else None

    def decisions(self, environment: str, sampling: Sampling, since: float = 0.0) -> dict[str, str]:
        """All that was decided since then (seconds since the epoch): why, by subject."""
        rows = self._rows(DECISIONS, conditions(environment, sampling), since)
        return {row.candidate_key: row.evidence for row in rows}

    def forget_decision(self, subject: str, environment: str, sampling: Sampling) -> None:
        """Remove what was decided of ``subject``."""
        with self._writing() as connection:
            connection.execute(delete(DECISIONS).where(equal(DECISIONS, identity(subject, environment, sampling))))

    def save_winners(self, winners: GroupWinners) -> None:
        """Keep what was chosen in a group, in place of what was before; when it was chosen is now."""
        values = {
            **place(winners.cell, winners.accelerator),
            **conditions(winners.environment, winners.sampling),
            "created_at": now(),
            "record": dump_winners(winners),
        }
        with self._writing() as connection:
            upsert(connection, WINNERS, values)

    def save_round(self, environment: str, made: Round) -> None:
        """Keep a round of an environment's calibration.

        Raises:
            ValueError: when it holds a number that is not finite; nothing is stored.
        """
        values = {
            "environment": environment,
            "created_at": now(),
            "record": json.dumps(made.to_json(), allow_nan=False),
        }
        with self._writing() as connection:
            connection.execute(insert(CALIBRATION).values(values))

    def rounds(self, environment: str, since: float = 0.0) -> list[Round]:
        """All rounds of an environment's calibration since then (seconds since the epoch), as they were stored.

        Raises:
            StoreError: when a record cannot be read.
        """
        rows = self._rows_as_stored(CALIBRATION, {"environment": environment}, since)
        try:
            return [Round.from_json(json.loads(row.record)) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable("a calibration", error) from error

    def forget_rounds(self, environment: str) -> None:
        """Remove an environment's calibration: what it says is not so any more."""
        with self._writing() as connection:
            connection.execute(delete(CALIBRATION).where(equal(CALIBRATION, {"environment": environment})))

    def save_environment(self, environment: Environment) -> None:
        """Keep what an environment's id stands for."""
        values = {"id": environment.id, "created_at": now(), "record": json.dumps(environment.to_json())}
        with self._writing() as connection:
            upsert(connection, ENVIRONMENTS, values)

    def environments(self) -> dict[str, Environment]:
        """All environments kept, by id, in the ids' order.

        Raises:
            StoreError: when a record cannot be read.
        """
        with self._reading() as connection:
            rows = connection.execute(select(ENVIRONMENTS)).all()
        try:
            return dict(sorted((row.id, Environment.from_json(row.record)) for row in rows))
        except ValueError as error:
            raise self._unreadable("an environment", error) from error

    def contents(self) -> Contents:
        """Everything in the store, also of other environments and samplings.

        Raises:
            StoreError: when a record cannot be read.
        """
        environments = self.environments()
        failures = [row for row in self._rows_as_stored(FAILURES, {}) if row.purpose not in INTERNAL]
        decisions = [row for row in self._rows_as_stored(DECISIONS, {}) if row.purpose not in INTERNAL]
        try:
            failed, decided = tuple(map(failure_of, failures)), tuple(map(decision_of, decisions))
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable("a failure", error) from error
        rounds = {name: made for name in environments if (made := self.rounds(name))}
        return Contents(tuple(self._recorded({})), failed, decided, environments, rounds, self._winners())

    def _winners(self) -> tuple[GroupWinners, ...]:
        rows = self._rows_as_stored(WINNERS, {})
        try:
            return tuple(map(winners_of, rows))
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable("the winners of a group", error) from error

    def _measurements(self, where: Mapping[str, object], since: float = 0.0) -> list[Measurement]:
        # Sorted here: databases sort text by their own collations.
        recorded = sorted(self._recorded(where, since), key=lambda one: one.measurement.candidate.key)
        return [one.measurement for one in recorded]

    def _recorded(self, where: Mapping[str, object], since: float = 0.0) -> list[Recorded]:
        rows = self._rows_as_stored(MEASUREMENTS, where, since)
        try:
            return [Recorded(Measurement.from_json(json.loads(row.record)), row.created_at) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unreadable("a measurement", error) from error

    def _rows(self, table: Table, where: Mapping[str, object], since: float = 0.0) -> list[Row[Any]]:
        return sorted(self._rows_as_stored(table, where, since), key=lambda row: str(row.candidate_key))

    def _rows_as_stored(self, table: Table, where: Mapping[str, object], since: float = 0.0) -> list[Row[Any]]:
        query = select(table).where(equal(table, where), table.c.created_at >= written(since))
        with self._reading() as connection:
            rows = connection.execute(query)
            return sorted(rows, key=lambda row: str(row.created_at))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A connection whose changes are kept together, or not at all.

        Raises:
            StoreError: when the database takes nothing: it is read-only, full, locked for long, or out of reach.
        """
        with self._in_words("written: {}; mend that"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection to read with.

        Raises:
            StoreError: when the database gives nothing: pages of it are damaged, a table is gone, it cannot be reached.
        """
        with self._in_words("read: {}; restore it from a copy"), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _in_words(self, said: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = said.format(database_reason(error))
            raise StoreError(f"the store {self._engine.url!r} cannot be {reason}, or give another --store") from error

    def _unreadable(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"{what} in the store {self._engine.url!r} cannot be read ({type(error).__name__}: {error}): "
            "another version wrote it, or it was edited; give another --store"
        )
