"""Sessions that know nothing of each other search into one store: nothing is done twice, and what dies is taken over.

Real processes, each in a folder of its own as on hosts of their own, on a real PostgreSQL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from searches import BOTH, RACE_OPTIONS, THRIFTY, Forked, SearchFolder, without_scale
from servers import Server, new_database
from sqlalchemy import create_engine, text
from timings import STEADY, SteadyClock

from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.store import Store

pytestmark = [pytest.mark.postgresql, pytest.mark.slow]

POINTS = ((10, 0), (20, 0))
OPTIONS = (*RACE_OPTIONS, *THRIFTY, *BOTH, "--diffaccel-log", "cases.jsonl")
#: A session that has died is noticed after five of them; a machine that is busy may hold one up for seconds.
BEAT = ("--heartbeat", "3s")
LIMIT_S = 600
# Notes each time that a measurement is stored.
AUDIT = """
CREATE TABLE audit (candidate_key text, environment text, num_samples int, purpose text, record text);
CREATE FUNCTION note() RETURNS trigger AS $$
BEGIN
    INSERT INTO audit VALUES (NEW.candidate_key, NEW.environment, NEW.num_samples, NEW.purpose, NEW.record);
    RETURN NEW;
END $$ LANGUAGE plpgsql;
CREATE TRIGGER note BEFORE INSERT OR UPDATE ON diffaccel_measurements FOR EACH ROW EXECUTE FUNCTION note();
"""
#: Lines of a conftest.py whose session is in its first group for ever.
FOR_EVER = """
import time

class Endless(Echo):
    def apply(self, pipeline, call, params):
        time.sleep(600)

class EndlessReply(Reply):
    def apply(self, pipeline, call, params):
        time.sleep(600)

def pytest_diffaccel_accelerators(registry):
    registry.register(Endless({points!r}))
    registry.register(EndlessReply({points!r}))
"""
#: Lines of a conftest.py whose session goes on from each group's last candidate when another one has come as far.
IN_STEP = """
import os
import time
from pathlib import Path
import pytest

TOGETHER = Path(__file__).parent.parent
ended = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if "test_winners" in item.name:
        ended.append(item)
        (TOGETHER / f"{{len(ended)}}-{{os.getpid()}}").touch()
        deadline = time.monotonic() + {limit_s}
        while len(list(TOGETHER.glob(f"{{len(ended)}}-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    return (yield)
"""


class SharedStore:
    """A store on PostgreSQL that notes what is stored how often."""

    def __init__(self, server: Server) -> None:
        self.url = new_database(server.url)
        Store.open(self.url).close()
        with self._engine() as connection:
            connection.execute(text(AUDIT))

    def _engine(self) -> Any:
        return create_engine(self.url).begin()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._engine() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def made(self) -> Counter[tuple[Any, ...]]:
        """How often each measurement was stored."""
        return Counter(self.rows("SELECT candidate_key, environment, num_samples, purpose FROM audit"))

    def wait_until(self, query: str, process: Forked | subprocess.Popen[bytes]) -> None:
        """Wait until a query has rows, while a process runs."""
        deadline = time.monotonic() + LIMIT_S
        while not self.rows(query):
            assert process.poll() is None, "it has ended"
            assert time.monotonic() < deadline, query
            time.sleep(0.05)


@pytest.fixture
def shared(postgresql_server: Server) -> SharedStore:
    return SharedStore(postgresql_server)


@pytest.fixture
def steady(everything_imported: None, one_pipeline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock has a part in what searches in copies of this process decide."""
    monkeypatch.setattr("pytest_diffaccel.measure.blocks._REPEATS", 0)
    SteadyClock(monkeypatch)
    without_scale(monkeypatch)


@pytest.fixture
def start(steady: None, shared: SharedStore, tmp_path: Path) -> Iterator[Callable[..., tuple[SearchFolder, Forked]]]:
    """Starts a search in a folder of its own, in a copy of this process."""
    begun: list[Forked] = []

    def start(name: str, *arguments: str, more: str = "") -> tuple[SearchFolder, Forked]:
        folder = folder_in(tmp_path / name, more)
        begun.append(Forked(folder, ["benches", *OPTIONS, "--store", shared.url, *arguments]))
        return folder, begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def folder_in(path: Path, more: str = "") -> SearchFolder:
    path.mkdir()
    folder = SearchFolder(path)
    folder.register(*POINTS, replies=POINTS)
    if more:
        folder.add_to_conftest(more)
    return folder


def output(folder: SearchFolder) -> str:
    file = folder.path / "output.txt"
    return file.read_text(encoding="utf-8") if file.exists() else ""  # as long as it starts


def measured(folder: SearchFolder) -> list[str]:
    """Candidates whose cases measured them, rather than find them stored."""
    lines = map(json.loads, (folder.path / "cases.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["candidate"] for line in lines if line.get("stored") is False]


def winners(folder: SearchFolder) -> Mapping[str, tuple[str, Any]]:
    return {str(key): (entry.status, entry.params) for key, entry in read_golden(folder.golden).items()}


def end(folder: SearchFolder, process: Forked) -> None:
    assert process.wait(LIMIT_S) == 0, output(folder)


def test_sessions_that_start_at_once_share_out_a_search(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore, postgresql_server: Server, tmp_path: Path
) -> None:
    searches = [start(name) for name in ("one", "two", "three")]
    for folder, process in searches:
        end(folder, process)
    made = shared.made()
    assert {count for _, count in made.items()} == {1}, made
    sessions = shared.rows("SELECT count(*) FROM diffaccel_sessions") + shared.rows(
        "SELECT count(*) FROM diffaccel_leases"
    )
    assert sessions == [(0,), (0,)]
    alone = SharedStore(postgresql_server)
    lonely = folder_in(tmp_path / "alone")
    end(lonely, Forked(lonely, ["benches", *OPTIONS, "--store", alone.url]))
    assert "another session" not in output(lonely)
    expected = winners(lonely)
    assert expected
    for folder, _ in searches:
        assert winners(folder) == expected
    searched, searched_alone = ({one for one in kept if one[-1] == "search"} for kept in (made, alone.made()))
    assert searched == searched_alone
    assert any("shared out" in output(folder) for folder, _ in searches)
    # Nor do all wait for the same first group: there are two of them.
    assert [bool(measured(folder)) for folder, _ in searches].count(True) >= 2


def test_two_that_need_each_others_group_do_not_wait_for_ever(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore
) -> None:
    """At the last winners' cases each session has one of the two groups, and needs both."""
    more = IN_STEP.format(limit_s=LIMIT_S)
    for folder, process in [start(name, more=more) for name in ("one", "two")]:
        end(folder, process)
    assert {count for _, count in shared.made().items()} == {1}
    assert not shared.rows("SELECT 1 FROM diffaccel_leases")


def test_what_a_killed_session_was_at_is_taken_over(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore
) -> None:
    _, endless = start("endless", *BEAT, more=FOR_EVER.format(points=POINTS))
    shared.wait_until("SELECT 1 FROM diffaccel_attempts", endless)
    ((taken,),) = shared.rows("SELECT accelerator FROM diffaccel_leases WHERE accelerator <> ''")
    folder, process = start("other")
    shared.wait_until("SELECT 1 FROM diffaccel_decisions WHERE state = 'explored'", process)
    wait_for(lambda: "waiting for " in output(folder), process)
    assert f"process {endless.pid}, which is in 1 group since" in output(folder)
    # All that could be done without it is done.
    others = shared.rows(f"SELECT 1 FROM diffaccel_measurements WHERE accelerator NOT IN ('{taken}', '')")
    assert others
    assert not shared.rows(f"SELECT 1 FROM diffaccel_measurements WHERE accelerator = '{taken}'")
    os.killpg(endless.pid, signal.SIGKILL)
    end(folder, process)
    assert {count for _, count in shared.made().items()} == {1}
    assert {key.accelerator for key in read_golden(folder.golden)} == {"Echo", "Reply"}


def test_ctrl_c_while_it_waits_loses_nothing(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore
) -> None:
    _, endless = start("endless", *BEAT, more=FOR_EVER.format(points=POINTS))
    shared.wait_until("SELECT 1 FROM diffaccel_attempts", endless)
    folder, process = start("other")
    wait_for(lambda: "waiting for " in output(folder), process)
    before = shared.made()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == pytest.ExitCode.INTERRUPTED
    assert "goes on" in output(folder)
    assert not shared.rows(f"SELECT 1 FROM diffaccel_sessions WHERE process = {process.pid}")
    os.killpg(endless.pid, signal.SIGKILL)
    again = Forked(folder, ["benches", *OPTIONS, "--store", shared.url, *BEAT])
    end(folder, again)
    assert before.keys() <= shared.made().keys()
    assert {count for _, count in shared.made().items()} == {1}


def test_sessions_of_other_environments_do_not_wait_for_each_other(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore
) -> None:
    _, endless = start("endless", *BEAT, more=FOR_EVER.format(points=POINTS))
    shared.wait_until("SELECT 1 FROM diffaccel_attempts", endless)
    folder, process = start("other", "--num-samples", "3")
    end(folder, process)
    assert "waiting for" not in output(folder)
    assert endless.poll() is None


def test_a_server_that_is_restarted_during_a_search_loses_nothing(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore, postgresql_server: Server
) -> None:
    folder, process = start("one")
    shared.wait_until("SELECT 1 FROM diffaccel_measurements", process)
    postgresql_server.stop()
    try:
        time.sleep(5)
        assert process.poll() is None, output(folder)
    finally:
        postgresql_server.start()
    end(folder, process)
    assert "diffaccel: the store was away for " in output(folder)
    assert "failed" not in output(folder).splitlines()[-1]
    assert {count for _, count in shared.made().items()} == {1}


def wait_for(holds: Callable[[], bool], process: Forked | subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_workers_go_on_with_other_groups_and_come_back(
    start: Callable[..., tuple[SearchFolder, Forked]], shared: SharedStore, tmp_path: Path
) -> None:
    """With ``-n``: a worker gives back what another session is in, and the controller says for whom it waits."""
    _, endless = start("endless", *BEAT, more=FOR_EVER.format(points=POINTS))
    shared.wait_until("SELECT 1 FROM diffaccel_attempts", endless)
    ((taken,),) = shared.rows("SELECT accelerator FROM diffaccel_leases WHERE accelerator <> ''")
    folder = folder_in(tmp_path / "workers", STEADY)
    command: Sequence[str] = (
        sys.executable,
        "-m",
        "pytest",
        "benches",
        *OPTIONS,
        "--store",
        shared.url,
        *BEAT,
        "-n",
        "2",
    )
    with (folder.path / "output.txt").open("wb") as out:
        process = subprocess.Popen(command, cwd=folder.path, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(lambda: "waiting for " in output(folder), process)
        assert f"process {endless.pid}, which is in 1 group since" in output(folder)
        assert not shared.rows(f"SELECT 1 FROM diffaccel_measurements WHERE accelerator = '{taken}'")
        os.killpg(endless.pid, signal.SIGKILL)
        assert process.wait(LIMIT_S) == 0, output(folder)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert {count for _, count in shared.made().items()} == {1}
    assert {key.accelerator for key in read_golden(folder.golden)} == {"Echo", "Reply"}
