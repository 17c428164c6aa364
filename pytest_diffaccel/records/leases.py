"""Who is there, and who is in which group: sessions that know nothing of each other share out a search by it.

A lease is a session's right to a group, for as long as the session lives. All times are the database's: hosts' clocks
may differ.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Row, delete, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.records.contents import Holder, RunningSession
from pytest_diffaccel.records.database import Database
from pytest_diffaccel.records.rows import conditions, equal, place
from pytest_diffaccel.records.tables import ENDED_GROUPS, LEASES, SESSIONS

#: What a cell's groups have in common, among its groups' accelerators: the unaccelerated pipeline's measurements.
IN_COMMON = ""
# Seconds since the epoch by the database's clock.
_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "cast(extract(epoch from clock_timestamp()) as double precision)",
}


class Leases(Database):
    """The part of a store by which sessions share out groups."""

    def show_session(self, session: RunningSession, lives_s: float) -> None:
        """Keep that a session lives, for so many seconds from now on."""
        self._upsert(SESSIONS, {**vars(session), "lives_until": self._now + lives_s})

    def sessions(self) -> list[RunningSession]:
        """Sessions that live, in the order in which they began."""
        rows = self._read(select(SESSIONS).where(SESSIONS.c.lives_until > self._now))
        return sorted(map(_session, rows), key=lambda session: (session.began_at, session.name))

    def forget_session(self, name: str) -> None:
        """Remove a session that has ended, with its leases."""
        of_it = (delete(table).where(table.c.session == name) for table in (LEASES, ENDED_GROUPS))
        self._execute(*of_it, delete(SESSIONS).where(SESSIONS.c.name == name))

    def forget_dead(self, after_s: float) -> None:
        """Remove sessions that have been dead for so many seconds, and leases of sessions that are not there."""
        is_dead = SESSIONS.c.lives_until < self._now - after_s
        self._execute(
            delete(ENDED_GROUPS).where(ENDED_GROUPS.c.session.in_(select(SESSIONS.c.name).where(is_dead))),
            delete(SESSIONS).where(is_dead),
            delete(LEASES).where(LEASES.c.session.not_in(select(SESSIONS.c.name))),
        )

    def take(
        self, cell: Cell, accelerators: Collection[str], environment: str, sampling: Sampling, session: str
    ) -> bool:
        """Take some of a cell's groups for a session, all of them or none.

        A group can be taken that is free, that the session has, or whose session has died. Nothing is waited for: a
        group that another session is taking this very moment cannot be taken.

        Returns:
            Whether the session has them now.
        """
        where = _of_groups(cell, accelerators, environment, sampling)

        def take(connection: Connection) -> bool:
            # The first statement writes: on SQLite it waits for other writers.
            for name in sorted(accelerators):
                values = {**place(cell, name), **conditions(environment, sampling), "session": session}
                _insert_if_free(connection, values | {"taken_at": self._now})
            found = connection.execute(select(LEASES).where(where).with_for_update(skip_locked=True)).all()
            living = set(connection.scalars(select(SESSIONS.c.name).where(SESSIONS.c.lives_until > self._now)))
            if {row.accelerator for row in found if row.session not in living - {session}} != set(accelerators):
                connection.rollback()
                return False
            of_others = where & (LEASES.c.session != session)
            connection.execute(update(LEASES).where(of_others).values(session=session, taken_at=self._now))
            return True

        return self._write(take)

    def release(
        self, cell: Cell, accelerators: Collection[str], environment: str, sampling: Sampling, session: str
    ) -> None:
        """Give up what a session has of some of a cell's groups."""
        own = _of_groups(cell, accelerators, environment, sampling) & (LEASES.c.session == session)
        self._execute(delete(LEASES).where(own))

    def holder(
        self, cell: Cell, accelerators: Collection[str], environment: str, sampling: Sampling, session: str
    ) -> Holder | None:
        """A living session that is in some of a cell's groups, other than ``session``; None where there is none."""
        of_others = _of_groups(cell, accelerators, environment, sampling) & (LEASES.c.session != session)
        names = [row.session for row in self._read(select(LEASES.c.session).where(of_others))]
        return self._holder(SESSIONS.c.name.in_(names))

    def wait_for(self, session: str, holder: str) -> None:
        """Keep for which session another waits, by their names."""
        self._execute(update(SESSIONS).where(SESSIONS.c.name == session).values(waits_for=holder))

    def waits_for(self, session: str) -> Holder | None:
        """The living session that another one waited for last; None where there is none."""
        return self._holder(SESSIONS.c.name.in_(select(SESSIONS.c.waits_for).where(SESSIONS.c.name == session)))

    def _holder(self, which: ColumnElement[bool]) -> Holder | None:
        of_session = LEASES.c.session == SESSIONS.c.name
        in_groups = func.count(LEASES.c.taken_at).filter(LEASES.c.accelerator != IN_COMMON).label("groups")
        query = (
            select(*SESSIONS.c, in_groups, func.min(LEASES.c.taken_at).label("since"))
            .join(LEASES, of_session)
            .where(which, SESSIONS.c.lives_until > self._now)
            .group_by(SESSIONS.c.name)
            .order_by(SESSIONS.c.name)
        )
        rows = self._read(query)
        return Holder(_session(rows[0]), rows[0].since, rows[0].groups) if rows else None

    @property
    def _now(self) -> ColumnElement[float]:
        return literal_column(_NOW[self._engine.dialect.name], Double)


def _of_groups(cell: Cell, accelerators: Collection[str], environment: str, sampling: Sampling) -> ColumnElement[bool]:
    where = place(cell, "") | conditions(environment, sampling)
    del where["accelerator"]
    among: ColumnElement[bool] = equal(LEASES, where) & LEASES.c.accelerator.in_(sorted(accelerators))
    return among


def _insert_if_free(connection: Connection, values: dict[str, Any]) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(insert(LEASES).values(values).on_conflict_do_nothing())


def _session(row: Row[Any]) -> RunningSession:
    return RunningSession(row.name, row.host, row.folder, row.process, row.began_at, row.namespace)
