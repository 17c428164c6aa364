"""Does a search survive ``kill -9``? One is killed at random moments and started again until it ends.

Run ``python -m benchmarks.resume_after_kill --kills 20``. The search is a small real one (``tests/searches.py``), with
winners so clear that noise cannot change them: they must be those of a search that nobody disturbed, nothing measured
may be lost, and the golden file and the store must be whole after every kill.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show
from pytest_diffaccel.records.golden_file import read_environments, read_golden
from pytest_diffaccel.records.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from searches import SMALL_OPTIONS, SearchFolder

# With 50 steps, of which one to three are computed: ten times as fast or more, far beyond the highest target.
_OPTIONS = ["50" if option == "20" else option for option in SMALL_OPTIONS]
_POINTS = ((20, 0), (25, 0), (50, 0))
_COMMAND = [sys.executable, "-m", "pytest", "benches", *_OPTIONS]
_POLL_S = 0.01
# Of the time of a whole search, for a resumed one: it loads the pipeline again, however little is left to measure.
_LEAST_SHARE = 0.4
# Far more than a search of a few candidates takes; one that hangs must not hang the benchmark.
_LIMIT_S = 600.0


def start(folder: SearchFolder) -> subprocess.Popen[bytes]:
    """Start a search in a process group of its own."""
    with (folder.path / "output.txt").open("ab") as output:
        return subprocess.Popen(_COMMAND, cwd=folder.path, stdout=output, stderr=output, start_new_session=True)


def finish(folder: SearchFolder) -> None:
    """Search to the end.

    Raises:
        RuntimeError: when the search fails.
    """
    _check(folder, start(folder).wait(_LIMIT_S))


def _check(folder: SearchFolder, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the search failed:\n{(folder.path / 'output.txt').read_text(errors='replace')[-3000:]}")


def time_of_work(folder: SearchFolder) -> tuple[float, float]:
    """Search to the end; seconds until the first picture was to be made (imports are over), and until all was done."""
    began = time.monotonic()
    search = start(folder)
    while not (folder.store.parent / "images").exists() and search.poll() is None:
        time.sleep(_POLL_S)
    work = time.monotonic() - began
    _check(folder, search.wait(_LIMIT_S))
    return work, time.monotonic() - began


def killed_after(folder: SearchFolder, delay_s: float) -> bool:
    """Start a search and kill it after ``delay_s``; False when it has ended by then.

    Raises:
        RuntimeError: when it ended with an error.
    """
    search = start(folder)
    try:
        status = search.wait(delay_s)
    except subprocess.TimeoutExpired:
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()
        return True
    _check(folder, status)
    return False


def inspect(folder: SearchFolder) -> dict[str, int]:
    """What a kill left behind: numbers of measurements and golden records.

    Raises:
        ValueError, sqlite3.DatabaseError: when the golden file or the store is damaged.
    """
    golden = read_golden(folder.golden)
    unknown = {entry.environment for entry in golden.values()} - read_environments(folder.golden).keys()
    if unknown:
        raise ValueError(f"golden names environments that are not spelled out: {sorted(unknown)}")
    return {"measurements": len(measured(folder)), "golden": len(golden)}


def measured(folder: SearchFolder) -> set[tuple[str, str]]:
    """(candidate key, purpose) of every measurement in the store, all of them read in full."""
    if not folder.store.exists():
        return set()
    with closing(sqlite3.connect(folder.store)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise ValueError(f"{folder.store} is damaged")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if "diffaccel_measurements" not in tables:  # killed while the store was being made
        return set()
    rows = folder.query(
        "SELECT candidate_key, purpose, environment, num_samples, batch_size, seed, prompts_digest"
        " FROM diffaccel_measurements"
    )
    _read_in_full(folder, rows)
    return {(str(row[0]), str(row[1])) for row in rows}


def _read_in_full(folder: SearchFolder, rows: list[tuple[Any, ...]]) -> None:
    from pytest_diffaccel.measure.measurement import Sampling

    with Store.open(folder.store) as store:
        for key, purpose, environment, num_samples, batch_size, seed, digest in rows:
            found = store.find(key, environment, Sampling(num_samples, batch_size, seed, digest, purpose))
            if found is None:
                raise ValueError(f"the measurement of {key} cannot be read")


def winners(folder: SearchFolder) -> dict[str, tuple[str, Any]]:
    """Status and parameters by golden key."""
    return {str(key): (entry.status, entry.params) for key, entry in read_golden(folder.golden).items()}


def resume(root: Path, kills: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Kill searches ``kills`` times; a search that ends is compared, and another begun.

    Returns:
        A row a kill, and figures of the whole.
    """
    whole = _folder(root / "whole")
    work_s, end_s = time_of_work(whole)
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    searches, lost, same, failed = 0, 0, 0, 0
    while len(rows) < kills:
        searches += 1
        folder = _folder(root / f"search{searches}")
        before: set[tuple[str, str]] = set()
        is_running = True
        while is_running and len(rows) < kills and (left := 1 - len(before) / len(measured(whole))) > 0:
            delay_s = chance.uniform(work_s, work_s + max(left, _LEAST_SHARE) * (end_s - work_s))
            is_running = killed_after(folder, delay_s)
            if is_running:
                found, now = inspect(folder), measured(folder)
                lost += len(before - now)
                before = now
                rows.append({"kill": len(rows) + 1, "search": searches, "after_s": delay_s} | found)
        if is_running:
            finish(folder)
        lost += len(before - measured(folder))
        same += winners(folder) == winners(whole) and measured(folder) >= _searched(whole)
        failed += len(folder.failures())
    summary = {
        "kills": len(rows),
        "searches": searches,
        "searches_with_the_same_winners": same,
        "lost_measurements": lost,
        "failures_left": failed,
    }
    return rows, summary


def _searched(folder: SearchFolder) -> set[tuple[str, str]]:
    return {(key, purpose) for key, purpose in measured(folder) if purpose == "search"}


def _folder(path: Path) -> SearchFolder:
    path.mkdir()
    folder = SearchFolder(path)
    folder.register(*_POINTS)
    return folder


def main() -> None:
    """Kill searches and print what was left each time."""
    made = parser(__doc__ or "")
    made.add_argument("--kills", type=int, default=20, help="how often to kill (default: 20)")
    made.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows, summary = resume(Path(name), arguments.kills, arguments.seed)
    show("searches killed and resumed", rows, summary, as_json=arguments.json)
    is_bad = summary["lost_measurements"] or summary["failures_left"]
    if is_bad or summary["searches_with_the_same_winners"] < summary["searches"]:
        raise SystemExit("a killed search did not end as it should have")


if __name__ == "__main__":
    main()
