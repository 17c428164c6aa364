"""The store: measurements and failures in SQL, written by many processes, whole after a kill at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.measurement import Measurement, Round, Sampling
from pytest_diffaccel.records.bookkeeping import Bookkeeping
from pytest_diffaccel.records.contents import Contents, GroupWinners, Recorded
from pytest_diffaccel.records.database import open_engine
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.rows import (
    conditions,
    dump_record,
    dump_winners,
    equal,
    figures,
    identity,
    now,
    place,
    upsert,
    winners_of,
)
from pytest_diffaccel.records.tables import ATTEMPTS, CALIBRATION, ENVIRONMENTS, FAILURES, MEASUREMENTS, WINNERS


class Store(Bookkeeping):
    """Measurements, failures and environments in one database.

    Each call is one transaction. A store may be shared by threads and opened by many processes at once, but
    not carried through ``os.fork``: open it in each process. Database errors of a call are :class:`StoreError`.
    """

    @classmethod
    def open(cls, url: str | os.PathLike[str], patience_s: float = 0.0) -> Store:
        """The store at ``url``, created if missing.

        Args:
            url: the path of an SQLite file, or a SQLAlchemy URL of SQLite or PostgreSQL.
            patience_s: how long a call waits for a server that is away, seconds, before it is an error.

        Raises:
            StoreError: when the database cannot be reached, is of another kind or of another schema version.
        """
        return cls(open_engine(url, patience_s), patience_s)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

        def save(connection: Connection) -> None:
            upsert(connection, MEASUREMENTS, values)
            for table in (FAILURES, ATTEMPTS):
                connection.execute(delete(table).where(equal(table, chosen)))

        self._write(save)

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
        self,
        environment: str,
        sampling: Sampling,
        cell: Cell | None = None,
        since: float = 0.0,
        usable: Callable[[Measurement], bool] = lambda _: True,
    ) -> list[Measurement]:
        """Each candidate's measurement with the most samples, up to ``sampling``'s number; by candidate key.

        Args:
            environment: an environment's id.
            sampling: what is made; measurements of fewer samples begin with the same ones.
            cell: only of this cell; None for all.
            since: only what was stored then or later, seconds since the epoch.
            usable: which measurements count.

        Raises:
            StoreError: when a record cannot be read.
        """
        where = conditions(environment, sampling) | (asdict(cell) if cell else {})
        del where["num_samples"]
        most: dict[str, Measurement] = {}
        for measurement in filter(usable, self._measurements(where, since)):
            key, samples = measurement.candidate.key, measurement.sampling.num_samples
            if samples <= sampling.num_samples and (key not in most or samples > most[key].sampling.num_samples):
                most[key] = measurement
        return list(most.values())

    def save_winners(self, winners: GroupWinners) -> None:
        """Keep what was chosen in a group, in place of what was before; when it was chosen is now."""
        values = {
            **place(winners.cell, winners.accelerator),
            **conditions(winners.environment, winners.sampling),
            "created_at": now(),
            "record": dump_winners(winners),
        }
        self._upsert(WINNERS, values)

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
        self._execute(insert(CALIBRATION).values(values))

    def rounds(self, environment: str, since: float = 0.0) -> list[Round]:
        """All rounds of an environment's calibration since then (seconds since the epoch), as they were stored.

        Raises:
            StoreError: when a record cannot be read.
        """
        rows = self._rows(CALIBRATION, {"environment": environment}, since)
        with self._understanding("a calibration"):
            return [Round.from_json(json.loads(row.record)) for row in rows]

    def forget_rounds(self, environment: str) -> None:
        """Remove an environment's calibration: what it says is not so any more."""
        self._execute(delete(CALIBRATION).where(equal(CALIBRATION, {"environment": environment})))

    def save_environment(self, environment: Environment) -> None:
        """Keep what an environment's id stands for."""
        values = {"id": environment.id, "created_at": now(), "record": json.dumps(environment.to_json())}
        self._upsert(ENVIRONMENTS, values)

    def environments(self) -> dict[str, Environment]:
        """All environments kept, by id, in the ids' order.

        Raises:
            StoreError: when a record cannot be read.
        """
        rows = self._read(select(ENVIRONMENTS))
        with self._understanding("an environment"):
            return dict(sorted((row.id, Environment.from_json(row.record)) for row in rows))

    def contents(self) -> Contents:
        """Everything in the store, also of other environments and samplings.

        Raises:
            StoreError: when a record cannot be read.
        """
        environments = self.environments()
        failures, running = self._all_failures()
        decisions, groups = self._all_decisions()
        return Contents(
            measurements=tuple(self._recorded({})),
            failures=tuple(failures),
            decisions=decisions,
            environments=environments,
            rounds={name: made for name in environments if (made := self.rounds(name))},
            winners=self._winners({}),
            groups=groups,
            running=tuple(running),
        )

    def winners(
        self, cell: Cell, accelerator: str, environment: str, sampling: Sampling, since: float = 0.0
    ) -> GroupWinners | None:
        """What was chosen in a group; None where nothing was since then (seconds since the epoch)."""
        found = self._winners(place(cell, accelerator) | conditions(environment, sampling), since)
        return found[0] if found else None

    def _winners(self, where: Mapping[str, object], since: float = 0.0) -> tuple[GroupWinners, ...]:
        rows = self._rows(WINNERS, where, since)
        with self._understanding("the winners of a group"):
            return tuple(map(winners_of, rows))

    def _measurements(self, where: Mapping[str, object], since: float = 0.0) -> list[Measurement]:
        # Sorted here: databases sort text by their own collations.
        recorded = sorted(self._recorded(where, since), key=lambda record: record.measurement.candidate.key)
        return [record.measurement for record in recorded]

    def _recorded(self, where: Mapping[str, object], since: float = 0.0) -> list[Recorded]:
        rows = self._rows(MEASUREMENTS, where, since)
        with self._understanding("a measurement"):
            return [Recorded(Measurement.from_json(json.loads(row.record)), row.created_at) for row in rows]
