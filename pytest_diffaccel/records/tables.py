"""The store's tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text

#: Raised with every change of a table or of the record in it; :mod:`.migration` knows the ones before.
SCHEMA_VERSION = "7"

METADATA = MetaData()


class StoreError(RuntimeError):
    """The store cannot be used; the message says why and what to do."""


def _identity() -> list[Column[Any]]:
    """What makes a record: the same candidate, environment and sampling replace each other."""
    return [Column("candidate_key", String, primary_key=True), *_conditions()]


def _conditions() -> list[Column[Any]]:
    """In which environment, and on which samples."""
    return [
        Column("environment", String, primary_key=True),
        Column("num_samples", Integer, primary_key=True, autoincrement=False),
        Column("batch_size", Integer, primary_key=True, autoincrement=False),
        Column("seed", BigInteger, primary_key=True, autoincrement=False),
        Column("prompts_digest", String, primary_key=True),
        Column("purpose", String, primary_key=True),
    ]


def _place(*, is_key: bool = False) -> list[Column[Any]]:
    """Where in the matrix."""
    return [
        Column("pipe", String, primary_key=is_key, nullable=False),
        Column("scheduler", String, primary_key=is_key, nullable=False),
        Column("steps", Integer, primary_key=is_key, autoincrement=False, nullable=False),
        Column("accelerator", String, primary_key=is_key, nullable=False),
    ]


def _figure(name: str) -> Column[Any]:
    return Column(name, Double, nullable=False)


def _created_at() -> Column[Any]:
    """ISO 8601 in UTC with microseconds: sorts as text, and SQLite has no type that keeps the time zone."""
    return Column("created_at", String, nullable=False)


INFO = Table(
    "diffaccel_info",
    METADATA,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)
MEASUREMENTS = Table(
    "diffaccel_measurements",
    METADATA,
    *_identity(),
    *_place(),
    *(_figure(name) for name in ("speedup_low", "speedup", "speedup_high")),
    *(_figure(name) for name in ("wall_speedup_low", "wall_speedup", "wall_speedup_high")),
    *(_figure(name) for name in ("lpips_low", "lpips", "lpips_high")),
    _created_at(),
    Column("record", Text, nullable=False),
    Index("diffaccel_measurements_group", "environment", "pipe", "scheduler", "steps", "accelerator"),
)
FAILURES = Table(
    "diffaccel_failures",
    METADATA,
    *_identity(),
    *_place(),
    Column("kind", String, nullable=False),
    Column("message", Text, nullable=False),
    _created_at(),
    Column("candidate", Text, nullable=False),
)
#: Candidates that are being measured, and those whose process ended meanwhile: one per session.
ATTEMPTS = Table(
    "diffaccel_attempts",
    METADATA,
    *_identity(),
    Column("session", String, primary_key=True),
    *_place(),
    Column("host", String, nullable=False),
    Column("process", Integer, nullable=False),
    Column("what", String, nullable=False),
    _created_at(),
    Column("candidate", Text, nullable=False),
)
#: How far a search is with a candidate that is not measured, or, where ``params`` is ``{}``, with a group.
DECISIONS = Table(
    "diffaccel_decisions",
    METADATA,
    *_place(is_key=True),
    Column("params", String, primary_key=True),
    *_conditions(),
    Column("state", String, nullable=False),
    Column("evidence", Text, nullable=False),
    _created_at(),
)
#: Groups that a session has decided; the cell is verified after its last.
ENDED_GROUPS = Table(
    "diffaccel_ended_groups",
    METADATA,
    *_place(is_key=True),
    *_conditions(),
    Column("session", String, primary_key=True),
    Column("untried", Integer, nullable=False),
    _created_at(),
)
#: Sessions that search into the store. Each lives until then, seconds since the epoch by the database's clock, unless
#: it shows itself before; ``namespace`` is where the number of its process holds.
SESSIONS = Table(
    "diffaccel_sessions",
    METADATA,
    Column("name", String, primary_key=True),
    Column("host", String, nullable=False),
    Column("folder", String, nullable=False),
    Column("process", Integer, nullable=False),
    Column("namespace", String, nullable=False),
    Column("began_at", Double, nullable=False),
    Column("lives_until", Double, nullable=False),
    Column("waits_for", String, nullable=False, server_default=""),
)
#: Groups that a session is in, for as long as it lives; without an accelerator, what a cell's groups have in common.
LEASES = Table(
    "diffaccel_leases",
    METADATA,
    *_place(is_key=True),
    *_conditions(),
    Column("session", String, nullable=False, index=True),
    Column("taken_at", Double, nullable=False),
)
WINNERS = Table(
    "diffaccel_winners",
    METADATA,
    *_place(is_key=True),
    *_conditions(),
    _created_at(),
    Column("record", Text, nullable=False),
)
CALIBRATION = Table(
    "diffaccel_calibration",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("environment", String, nullable=False, index=True),
    _created_at(),
    Column("record", Text, nullable=False),
)
ENVIRONMENTS = Table(
    "diffaccel_environments",
    METADATA,
    Column("id", String, primary_key=True),
    _created_at(),
    Column("record", Text, nullable=False),
)
