"""A throw-away PostgreSQL server for tests: real, on a unix socket, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

_DATABASES = count()


def server_programs() -> Path | None:
    """The newest folder with PostgreSQL's server programs."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    folders = [*([Path(on_path).resolve().parent] if on_path else []), *folders]
    whole = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return whole[-1] if whole else None


def other_user() -> dict[str, Any]:
    """Arguments of ``subprocess`` for a user that is not root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    import pwd

    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Server:
    """PostgreSQL in a folder that its user can reach, started and stopped at will.

    Attributes:
        url: its address.
    """

    def __init__(self, programs: Path) -> None:
        self._programs, self._user = programs, other_user()
        self._folder = Path(tempfile.mkdtemp(prefix="diffaccel-pg-", dir="/tmp"))  # a socket's path must be short
        self.url = f"postgresql+psycopg://tester@/postgres?host={self._folder}"
        if self._user:
            os.chown(self._folder, self._user["user"], self._user["group"])
        make = [f"{programs}/initdb", "-D", f"{self._folder}/data", "-U", "tester", "-A", "trust", "-E", "UTF8"]
        make += ["--no-sync", "--locale=C"]
        made = subprocess.run(make, capture_output=True, text=True, cwd=self._folder, check=False, **self._user)
        if made.returncode:
            shutil.rmtree(self._folder)
            pytest.fail(f"initdb failed: {made.stdout}{made.stderr}")

    def start(self) -> None:
        """Serve; returns when it can be reached."""
        import psycopg

        serve = [f"{self._programs}/postgres", "-D", f"{self._folder}/data", "-k", str(self._folder)]
        serve += ["-c", "listen_addresses=", "-F"]
        with (self._folder / "log").open("ab") as log:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                serve, stdout=log, stderr=log, cwd=self._folder, **self._user
            )
        deadline = time.monotonic() + 300
        while True:
            try:
                psycopg.connect(self.url.replace("+psycopg", "")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL did not start: {(self._folder / 'log').read_text()}")
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Disconnect all clients, whatever they are doing."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def remove(self) -> None:
        """Stop it, and remove what it holds."""
        self.stop()
        shutil.rmtree(self._folder)


def new_database(server: str) -> str:
    """URL of a new schema, which is as good as a new database and made in a tenth of the time."""
    name = f"store{next(_DATABASES)}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return f"{server}&options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """A server that is there for all tests of this process; who stops it starts it again."""
    pytest.importorskip("psycopg")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs (initdb, postgres): install the package postgresql")
    server = Server(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()
