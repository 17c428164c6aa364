"""``kill -9`` at any moment: a search goes on where it was, to the same winners, and no file is ever damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from searches import TESTS, SmallSearch, embedded_folder

#: More of them: ``python -m benchmarks.resume_after_kill --kills 20``.
KILLS = int(os.environ.get("DIFFACCEL_TEST_KILLS", "4"))


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_same_winners() -> None:
    embedded_folder("SD1.5")
    root = TESTS.parent
    if not (root / "benchmarks" / "resume_after_kill.py").exists():
        pytest.skip("the benchmarks are not part of the source distribution")
    command = [sys.executable, "-m", "benchmarks.resume_after_kill", "--kills", str(KILLS), "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["kills"] == len(report["rows"]) == KILLS
    assert report["searches_with_the_same_winners"] == report["searches"] >= 1
    assert report["lost_measurements"] == report["failures_left"] == 0


def test_what_was_measured_before_an_interruption_is_not_measured_again(finished_search: SmallSearch) -> None:
    """One measurement is missing, as after a kill in the middle: only it, and nothing else, is made again."""
    before = finished_search.stored()
    gone = next(candidate for candidate, purpose, _ in before if purpose == "search")
    finished_search.execute(f"DELETE FROM diffaccel_measurements WHERE candidate_key = '{gone}' AND purpose = 'search'")
    finished_search.golden.unlink()
    finished_search.run().assert_outcomes(passed=4)
    after = finished_search.stored()
    assert {row[:2] for row in after} >= {row[:2] for row in before}
    assert {row[0] for row in set(before) - set(after)} == {gone}
    # Made again it may look a little faster or slower, and then other fewer steps are its rival.
    assert all(row[0] == gone or row[1].startswith("instead of") for row in set(after) - set(before))
    assert finished_search.golden.exists()


# Another process in the middle of a candidate; by and by it stores what it measured.
MEASURING = """
import sqlite3, sys, time
from filelock import ReadWriteLock
with ReadWriteLock(".diffaccel/in-progress/SD1.5-DDIM-20-Echo.lock").read_lock():
    print("measuring", flush=True)
    time.sleep(5)
    with sqlite3.connect(".diffaccel/search.sqlite") as store:
        store.execute("INSERT INTO diffaccel_measurements SELECT * FROM aside")
"""


def test_winners_wait_for_a_candidate_that_another_process_measures(finished_search: SmallSearch) -> None:
    fastest = max(key for key, *_ in finished_search.stored())
    measurements = f"diffaccel_measurements WHERE candidate_key = '{fastest}' AND purpose = 'search'"
    finished_search.execute(f"CREATE TABLE aside AS SELECT * FROM {measurements}")
    finished_search.execute(f"DELETE FROM {measurements}")
    golden = finished_search.golden.read_text(encoding="utf-8")
    finished_search.golden.unlink()
    command = [sys.executable, "-c", MEASURING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=finished_search.path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "measuring\n"
        finished_search.run("-k", "test_winners").assert_outcomes(passed=1, deselected=3)
    assert other.returncode == 0
    assert finished_search.golden.read_text(encoding="utf-8") == golden
