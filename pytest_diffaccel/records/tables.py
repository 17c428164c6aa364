"""The store's tables, and the engine that they are reached through: SQLite or PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

#: Raised with every change of a table or of the record in it.
SCHEMA_VERSION = "5"
# Versions whose rows are read as they are: 3 added what a record may lack, 4 and 5 a table each.
_READ_AS_IT_IS = ("2", "3", "4")
#: Writers wait for each other this long; a transaction takes milliseconds.
_BUSY_TIMEOUT_MS = 60_000
#: Any number that no other program is likely to lock in the same database ("diffacc" in ASCII).
_ADVISORY_LOCK = 0x64696666616363

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
DECISIONS = Table(
    "diffaccel_decisions",
    METADATA,
    *_identity(),
    _created_at(),
    Column("evidence", Text, nullable=False),
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


def open_engine(address: str | os.PathLike[str]) -> Engine:
    """The engine of a store, its tables there and of this version.

    Args:
        address: a database URL (SQLite or PostgreSQL), or the path of an SQLite file.

    Raises:
        StoreError: when the database cannot be reached, is of another kind or of another schema version.
    """
    url = _url(address)
    try:
        engine = _sqlite_engine(url) if _is_sqlite(url) else create_engine(url, pool_pre_ping=True)
        with _opening(url):
            _ensure_schema(engine)
    except ModuleNotFoundError as error:
        package = "psycopg[binary]" if error.name == "psycopg" else error.name
        raise StoreError(f"the store {url!r} needs a driver: pip install '{package}'") from error
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"cannot open the store {url!r}: {database_reason(error)}; give another --store") from error
    return engine


def database_reason(error: Exception) -> str:
    """What went wrong in the database's own words, without the statement that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error).strip()


def _url(address: str | os.PathLike[str]) -> URL:
    plain = os.fspath(address)
    try:
        url = make_url(plain) if "://" in plain else URL.create("sqlite", database=plain)
        asynchronous = url.get_dialect().is_async
    except (ArgumentError, SQLAlchemyError) as error:
        # Not the address itself: it may hold a password.
        raise StoreError(f"this is no store: {error}; give a path, or postgresql://...") from error
    if url.get_backend_name() not in ("sqlite", "postgresql") or asynchronous:
        raise StoreError(f"a store is SQLite or PostgreSQL, not {url.drivername}: give a path, or postgresql://...")
    if not _is_sqlite(url):
        # The driver that the extra "postgresql" installs; SQLAlchemy's default depends on its version.
        return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
    if url.database in (None, "", ":memory:"):
        raise StoreError("a store in memory would be another one in each process: give the path of a file")
    return url.set(database=str(Path(url.database or "").expanduser().absolute()))


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _sqlite_engine(url: URL) -> Engine:
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin as _begin says, not as sqlite3 guesses
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # with WAL: no commit is lost by a kill

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # Every transaction of the store writes with its first statement or not at all: one that read before
        # it wrote would fail at once, without waiting, when another writer came between.
        connection.exec_driver_sql("BEGIN")

    return engine


@contextmanager
def _opening(url: URL) -> Iterator[None]:
    """Let one process at a time open an SQLite file: switching a new one to WAL waits for no busy lock."""
    if _is_sqlite(url):
        with FileLock(f"{url.database}.lock", timeout=_BUSY_TIMEOUT_MS / 1000):
            yield
    else:
        yield


def _ensure_schema(engine: Engine) -> None:
    with engine.connect() as connection:
        version = _version(connection)
    if version is None:
        with engine.begin() as connection:
            if not _is_sqlite(engine.url):
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            version = _version(connection)  # again: another process may have been faster
            if version is None:
                METADATA.create_all(connection)
                connection.execute(insert(INFO).values(name="schema_version", value=SCHEMA_VERSION))
                version = SCHEMA_VERSION
    if version in _READ_AS_IT_IS:
        with engine.begin() as connection:
            METADATA.create_all(connection)
            connection.execute(update(INFO).where(INFO.c.name == "schema_version").values(value=SCHEMA_VERSION))
    elif version != SCHEMA_VERSION:
        raise StoreError(
            f"the store {engine.url!r} has schema version {version}, and this pytest-diffaccel reads version "
            f"{SCHEMA_VERSION}: give another --store, or install the version that wrote it"
        )
    _check_tables(engine)


def _check_tables(engine: Engine) -> None:
    """Refuse a store that somebody took a table from, with what it held."""
    gone = sorted(METADATA.tables.keys() - set(inspect(engine).get_table_names()))
    if gone:
        raise StoreError(
            f"the store {engine.url!r} has lost {', '.join(gone)}: restore it from a copy, or give another --store"
        )


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(INFO.name):
        return None
    return connection.scalar(select(INFO.c.value).where(INFO.c.name == "schema_version"))
