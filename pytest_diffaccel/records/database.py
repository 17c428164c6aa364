"""How a store is reached: SQLite or PostgreSQL, opened by many processes at once, its errors in plain words."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Row,
    Select,
    Table,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from pytest_diffaccel.measure.time_limit import waiting
from pytest_diffaccel.records import migration
from pytest_diffaccel.records.rows import equal, upsert, written
from pytest_diffaccel.records.tables import INFO, METADATA, SCHEMA_VERSION, StoreError

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

#: How long a search waits for a server that is away: it was restarted, or the network is down.
PATIENCE_S = 60.0
# Between two tries, which grow further apart.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
# SQLSTATEs of a server that goes, comes, or takes no more connections for now; one that is not reached gives none.
_AWAY = ("08", "57P0", "53300")
# What libpq is told, else it waits for hours where a network swallows everything: seconds, and at last milliseconds.
_LIBPQ = {"connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
_LIBPQ |= {"tcp_user_timeout": 30_000}
#: Writers wait for each other this long; a transaction takes milliseconds.
_BUSY_TIMEOUT_MS = 60_000
# What a file of SQLite begins with, from its first table on (its file format, section 1.3.1).
_SQLITE_HEADER = b"SQLite format 3\0"
# Files, by device and inode, that this process may have connections to. To open and close one beside SQLite would end
# the locks of all of them, and the next process that closes it would delete what is not yet in it (sqlite.org,
# "How To Corrupt An SQLite Database File", section 2.2).
_OPENED: set[tuple[int, int] | None] = set()
_OPENING = threading.Lock()
#: Any number that no other program is likely to lock in the same database ("diffacc" in ASCII).
_ADVISORY_LOCK = 0x64696666616363


class Database:
    """A store's connections. Each call is one transaction, whose database errors are :class:`StoreError`.

    Args:
        engine: of the store.
        patience_s: how long a call waits for a server that is away, seconds; it is then done from its beginning.

    Attributes:
        patience_s: the same.
        away_s: how long calls have waited so, seconds.
    """

    def __init__(self, engine: Engine, patience_s: float = 0.0) -> None:
        self._engine = engine
        self.patience_s = patience_s
        self.away_s = 0.0

    def close(self) -> None:
        """Close the connections; new ones are opened when it is used again."""
        self._engine.dispose()

    def try_writing(self) -> None:
        """Write a transaction that changes nothing.

        Raises:
            StoreError: when nothing can be written.
        """
        self._execute(delete(INFO).where(equal(INFO, {"name": ""})))

    def _rows(self, table: Table, where: Mapping[str, object], since: float = 0.0) -> list[Row[Any]]:
        """Rows in the order in which they were stored."""
        query = select(table).where(equal(table, where), table.c.created_at >= written(since))
        return sorted(self._read(query), key=lambda row: str(row.created_at))

    def _execute(self, *statements: Executable) -> None:
        """Run statements whose changes are kept together, or not at all; raises as :meth:`_write`."""

        def execute(connection: Connection) -> None:
            for statement in statements:
                connection.execute(statement)

        self._write(execute)

    def _upsert(self, table: Table, values: Mapping[str, object]) -> None:
        """Insert a row, or write over the one of the same primary key; raises as :meth:`_write`."""
        self._write(lambda connection: upsert(connection, table, values))

    def _write(self, work: Callable[[Connection], _T]) -> _T:
        """What work gives, whose changes are kept together, or not at all; it may be done again from its beginning.

        Raises:
            StoreError: when the database takes nothing: it is read-only, full, locked for long, or out of reach.
        """

        def transaction() -> _T:
            with self._engine.begin() as connection:
                return work(connection)

        with self._in_words("written: {}; mend that"):
            return self._patiently(transaction)

    def _read(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """The rows of a query.

        Raises:
            StoreError: when the database gives nothing: pages of it are damaged, a table is gone, it cannot be reached.
        """

        def rows() -> Sequence[Row[Any]]:
            with self._engine.connect() as connection:
                return connection.execute(query).all()

        with self._in_words("read: {}; restore it from a copy"):
            return self._patiently(rows)

    def _patiently(self, call: Callable[[], _T]) -> _T:
        found, waited_s = patiently(call, self.patience_s)
        self.away_s += waited_s
        return found

    @contextmanager
    def _in_words(self, said: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = said.format(database_reason(error))
            raise StoreError(f"the store {self._engine.url!r} cannot be {reason}, or give another --store") from error

    @contextmanager
    def _understanding(self, what: str) -> Iterator[None]:
        """Say of records that cannot be read what they are.

        Raises:
            StoreError: when one cannot be read.
        """
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{what} in the store {self._engine.url!r} cannot be read ({type(error).__name__}: {error}): "
                "another version wrote it, or it was edited; give another --store"
            ) from error


def patiently(call: Callable[[], _T], patience_s: float) -> tuple[_T, float]:
    """What a call gives, tried again while its server is away. No case's time runs meanwhile.

    Args:
        call: what to do, again from its beginning.
        patience_s: for so long it is tried again, seconds.

    Returns:
        What it gives, and how long that took beyond the first try, seconds.

    Raises:
        DBAPIError: what is wrong where that is something else, or lasts longer.
    """
    began, pause_s = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            found = call()
        except DBAPIError as error:
            if not _is_away(error) or time.monotonic() - began >= patience_s:
                raise
            if pause_s == _FIRST_PAUSE_S:
                _LOG.warning("the store is away; it is tried for %g s: %s", patience_s, database_reason(error))
            with waiting():
                time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            return found, time.monotonic() - began if pause_s > _FIRST_PAUSE_S else 0.0


def open_engine(address: str | os.PathLike[str], patience_s: float = 0.0) -> Engine:
    """The engine of a store, its tables there and of this version.

    Args:
        address: a database URL (SQLite or PostgreSQL), or the path of an SQLite file.
        patience_s: how long to wait for a server that is away, seconds.

    Raises:
        StoreError: when the database cannot be reached, is of another kind or of another schema version.
    """
    url = _url(address)
    try:
        engine = _sqlite_engine(url) if _is_sqlite(url) else _postgresql_engine(url)
        with _opening(url):
            patiently(lambda: _ensure_schema(engine), patience_s)
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
    except (ValueError, SQLAlchemyError) as error:
        # Not the address itself, nor a part of it that cannot be told from others: it may hold a password.
        why = error if isinstance(error, SQLAlchemyError) else "its host or its port cannot be read"
        raise StoreError(
            f"this is no store: {why}; give a path, or postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from error
    if url.get_backend_name() not in ("sqlite", "postgresql") or asynchronous:
        raise StoreError(f"a store is SQLite or PostgreSQL, not {url.drivername}: give a path, or postgresql://...")
    if not _is_sqlite(url):
        # The driver that the extra "postgresql" installs; SQLAlchemy's default depends on its version.
        return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
    if url.database in (None, "", ":memory:"):
        raise StoreError("a store in memory would be another one in each process: give the path of a file")
    return url.set(database=str(Path(url.database or "").expanduser().absolute()))


def is_file(address: str) -> bool:
    """Whether a store is a file (SQLite), which only processes of one machine can share.

    Raises:
        StoreError: when the address is none.
    """
    return _is_sqlite(_url(address))


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _postgresql_engine(url: URL) -> Engine:
    own = {name: value for name, value in _LIBPQ.items() if "psycopg" in url.drivername and name not in url.query}
    return create_engine(url, pool_pre_ping=True, connect_args=own)


def _is_away(error: DBAPIError) -> bool:
    """Whether a server is not reached, goes, or comes: the same may work in a moment. A file is never away."""
    if not isinstance(error, OperationalError | InterfaceError) or "sqlite" in type(error.orig).__module__:
        return False
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or str(state).startswith(_AWAY)


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
    if not _is_sqlite(url):
        yield
        return
    path = Path(url.database or "")
    with _OPENING:
        if _inode(path) not in _OPENED:
            _check_header(path)
        try:
            with FileLock(f"{path}.lock", timeout=_BUSY_TIMEOUT_MS / 1000):
                yield
        finally:
            _OPENED.add(_inode(path))


def _inode(path: Path) -> tuple[int, int] | None:
    """Which file it is, by device and inode; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_header(path: Path) -> None:
    """Before anything is written beside it: what is there must be a database, or as good as nothing.

    Raises:
        StoreError: when it is another file, or none that can be read like one.
    """
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
        if header in (b"", _SQLITE_HEADER):
            return
    raise StoreError(f"{path} is no SQLite database; give another --store")


def _ensure_schema(engine: Engine) -> None:
    with engine.connect() as connection:
        version = _version(connection)
    if version is None or version in migration.OLDER:
        with engine.begin() as connection:
            if version is not None:
                # SQLite: a transaction that reads before it writes fails at once where another writer comes between.
                connection.execute(update(INFO).values(value=INFO.c.value))
            version = _made_current(connection)
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"the store {engine.url!r} has schema version {version}, and this pytest-diffaccel reads version "
            f"{SCHEMA_VERSION}: give another --store, or install the version that wrote it"
        )
    _check_tables(engine)


def _made_current(connection: Connection) -> str:
    """Make the tables, or make those of an older version this one's; another process may have been faster."""
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
    version = _version(connection)
    if version is None:
        METADATA.create_all(connection)
        connection.execute(insert(INFO).values(name="schema_version", value=SCHEMA_VERSION))
        return SCHEMA_VERSION
    if version in migration.OLDER:
        connection.execute(update(INFO).where(INFO.c.name == "schema_version").values(value=SCHEMA_VERSION))
        migration.migrate(connection, version)
        return SCHEMA_VERSION
    return version


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
