"""How the store's records become rows of its tables, and some of them records again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, true
from sqlalchemy.dialects import postgresql, sqlite

from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.deciding import QualityRule
from pytest_diffaccel.measure.measurement import Interval, Measurement, Sampling
from pytest_diffaccel.records.contents import Attempt, Decision, Failure, GroupDecision, GroupWinners
from pytest_diffaccel.records.golden import GoldenEntry


def identity(candidate_key: str, environment: str, sampling: Sampling) -> dict[str, object]:
    """The columns that name one record."""
    return {"candidate_key": candidate_key, **conditions(environment, sampling)}


def conditions(environment: str, sampling: Sampling) -> dict[str, object]:
    """The columns that say in which environment and on which samples."""
    return {"environment": environment, **asdict(sampling)}


def place(cell: Cell, accelerator: str) -> dict[str, object]:
    """The columns that say where in the matrix."""
    return {**asdict(cell), "accelerator": accelerator}


def figures(name: str, interval: Interval) -> dict[str, object]:
    """The three columns of an estimate."""
    # float(): a driver may not know the float types of numpy.
    return {
        f"{name}_low": float(interval.low),
        name: float(interval.value),
        f"{name}_high": float(interval.high),
    }


def dump_record(measurement: Measurement) -> str:
    """The full record; Python writes floats so that they read back exactly."""
    try:
        return json.dumps(measurement.to_json(), allow_nan=False)
    except ValueError as error:
        key = measurement.candidate.key
        raise ValueError(f"not stored: the measurement of {key} holds a number that is not finite") from error


def storable(message: str) -> str:
    """The message without what a text column refuses: lone surrogates, and NUL in PostgreSQL."""
    return message.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", r"\x00")


def equal(table: Table, values: Mapping[str, object]) -> Any:
    """The SQL condition that the columns have these values; with none, that is always so."""
    return and_(true(), *(table.c[name] == value for name, value in values.items()))


def upsert(connection: Connection, table: Table, values: Mapping[str, object]) -> None:
    """Insert a row, or write over the one of the same primary key."""
    keys = [column.name for column in table.primary_key]
    new = {name: value for name, value in values.items() if name not in keys}
    if connection.dialect.name == "sqlite":
        in_sqlite = sqlite.insert(table).values(values)
        connection.execute(in_sqlite.on_conflict_do_update(index_elements=keys, set_=new))
    else:
        in_postgresql = postgresql.insert(table).values(values)
        connection.execute(in_postgresql.on_conflict_do_update(index_elements=keys, set_=new))


def now() -> str:
    """The time as rows keep it."""
    return written(time.time())


def written(seconds: float) -> str:
    """A time in seconds since the epoch as ISO 8601 in UTC, to the microsecond: sorts as text."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")


def dump_candidate(candidate: Candidate) -> str:
    """The record of a candidate."""
    return json.dumps(asdict(candidate), allow_nan=False)


def dump_params(params: Params) -> str:
    """A candidate's parameters as a decision names it; of a group, ``{}``."""
    return json.dumps(params, allow_nan=False)


def failure_of(row: Row[Any]) -> Failure:
    """The failure that a row holds."""
    return Failure(_candidate(row.candidate), row.environment, _sampling(row), row.kind, row.message, row.created_at)


def attempt_of(row: Row[Any]) -> Attempt:
    """The attempt that a row holds."""
    return Attempt(
        candidate=_candidate(row.candidate),
        environment=row.environment,
        sampling=_sampling(row),
        what=row.what,
        session=row.session,
        host=row.host,
        process=row.process,
        created_at=row.created_at,
    )


def _candidate(record: str) -> Candidate:
    data = json.loads(record)
    return Candidate(Cell(**data["cell"]), data["accelerator"], data["params"])


def decision_of(row: Row[Any]) -> Decision | GroupDecision:
    """The decision that a row holds: on a candidate, or on a group."""
    cell, params = Cell(row.pipe, row.scheduler, row.steps), json.loads(row.params)
    if not params:
        return GroupDecision(cell, row.accelerator, row.environment, _sampling(row), row.state, row.created_at)
    candidate = Candidate(cell, row.accelerator, params)
    return Decision(candidate, row.environment, _sampling(row), row.evidence, row.created_at)


def dump_winners(winners: GroupWinners) -> str:
    """The record of what was chosen in a group."""
    record = {
        "entries": {f"{target:g}": json.loads(entry.to_json()) for target, entry in winners.entries.items()},
        "speedups": {key: _numbers(interval) for key, interval in winners.speedups.items()},
        **({"barred": dict(winners.barred)} if winners.barred else {}),
        **({"quality": asdict(winners.quality)} if winners.quality else {}),
    }
    return json.dumps(record, allow_nan=False)


def _numbers(interval: Interval) -> list[float]:
    return [float(interval.value), float(interval.low), float(interval.high)]


def winners_of(row: Row[Any]) -> GroupWinners:
    """What a row says was chosen."""
    record = json.loads(row.record)
    return GroupWinners(
        cell=Cell(row.pipe, row.scheduler, row.steps),
        accelerator=row.accelerator,
        environment=row.environment,
        sampling=_sampling(row),
        entries={
            float(target): GoldenEntry.from_json(json.dumps(entry)) for target, entry in record["entries"].items()
        },
        speedups={key: Interval(*numbers) for key, numbers in record["speedups"].items()},
        created_at=row.created_at,
        barred=record.get("barred", {}),
        quality=QualityRule(**record["quality"]) if "quality" in record else None,
    )


def _sampling(row: Row[Any]) -> Sampling:
    return Sampling(row.num_samples, row.batch_size, row.seed, row.prompts_digest, row.purpose)
