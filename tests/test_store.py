"""The store on SQLite and on a real PostgreSQL: exact, shared by processes, whole after a kill."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from entries import MET
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Server, new_database
from sqlalchemy import MetaData, create_engine, insert, select, text

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Block, Interval, Measurement, Quality, Round, RunTiming, Sampling
from pytest_diffaccel.records import migration, presence
from pytest_diffaccel.records.contents import Contents, GroupWinners, RunningSession
from pytest_diffaccel.records.database import is_file
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.presence import Presence
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import INFO, METADATA, StoreError

CELL = Cell("SD1.5", "DDIM", 20)
SAMPLING = Sampling(num_samples=8, batch_size=4, seed=2**40, prompts_digest="0123456789ab", purpose="search")
ENVIRONMENT = "3f9c2ab01d7e"


def candidate(interval: int = 2, cell: Cell = CELL, accelerator: str = "DeepCache") -> Candidate:
    return Candidate(cell, accelerator, {"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}})


def measurement(interval: int = 2, speedup: float = 1.7, **changes: Any) -> Measurement:
    run = RunTiming(0.1 + 0.2, (0.1, 1 / 3), ("full", "shallow@0"))
    known = Measurement(
        candidate=candidate(interval),
        environment=ENVIRONMENT,
        sampling=SAMPLING,
        speedup=Interval(speedup, speedup - 0.1, speedup + 0.1),
        wall_speedup=Interval(1.71, 1.6, 1.83),
        estimates_agree=True,
        quality=Quality(Interval(0.041, 0.036, 0.047), 31.5, 0.97, (0.04, 0.042)),
        blocks=(Block(run, (run, run), "load 3.1"), Block(run, (run,))),
        fired={"cached_steps": 10},
        peak_memory_mb=812.5,
    )
    return replace(known, **changes)


# Databases


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is not there yet, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/folder/store.sqlite"
    return new_database(request.getfixturevalue("postgresql_server").url)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


# Measurements


def test_find_gives_back_what_was_saved(store: Store) -> None:
    assert store.find(candidate().key, ENVIRONMENT, SAMPLING) is None
    store.save(measurement())
    found = store.find(candidate().key, ENVIRONMENT, SAMPLING)
    assert found == measurement()
    assert found.candidate.key == candidate().key


def test_the_newest_replaces_the_older(store: Store) -> None:
    store.save(measurement(speedup=1.7))
    store.save(measurement(speedup=1.8))
    found = store.group(CELL, "DeepCache", ENVIRONMENT, SAMPLING)
    assert [one.speedup.value for one in found] == [1.8]


@pytest.mark.parametrize(
    "change",
    [
        {"environment": "000000000000"},
        {"candidate": candidate(3)},
        {"sampling": replace(SAMPLING, num_samples=1)},
        {"sampling": replace(SAMPLING, batch_size=1)},
        {"sampling": replace(SAMPLING, seed=1)},
        {"sampling": replace(SAMPLING, prompts_digest="other")},
        {"sampling": replace(SAMPLING, purpose="winner")},
    ],
)
def test_another_identity_stands_beside(store: Store, change: dict[str, Any]) -> None:
    other = measurement(speedup=9.0, **change)
    store.save(measurement())
    store.save(other)
    assert store.find(candidate().key, ENVIRONMENT, SAMPLING) == measurement()
    assert store.find(other.candidate.key, other.environment, other.sampling) == other


def test_group_is_in_key_order_whatever_the_order_of_saving(store: Store) -> None:
    elsewhere = measurement(4, candidate=candidate(4, Cell("SD1.5", "DDIM", 25)))
    other_method = measurement(4, candidate=candidate(4, accelerator="DeepCache and ToMe"))
    for one in (measurement(8), elsewhere, measurement(10), other_method, measurement(3), measurement(2)):
        store.save(one)
    found = [one.candidate.key for one in store.group(CELL, "DeepCache", ENVIRONMENT, SAMPLING)]
    assert found == sorted(candidate(interval).key for interval in (2, 3, 8, 10))
    assert store.group(CELL, "ToMe", ENVIRONMENT, SAMPLING) == []


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite, finite, st.lists(finite, max_size=5))
@settings(max_examples=30)
def test_floats_survive_exactly(
    tmp_path_factory: pytest.TempPathFactory, value: float, low: float, total: float, steps: list[float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "floats.sqlite"
    run = RunTiming(total, tuple(steps), ("full",) * len(steps))
    saved = measurement(speedup=value, wall_speedup=Interval(value, low, total), blocks=(Block(run, (run,)),))
    with Store.open(path) as store:
        store.save(saved)
        found = store.find(candidate().key, ENVIRONMENT, SAMPLING)
    assert repr(found) == repr(saved)  # repr tells -0.0 from 0.0
    with sqlite3.connect(path) as connection:
        columns = connection.execute(
            "SELECT wall_speedup, wall_speedup_low, wall_speedup_high FROM diffaccel_measurements"
        ).fetchone()
    connection.close()
    assert columns == (value, low, total)


@pytest.mark.parametrize("value", [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3])
def test_columns_hold_floats_exactly(store: Store, url: str, value: float) -> None:
    store.save(measurement(wall_speedup=Interval(value, value, value)))
    engine = create_engine(url)
    with engine.connect() as connection:
        columns = connection.execute(text("SELECT wall_speedup, lpips_high, steps FROM diffaccel_measurements"))
        assert tuple(columns.one()) == (value, 0.047, 20)
    engine.dispose()


def test_columns_are_there_to_query_by(store: Store, url: str) -> None:
    before = datetime.now(timezone.utc)
    store.save(measurement())
    engine = create_engine(url)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM diffaccel_measurements")).one()._mapping
    engine.dispose()
    expected = {
        "pipe": "SD1.5",
        "scheduler": "DDIM",
        "steps": 20,
        "accelerator": "DeepCache",
        "candidate_key": candidate().key,
        "environment": ENVIRONMENT,
        "purpose": "search",
        "seed": 2**40,
        "speedup_low": 1.7 - 0.1,
        "speedup": 1.7,
        "speedup_high": 1.7 + 0.1,
        "lpips": 0.041,
    }
    assert {name: row[name] for name in expected} == expected
    assert Measurement.from_json(json.loads(row["record"])) == measurement()
    created_at = datetime.fromisoformat(row["created_at"])
    assert created_at.utcoffset() == timedelta(0)
    assert before <= created_at <= datetime.now(timezone.utc)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(store: Store, value: float) -> None:
    with pytest.raises(ValueError, match=r"cache_interval=2.*not finite"):
        store.save(measurement(peak_memory_mb=value))
    assert store.find(candidate().key, ENVIRONMENT, SAMPLING) is None


# Failures, environments, progress


def test_a_success_removes_the_failure(store: Store) -> None:
    store.save_failure(candidate(), ENVIRONMENT, SAMPLING, "timeout", "after 60 s")
    store.save_failure(candidate(3), ENVIRONMENT, SAMPLING, "error", "ValueError: \0 \udcff ä")
    store.save_failure(candidate(), ENVIRONMENT, SAMPLING, "oom", "out of memory")
    first, second = store.failures(ENVIRONMENT, SAMPLING)
    assert (first.candidate, first.kind, first.message) == (candidate(), "oom", "out of memory")
    assert (second.candidate.key, second.message) == (candidate(3).key, r"ValueError: \x00 \udcff ä")
    assert (second.environment, second.sampling) == (ENVIRONMENT, SAMPLING)
    assert datetime.fromisoformat(second.created_at).utcoffset() == timedelta(0)
    store.save(measurement())
    assert [failure.candidate for failure in store.failures(ENVIRONMENT, SAMPLING)] == [candidate(3)]
    assert store.failures("000000000000", SAMPLING) == []


def test_an_unknown_kind_of_failure_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="known: error, oom, timeout, missing, not-fired"):
        store.save_failure(candidate(), ENVIRONMENT, SAMPLING, "bored", "")  # type: ignore[arg-type]


def test_environments(store: Store) -> None:
    one = Environment("SD1.5", "stand-in", {"unet": "ab"}, "CPU", "", 2, {"torch": "2"}, "float32", (64, 64), 4, 5.0)
    other = replace(one, threads=1)
    for environment in (one, other, one):
        store.save_environment(environment)
    assert store.environments() == {one.id: one, other.id: other}
    assert list(store.environments()) == sorted([one.id, other.id])


# Opening


def test_contents_are_everything_in_the_order_it_came(store: Store) -> None:
    elsewhere = replace(SAMPLING, purpose="winner")
    assert store.contents() == Contents((), (), (), {})
    store.save(measurement(3))
    store.save(measurement(2, environment="000000000000", sampling=elsewhere))
    store.save_failure(candidate(4), ENVIRONMENT, elsewhere, "oom", "out of memory")
    store.save_decision(candidate(5), ENVIRONMENT, SAMPLING, "predicted 1.05x")
    store.save_group(CELL, "DeepCache", ENVIRONMENT, SAMPLING, "explored")
    found = store.contents()
    assert [one.measurement for one in found.measurements] == [
        measurement(3),
        measurement(2, environment="000000000000", sampling=elsewhere),
    ]
    assert [(one.candidate, one.sampling, one.kind) for one in found.failures] == [(candidate(4), elsewhere, "oom")]
    assert [(one.candidate, one.environment, one.evidence) for one in found.decisions] == [
        (candidate(5), ENVIRONMENT, "predicted 1.05x")
    ]
    assert [(one.cell, one.accelerator, one.state) for one in found.groups] == [(CELL, "DeepCache", "explored")]
    stored = [one.created_at for one in (*found.measurements, *found.failures, *found.decisions)]
    assert stored == sorted(stored)


def test_opening_again_finds_what_was_saved(url: str) -> None:
    with Store.open(url) as store:
        store.save(measurement())
    with Store.open(url) as store:
        assert store.find(candidate().key, ENVIRONMENT, SAMPLING) == measurement()


def test_a_plain_path_is_sqlite_in_wal_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("a folder/odd %name?.sqlite") as store:
        monkeypatch.chdir("/")  # a relative path means the folder of opening, whatever comes later
        store.save(measurement())
        store.close()
        assert store.find(candidate().key, ENVIRONMENT, SAMPLING) == measurement()
    connection = sqlite3.connect(tmp_path / "a folder" / "odd %name?.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_another_schema_version_is_refused(url: str) -> None:
    Store.open(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE diffaccel_info SET value = '99'"))
    engine.dispose()
    with pytest.raises(StoreError, match=r"schema version 99, .* reads version 7: give another --store"):
        Store.open(url)


OLD_STORE = Path(__file__).parent / "data" / "store-4.sqlite"
#: What that store is of: a race of Echo that died three times.
OLD_CELL, OLD_ENVIRONMENT = Cell("SD1.5", "DDIM", 20), "8442ab4bf647"


def old_candidate(interval: int, mishap: int, steps: int = 20) -> Candidate:
    return Candidate(replace(OLD_CELL, steps=steps), "Echo", {"Echo": {"echo_interval": interval, "mishap": mishap}})


@pytest.fixture
def old_store(url: str, tmp_path: Path) -> str:
    """URL of a store that an earlier version left, of schema version 4: a real one, also where the rows were copied."""
    copied = tmp_path / "folder" / "store.sqlite"
    copied.parent.mkdir(exist_ok=True)
    shutil.copy(OLD_STORE, copied)
    if url.startswith("postgresql"):
        tables, source, target = MetaData(), create_engine(f"sqlite:///{copied}"), create_engine(url)
        tables.reflect(source)
        for column in (column for table in tables.tables.values() for column in table.columns):
            column.type = column.type.as_generic()
        with source.connect() as reading, target.begin() as writing:
            tables.create_all(writing)
            for table in tables.sorted_tables:
                writing.execute(insert(table), [dict(row._mapping) for row in reading.execute(select(table))])
        source.dispose()
        target.dispose()
    return url


def test_a_store_of_an_earlier_version_is_read_on(old_store: str) -> None:
    for _ in range(2):  # the second time it is this version's
        with Store.open(old_store) as store:
            found = store.contents()
            sampling = found.measurements[0].measurement.sampling
            assert [
                (one.measurement.candidate.key, one.measurement.sampling.purpose) for one in found.measurements
            ] == [
                (old_candidate(10, 0).key, "search"),
                (old_candidate(2, 0).key, "search"),
                (old_candidate(2, 0).key, "winner"),
                (old_candidate(10, 0).key, "winner"),
                ("SD1.5-DDIM-9--", "instead of 20 steps"),
                ("SD1.5-DDIM-2--", "instead of 20 steps"),
            ]
            assert len(found.rounds[OLD_ENVIRONMENT]) == 36
            skipped = {one.candidate.key: one.evidence for one in found.decisions}
            assert skipped.keys() == {old_candidate(2, 0).key, old_candidate(4, 1).key}
            assert all(evidence.startswith("predicted") for evidence in skipped.values())
            assert store.decision(old_candidate(4, 1), OLD_ENVIRONMENT, sampling) == skipped[old_candidate(4, 1).key]
            assert store.group_state(OLD_CELL, "Echo", OLD_ENVIRONMENT, sampling) == "done"
            assert [(one.candidate, one.kind) for one in found.failures] == [
                (old_candidate(7, 4), "crash"),
                (old_candidate(4, 1), "error"),
            ]
            assert found.failures[0].message == "the process ended during this case, twice"
            short = store.failures(OLD_ENVIRONMENT, replace(sampling, purpose="calibration"))
            assert [(one.candidate, one.kind) for one in short] == [(old_candidate(7, 4, steps=8), "crash")]
            # Neither the sessions that died, nor who verified the cell.
            assert (store.sessions(), found.winners, found.running) == ([], (), ())


# The tables of version 6 that are others now.
BEFORE_LEASES = """
DROP TABLE diffaccel_leases;
DROP TABLE diffaccel_sessions;
DROP TABLE diffaccel_ended_groups;
CREATE TABLE diffaccel_sessions (name VARCHAR PRIMARY KEY, host VARCHAR NOT NULL, folder VARCHAR NOT NULL,
    process INTEGER NOT NULL, began_at DOUBLE PRECISION NOT NULL, created_at VARCHAR NOT NULL);
CREATE TABLE diffaccel_ended_groups (pipe VARCHAR, scheduler VARCHAR, steps INTEGER, accelerator VARCHAR,
    environment VARCHAR, num_samples INTEGER, batch_size INTEGER, seed BIGINT, prompts_digest VARCHAR, purpose VARCHAR,
    session VARCHAR NOT NULL, untried INTEGER NOT NULL, created_at VARCHAR NOT NULL,
    PRIMARY KEY (pipe, scheduler, steps, accelerator, environment, num_samples, batch_size, seed, prompts_digest,
    purpose));
INSERT INTO diffaccel_sessions VALUES ('old', 'a host', '/a/folder', 1, 1e9, '2026-01-01');
UPDATE diffaccel_info SET value = '6' WHERE name = 'schema_version'
"""


def test_a_store_of_before_leases_is_read_on(url: str) -> None:
    with Store.open(url) as store:
        store.save(measurement())
        store.save_decision(candidate(3), ENVIRONMENT, SAMPLING, "slow")
        store.save_group(CELL, "DeepCache", ENVIRONMENT, SAMPLING, "explored")
        store.begin(candidate(4), ENVIRONMENT, SAMPLING, "case", session="old")
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in BEFORE_LEASES.split(";"):
            connection.execute(text(statement))
    engine.dispose()
    for _ in range(2):
        with Store.open(url) as store:
            assert store.find(candidate().key, ENVIRONMENT, SAMPLING) == measurement()
            assert store.decision(candidate(3), ENVIRONMENT, SAMPLING) == "slow"
            assert store.group_state(CELL, "DeepCache", ENVIRONMENT, SAMPLING) == "explored"
            assert [one.kind for one in store.failures(ENVIRONMENT, SAMPLING)] == ["interrupted"]
            assert store.sessions() == []
            for session in ("one", "two"):
                store.end_group(CELL, "DeepCache", ENVIRONMENT, SAMPLING, session, 2)
            assert store.ended_groups(CELL, ENVIRONMENT, SAMPLING, "one") == {"DeepCache": 2}
            assert store.take(CELL, ["DeepCache"], ENVIRONMENT, SAMPLING, "one")


def test_workers_that_open_an_old_store_at_once_all_can(old_store: str) -> None:
    code = (
        "import sys; from pytest_diffaccel.records.store import Store; print(len(Store.open(sys.argv[1]).sessions()))"
    )
    command = [sys.executable, "-c", code, old_store]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [worker.communicate(timeout=600)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, errors
    with Store.open(old_store) as store:
        assert [one.kind for one in store.contents().failures] == ["crash", "error"]


def test_a_store_whose_move_to_this_version_breaks_off_is_as_it_was(
    old_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(migration, "_migrate_failures", breaks)
        with pytest.raises(StoreError, match=r"cannot open the store .*No space left"):
            Store.open(old_store)
    engine = create_engine(old_store)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT value FROM diffaccel_info")) == "4"
        assert connection.scalar(text("SELECT count(*) FROM diffaccel_decisions WHERE candidate_key <> ''")) == 9
    engine.dispose()
    with Store.open(old_store) as store:
        assert len(store.contents().decisions) == 2


@pytest.mark.parametrize(
    ("subject", "evidence", "told"),
    [
        ("SD1.5-DDIM-20-Echo", "explored", ("Echo", "explored")),
        ("SD1.5-DDIM-20-Echo", "something new was evaluated", ("Echo", "reopened")),
        ("SDXL-DPM-Solver++-50-DeepCache+ToMe", "winners found", ("DeepCache and ToMe", "done")),
        (
            "SDXL-DPM-Solver++-50-DeepCache+ToMe-cache_interval=3,cache_branch_id=0,ratio=0.5,max_downsample=1",
            "slow",
            {
                "DeepCache": {"cache_interval": 3, "cache_branch_id": 0},
                "ToMe": {"ratio": 0.5, "max_downsample": 1},
            },
        ),
        ("SD1.5-DDIM-20-Gone-a=1", "slow", None),
        ("SD1.5-DDIM-20-Echo-echo_interval=x", "slow", None),
        ("what is this", "slow", None),
    ],
)
def test_what_a_subject_in_words_was_is_told(tmp_path: Path, subject: str, evidence: str, told: object) -> None:
    """What cannot be told is dropped, and decided anew."""
    path = tmp_path / "store.sqlite"
    shutil.copy(OLD_STORE, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM diffaccel_decisions WHERE evidence <> 'winners found'")
        connection.execute("UPDATE diffaccel_decisions SET candidate_key = ?, evidence = ?", (subject, evidence))
    with Store.open(path) as store:
        found = store.contents()
    assert [one.candidate.params for one in found.decisions] == ([told] if isinstance(told, dict) else [])
    groups = [(one.accelerator, one.state) for one in found.groups]
    assert groups == ([told] if isinstance(told, tuple) else [])


# Attempts


def test_what_is_under_way_is_told_and_has_not_failed(store: Store) -> None:
    here = RunningSession("one", platform.node(), "/here", os.getpid(), 1e9)
    store.show_session(here, 300.0)
    store.begin(candidate(2), ENVIRONMENT, SAMPLING, "case", session="one")
    store.begin(candidate(3), ENVIRONMENT, SAMPLING, "case", session="one that is gone")
    store.begin(candidate(4), ENVIRONMENT, replace(SAMPLING, purpose="calibration"), "short run", session="one")
    found = store.contents()
    assert [(one.candidate, one.session, one.process) for one in found.running] == [(candidate(2), "one", os.getpid())]
    assert f"by process {os.getpid()} on {platform.node()}" in found.running[0].in_words()
    assert [(one.candidate, one.kind) for one in found.failures] == [(candidate(3), "interrupted")]
    # Whoever looks for something to measure leaves both alone.
    assert [one.kind for one in store.failures(ENVIRONMENT, SAMPLING)] == ["interrupted"] * 2


def test_an_attempt_ends_with_what_comes_of_it(store: Store) -> None:
    for interval, session in ((2, "one"), (2, "two"), (3, "one"), (4, "one")):
        store.begin(candidate(interval), ENVIRONMENT, SAMPLING, "case", session=session)
    assert [one.kind for one in store.failures(ENVIRONMENT, SAMPLING)] == ["crash", "interrupted", "interrupted"]
    store.save(measurement(2))
    store.save_failure(candidate(3), ENVIRONMENT, SAMPLING, "error", "an accident")
    store.forget_failure(candidate(4), ENVIRONMENT, SAMPLING)
    assert [(one.candidate, one.kind) for one in store.failures(ENVIRONMENT, SAMPLING)] == [(candidate(3), "error")]
    store.begin(candidate(3), ENVIRONMENT, SAMPLING, "case", session="two")
    assert [one.kind for one in store.failures(ENVIRONMENT, SAMPLING)] == ["interrupted"]


def test_what_was_attempted_before_a_fresh_start_does_not_count(store: Store) -> None:
    store.begin(candidate(), ENVIRONMENT, SAMPLING, "case", session="one")
    store.begin(candidate(), ENVIRONMENT, SAMPLING, "case", session="two", since=time.time())
    assert [one.kind for one in store.failures(ENVIRONMENT, SAMPLING)] == ["interrupted"]


def test_what_a_group_chose_is_kept_until_it_chooses_again(store: Store) -> None:
    speedups = {candidate().key: Interval(1.5, 1.4, 1.6)}
    chosen = GroupWinners(candidate().cell, "DeepCache", ENVIRONMENT, SAMPLING, {1.5: MET}, speedups)
    store.save_winners(replace(chosen, entries={}))
    store.save_winners(chosen)
    store.save_winners(replace(chosen, accelerator="ToMe"))
    found = store.contents().winners
    assert [replace(one, created_at="") for one in found] == [chosen, replace(chosen, accelerator="ToMe")]


def test_a_calibration_is_kept_by_environment_in_its_order_until_it_is_forgotten(store: Store) -> None:
    plain = RunTiming(1.0, (0.1, 0.25), ("plain", "plain"))
    run = RunTiming(0.6, (0.2, 1 / 3), ("DeepCache:full", "DeepCache:shallow@0"))
    rounds = [Round(plain, (candidate(),), (run,), "noise" * number, 7.5 - number) for number in range(3)]
    for made in rounds:
        store.save_round(ENVIRONMENT, made)
    store.save_round("another", rounds[0])
    assert store.rounds(ENVIRONMENT) == rounds
    ((known, block),) = rounds[0].blocks
    assert (known, block.baseline, block.runs) == (candidate(), plain, (run,))
    store.forget_rounds(ENVIRONMENT)
    assert store.rounds(ENVIRONMENT) == []
    assert store.rounds("another") == rounds[:1]
    with pytest.raises(ValueError, match="JSON"):
        store.save_round(ENVIRONMENT, Round(plain, (candidate(),), (run,), "", float("nan")))


# Sessions and their leases


@pytest.fixture
def session_in(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Presence]]:
    """Gives a session of a folder, which searches into the same store as all others."""
    made: list[Presence] = []

    def make(folder: str, beat_s: float = 60.0) -> Presence:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        made.append(Presence(Store.open(url), f"session {len(made)}", began_at=1e9 + len(made), beat_s=beat_s))
        return made[-1]

    yield make
    for one in made:
        one.end()


def folders(sessions: list[RunningSession]) -> list[str]:
    return [session.folder.rpartition("/")[2] for session in sessions]


def test_sessions_see_each_other_while_they_last(
    session_in: Callable[..., Presence], store: Store, tmp_path: Path
) -> None:
    first = session_in("one")
    assert first.begin() == []
    second = session_in("another")
    (told,) = second.begin()
    assert presence.session_words(told).startswith(f"{platform.node()}, process {os.getpid()}, since 2001-09-0")
    assert presence.session_words(told).endswith(f", in {tmp_path / 'one'}")
    assert not second.is_here(told)
    third = session_in("one")
    found = third.begin()
    assert folders(found) == ["one", "another"]
    assert [third.is_here(one) for one in found] == [True, False]
    first.end()
    assert folders(session_in("fourth").begin()) == ["another", "one"]
    assert store.contents() == Contents((), (), (), {}, {})


def died(store: Store, name: str, ago_s: float) -> None:
    """A session that was to give a sign of life so many seconds ago, and is in a group."""
    store.show_session(RunningSession(name, "a host", "/a/folder", 1, 1e9), -ago_s)
    assert store.take(CELL, [name], ENVIRONMENT, SAMPLING, name)


def test_a_session_that_died_is_not_told_and_forgotten_after_a_while(
    session_in: Callable[..., Presence], store: Store, url: str
) -> None:
    died(store, "lately", 60)
    died(store, "long ago", 3700)
    assert session_in("one").begin() == []
    engine = create_engine(url)
    with engine.connect() as connection:
        assert set(connection.scalars(text("SELECT name FROM diffaccel_sessions"))) == {"session 0", "lately"}
        assert set(connection.scalars(text("SELECT session FROM diffaccel_leases"))) == {"lately"}
    engine.dispose()


def test_a_session_that_was_killed_in_this_folder_holds_nothing(
    session_in: Callable[..., Presence], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on at once."""
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        killed.wait()
    with monkeypatch.context() as patch:
        patch.setattr(presence.os, "getpid", lambda: killed.pid)
        session_in("one").begin()
    assert store.take(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "session 0")
    # Of other folders nothing is known: they may be another machine's of the same name; so may be other containers.
    assert folders(session_in("another").begin()) == ["one"]
    with monkeypatch.context() as patch:
        patch.setattr(presence.os, "readlink", lambda _: "pid:[4711]")
        assert folders(session_in("one").begin()) == ["one", "another"]
    assert not store.take(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "session 3")
    assert folders(session_in("one").begin()) == ["another", "one"]
    assert store.take(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "session 3")


def test_a_session_shows_that_it_lives(session_in: Callable[..., Presence], url: str) -> None:
    session_in("one", beat_s=0.1).begin()
    engine, query = create_engine(url), text("SELECT lives_until FROM diffaccel_sessions")
    seen: set[float] = set()
    deadline = time.monotonic() + 300
    while len(seen) < 4:  # each sign of life lets it live longer
        assert time.monotonic() < deadline, "no sign of life"
        with engine.connect() as connection:
            seen.add(connection.scalar(query))
        time.sleep(0.01)
    engine.dispose()


def test_times_of_sessions_are_the_databases(
    session_in: Callable[..., Presence], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is wrong by an hour lives and dies as others do."""
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda now=time.time: now() - 3600)
        session_in("one").begin()
        assert len(store.sessions()) == 1
        assert store.take(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "session 0")
    assert len(store.sessions()) == 1
    holder = store.holder(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "another")
    assert holder is not None
    assert holder.since == pytest.approx(time.time(), abs=60)


@pytest.fixture
def leases(store: Store) -> Callable[..., bool]:
    """Takes groups of a cell for a session, by accelerators; two sessions live, a third has died."""
    for name, lives_s in (("one", 300.0), ("two", 300.0), ("dead", -1.0)):
        store.show_session(RunningSession(name, f"host {name}", "/a/folder", 7, 1e9), lives_s)

    def take(session: str, *names: str, cell: Cell = CELL, environment: str = ENVIRONMENT) -> bool:
        return store.take(cell, names, environment, SAMPLING, session)

    return take


def test_a_group_is_one_sessions_until_it_is_given_up(store: Store, leases: Callable[..., bool]) -> None:
    assert leases("one", "ToMe")
    assert leases("one", "ToMe")  # by another process of the session, or once more
    assert not leases("two", "ToMe")
    assert leases("two", "ToMe", environment="another")
    assert leases("two", "ToMe", cell=replace(CELL, steps=25))
    assert leases("two", "DeepCache")
    holder = store.holder(CELL, ["ToMe", "DeepCache"], ENVIRONMENT, SAMPLING, "two")
    assert holder is not None
    assert (holder.session.name, holder.groups) == ("one", 1)
    assert holder.in_words().startswith("host one, process 7, which is in 1 group since 20")
    store.release(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "two")  # which is none of its own
    assert not leases("two", "ToMe")
    store.release(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "one")
    assert leases("two", "ToMe")
    assert store.holder(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "two") is None


def test_of_several_groups_all_are_taken_or_none(store: Store, leases: Callable[..., bool]) -> None:
    assert leases("one", "ToMe")
    assert not leases("two", "DeepCache", "ToMe", "")
    assert leases("one", "DeepCache", "ToMe", "")
    assert not leases("two", "DeepCache")
    store.forget_session("one")
    assert leases("two", "DeepCache", "ToMe", "")
    holder = store.holder(CELL, ["DeepCache"], ENVIRONMENT, SAMPLING, "one")
    assert holder is not None
    assert holder.groups == 2


def test_what_a_dead_session_held_is_taken_over(store: Store, leases: Callable[..., bool]) -> None:
    assert leases("dead", "ToMe")
    assert store.holder(CELL, ["ToMe"], ENVIRONMENT, SAMPLING, "two") is None
    assert leases("two", "ToMe", "DeepCache")
    assert not leases("dead", "ToMe")  # also when it was only held up


def test_a_session_is_told_for_whom_its_workers_wait(store: Store, leases: Callable[..., bool]) -> None:
    assert leases("one", "ToMe")
    assert store.waits_for("two") is None
    store.wait_for("two", "one")
    store.show_session(RunningSession("two", "host two", "/a/folder", 7, 1e9), 300.0)
    holder = store.waits_for("two")
    assert holder is not None
    assert holder.session.name == "one"
    store.forget_session("one")
    assert store.waits_for("two") is None


def test_threads_that_take_the_same_at_once_get_it_once(url: str, leases: Callable[..., bool]) -> None:
    """Nobody waits for long, and no two have one; each has connections of its own, as a process has."""
    names = [f"accelerator {number}" for number in range(6)]
    sessions = ["one", "two"] * 2

    def share(session: str) -> set[str]:
        with Store.open(url) as own:
            return {name for name in names if own.take(CELL, [name, ""], ENVIRONMENT, SAMPLING, session)}

    for _ in range(5):
        with ThreadPoolExecutor(len(sessions)) as threads:
            found = list(threads.map(share, sessions))
        one, two = found[0] | found[2], found[1] | found[3]
        assert not one & two
        assert one | two  # "" is part of all: whoever has it has everything
        with Store.open(url) as own:
            for session in ("one", "two"):
                own.release(CELL, [*names, ""], ENVIRONMENT, SAMPLING, session)


def test_a_record_of_another_version_is_refused(store: Store, url: str) -> None:
    store.save(measurement())
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE diffaccel_measurements SET record = '{}'"))
    engine.dispose()
    with pytest.raises(StoreError, match="cannot be read"):
        store.find(candidate().key, ENVIRONMENT, SAMPLING)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("sqlite://", "in memory"),
        (":memory:", "in memory"),
        ("mysql://root@localhost/x", "SQLite or PostgreSQL, not mysql"),
        ("postgresql+asyncpg://localhost/x", "not postgresql\\+asyncpg"),
        ("postgres://me:secret@localhost/x", "no store: Can't load plugin"),
        ("postgresql://me:secret@127.0.0.1:1/x", "cannot open the store .*127.0.0.1"),
        ("/proc/nowhere/store.sqlite", "cannot open the store"),
    ],
)
def test_what_is_no_store_is_refused(address: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as caught:
        Store.open(address)
    assert "secret" not in str(caught.value)


def test_a_store_with_damaged_pages_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "search.sqlite"
    with Store.open(path) as store:
        for interval in range(2, 200):
            store.save(measurement(interval))
    data = bytearray(path.read_bytes())
    for place in range(4096 * 40, len(data)):
        data[place] = (place * 2654435761 >> 7) & 255
    path.write_bytes(data)
    with Store.open(path) as store, pytest.raises(StoreError, match=r"cannot be read.*another --store") as caught:
        store.contents()
    assert "SELECT" not in str(caught.value)


@pytest.mark.parametrize("table", sorted(METADATA.tables.keys() - {INFO.name}))
def test_a_store_that_lost_a_table_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "search.sqlite"
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(StoreError, match=f"has lost {table}: restore it from a copy, or give another --store"):
        Store.open(path)


def test_a_table_that_goes_while_the_store_is_open_is_told(tmp_path: Path) -> None:
    with Store.open(tmp_path / "search.sqlite") as store:
        with closing(sqlite3.connect(tmp_path / "search.sqlite")) as connection:
            connection.execute("DROP TABLE diffaccel_failures")
        with pytest.raises(StoreError, match="cannot be read: no such table: diffaccel_failures; "):
            store.contents()


def test_a_failure_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with Store.open(tmp_path / "search.sqlite") as store:
        store.save_failure(candidate(), ENVIRONMENT, SAMPLING, "error", "an accident")
        with closing(sqlite3.connect(tmp_path / "search.sqlite")) as connection, connection:
            connection.execute("UPDATE diffaccel_failures SET candidate = '{'")
        with pytest.raises(StoreError, match=r"a failure in the store .* cannot be read"):
            store.contents()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and longer than a header of one hundred bytes: " * 9)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"notes\.txt is no SQLite database; give another --store"):
        Store.open(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_there", [False, True])
def test_what_is_stored_stays_when_another_process_closes_the_store(tmp_path: Path, is_there: bool) -> None:
    """Also where this one has opened it twice, as a search does: to read a file ends SQLite's locks on it."""
    path = tmp_path / "search.sqlite"
    if is_there:
        with Store.open(path) as store:
            store.save_failure(candidate(), ENVIRONMENT, SAMPLING, "error", "before")
    counts = (
        f"from pytest_diffaccel.records.store import Store\nprint(len(Store.open({str(path)!r}).contents().failures))"
    )

    def seen_by_another() -> int:
        done = subprocess.run([sys.executable, "-c", counts], capture_output=True, text=True, check=True)
        return int(done.stdout)

    with Store.open(path) as first, Store.open(path):
        first.save_failure(candidate(), ENVIRONMENT, SAMPLING, "error", "one")
        assert seen_by_another() == 1
        first.save_failure(candidate(5), ENVIRONMENT, SAMPLING, "error", "two")
        assert seen_by_another() == 2


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no SQLite database"):
        Store.open(tmp_path)


@pytest.mark.parametrize("address", ["postgresql://me:secret@host:notaport/x", "postgresql://me:secret@[::1"])
def test_an_address_that_cannot_be_read_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(StoreError, match=r"this is no store: .*; give a path, or postgresql://USER") as refused:
        Store.open(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("search.sqlite", True), ("./a/search.db", True), ("sqlite:////a/b", True), ("postgresql://me@host/x", False)],
)
def test_a_path_is_a_file_whatever_it_looks_like(address: str, expected: bool) -> None:
    assert is_file(address) is expected


# Threads and processes

WRITER = textwrap.dedent(
    """
    import json, sys
    from dataclasses import replace
    from pytest_diffaccel.matrix import Candidate
    from pytest_diffaccel.measure.measurement import Measurement
    from pytest_diffaccel.records.store import Store

    url, record, first, last = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    measurement = Measurement.from_json(record)
    old = measurement.candidate
    with Store.open(url) as store:
        for number in range(first, last):
            params = {"DeepCache": {"cache_interval": number, "cache_branch_id": 0}}
            store.save(replace(measurement, candidate=Candidate(old.cell, old.accelerator, params)))
            print(number, flush=True)
    """
)


def start_writer(url: str, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, json.dumps(measurement().to_json()), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def intervals(store: Store) -> set[int]:
    found = store.group(CELL, "DeepCache", ENVIRONMENT, SAMPLING)
    return {int(one.candidate.params["DeepCache"]["cache_interval"]) for one in found}


def test_threads_share_a_store(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.save(measurement(number)), range(64)))
    assert intervals(store) == set(range(64))


def test_processes_create_and_write_a_store_together(url: str) -> None:
    writers = [start_writer(url, first, first + 40) for first in (0, 20, 40, 60)]  # half of each is another's too
    errors = [writer.communicate(timeout=600)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0], errors
    with Store.open(url) as store:
        assert intervals(store) == set(range(100))


def test_a_killed_writer_loses_nothing_it_confirmed(url: str) -> None:
    moments = random.Random(2)
    confirmed: set[int] = set()
    for first in (1_000, 100_000):
        writer = start_writer(url, first, first + 50_000)
        assert writer.stdout is not None
        confirmed.add(int(writer.stdout.readline()))
        time.sleep(moments.uniform(0, 0.1))
        writer.kill()
        # Not communicate(): it would miss the lines that readline() has buffered.
        confirmed |= {int(line) for line in writer.stdout.read().splitlines()}
        writer.communicate()
        with Store.open(url) as store:
            found = intervals(store)  # every record reads
            assert found >= confirmed
            assert len(found - confirmed) <= 1  # the one under way
            confirmed = found
            store.save(measurement(first - 1))
            confirmed.add(first - 1)


def test_a_writer_killed_while_opening_leaves_a_store_that_opens(tmp_path: Path) -> None:
    moments = random.Random(3)
    started = time.monotonic()
    with Store.open(tmp_path / "first.sqlite"):
        opening_s = time.monotonic() - started
    for number in range(4):
        path = tmp_path / f"{number}.sqlite"
        code = f"from pytest_diffaccel.records.store import Store\nprint(1, flush=True)\nStore.open({str(path)!r})"
        opener = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert opener.stdout is not None
        opener.stdout.readline()
        time.sleep(moments.uniform(0, 2 * opening_s))
        opener.kill()
        opener.communicate()
        with Store.open(path) as store:
            store.save(measurement())
            assert intervals(store) == {2}


# A server that is away


@pytest.mark.postgresql
def test_a_server_that_is_restarted_loses_nothing(postgresql_server: Server) -> None:
    with Store.open(new_database(postgresql_server.url), patience_s=60) as store:
        store.save(measurement(2))
        postgresql_server.stop()
        with ThreadPoolExecutor(2) as threads:
            saving = threads.submit(store.save, measurement(3))
            finding = threads.submit(store.find, candidate(2).key, ENVIRONMENT, SAMPLING)
            time.sleep(1.5)
            assert not saving.done()
            assert not finding.done()
            postgresql_server.start()
            saving.result(timeout=300)
            assert finding.result(timeout=300) == measurement(2)
        assert store.away_s > 2 * 1.4
        assert intervals(store) == {2, 3}
        away_s = store.away_s
        postgresql_server.stop()
        postgresql_server.start()
        assert intervals(store) == {2, 3}  # by a new connection, at once
        assert store.away_s - away_s < 1


@pytest.mark.postgresql
def test_a_server_that_stays_away_is_told_after_a_while(postgresql_server: Server) -> None:
    url = new_database(postgresql_server.url)
    with Store.open(url, patience_s=0.5) as store, Store.open(url) as impatient:
        postgresql_server.stop()
        try:
            began = time.monotonic()
            with pytest.raises(StoreError, match=r"cannot be written: .*No such file"):
                store.save(measurement())
            assert 0.5 <= time.monotonic() - began < 10
            with pytest.raises(StoreError, match="cannot be read: "):
                impatient.environments()
            with pytest.raises(StoreError, match="cannot open the store"):
                Store.open(url, patience_s=0.2)
        finally:
            postgresql_server.start()
        store.save(measurement())
        assert intervals(store) == {2}


@pytest.mark.postgresql
def test_what_is_no_absence_is_told_at_once(postgresql_server: Server) -> None:
    url = new_database(postgresql_server.url)
    with Store.open(url, patience_s=60) as store:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE diffaccel_failures"))
        engine.dispose()
        began = time.monotonic()
        with pytest.raises(StoreError, match="diffaccel_failures"):
            store.contents()
        assert time.monotonic() - began < 10
