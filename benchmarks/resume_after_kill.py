"""Does a search survive ``kill -9``? One is killed at random moments and started again until it ends.

Run ``python -m benchmarks.resume_after_kill --kills 20``, with ``--workers 2`` or ``--exhaustive`` for other
searches. They are small real ones (``tests/searches.py``), with winners so clear that noise cannot change them: they
must be those of a search that nobody disturbed, nothing measured may be lost, and the golden file and the store must be
whole after every kill. What a race evaluates beside its winners may differ from search to search.

A candidate that ends its process twice in a row is a crash, and tried no more. Here chance kills: such a candidate is
counted, and taken for one that was cut off once.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.output import parser, show
from pytest_diffaccel.records.golden_file import read_environments, read_golden
from pytest_diffaccel.records.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from searches import BOTH, RACE_OPTIONS, THRIFTY, SearchFolder

# With 50 steps, of which five, two or one are computed: far faster than the highest target, and far apart in loss.
_OPTIONS = ["50" if option == "20" else option for option in (*RACE_OPTIONS, *THRIFTY)]
_POINTS = ((10, 0), (25, 0), (50, 0))
_POLL_S = 0.01
# In the working folder, from when the first work begins.
_SIGNS_OF_WORK = ("calibration", "images")
# Of the time of a whole search, for a resumed one: it loads the pipeline again, however little is left to measure.
_LEAST_SHARE = 0.4
# Far more than a search of a few candidates takes; one that hangs must not hang the benchmark.
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Kind:
    """A kind of search.

    Attributes:
        exhaustive: whether it measures everything, in place of what may win.
        workers: processes that search at once, at least 1; several have a group each.
    """

    exhaustive: bool
    workers: int

    def folder(self, path: Path) -> SearchFolder:
        """A new folder to search in."""
        path.mkdir()
        folder = SearchFolder(path)
        folder.register(*_POINTS, replies=_POINTS if self.workers > 1 else ())
        return folder

    @property
    def command(self) -> list[str]:
        """What starts it."""
        options = [*_OPTIONS, *(["--exhaustive"] if self.exhaustive else [])]
        options += [*BOTH, "-n", str(self.workers)] if self.workers > 1 else []
        return [sys.executable, "-m", "pytest", "benches", *options]

    def start(self, folder: SearchFolder) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own."""
        with (folder.path / "output.txt").open("ab") as output:
            return subprocess.Popen(self.command, cwd=folder.path, stdout=output, stderr=output, start_new_session=True)

    def finish(self, folder: SearchFolder) -> None:
        """Search to the end.

        Raises:
            RuntimeError: when the search fails.
        """
        _check(folder, self.start(folder).wait(_LIMIT_S))

    def time_of_work(self, folder: SearchFolder) -> tuple[float, float]:
        """Search to the end; seconds until the first work was to be done (imports are over), and until all was."""
        began = time.monotonic()
        search = self.start(folder)
        signs = [folder.store.parent / name for name in _SIGNS_OF_WORK]
        while not any(sign.exists() for sign in signs) and search.poll() is None:
            time.sleep(_POLL_S)
        work = time.monotonic() - began
        _check(folder, search.wait(_LIMIT_S))
        return work, time.monotonic() - began

    def killed_after(self, folder: SearchFolder, delay_s: float) -> bool:
        """Start a search and kill it after ``delay_s``; False when it has ended by then.

        Raises:
            RuntimeError: when it ended with an error.
        """
        search = self.start(folder)
        try:
            status = search.wait(delay_s)
        except subprocess.TimeoutExpired:
            os.killpg(search.pid, signal.SIGKILL)
            search.wait()
            return True
        _check(folder, status)
        return False


def _check(folder: SearchFolder, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the search failed:\n{(folder.path / 'output.txt').read_text(errors='replace')[-3000:]}")


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
    if not _has_table(folder, "diffaccel_measurements"):
        return set()
    rows = folder.query(
        "SELECT candidate_key, purpose, environment, num_samples, batch_size, seed, prompts_digest"
        " FROM diffaccel_measurements"
    )
    _read_in_full(folder, rows)
    return {(str(row[0]), str(row[1])) for row in rows}


def forgive(folder: SearchFolder) -> int:
    """Take candidates that were cut off twice for cut off once; how many were."""
    if not _has_table(folder, "diffaccel_attempts"):
        return 0
    crashed = sum(kind == "crash" for _, kind, _ in folder.failures())
    folder.execute(
        "DELETE FROM diffaccel_attempts WHERE purpose <> 'calibration' AND created_at < (SELECT max(created_at)"
        " FROM diffaccel_attempts AS later WHERE later.candidate_key = diffaccel_attempts.candidate_key)"
    )
    return crashed


def _has_table(folder: SearchFolder, name: str) -> bool:
    """Whether the store is there, whole, and not killed while it was being made."""
    if not folder.store.exists():
        return False
    with closing(sqlite3.connect(folder.store)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise ValueError(f"{folder.store} is damaged")
        return (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()


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


def resume(kind: Kind, root: Path, kills: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Kill searches ``kills`` times; a search that ends is compared, and another begun.

    Returns:
        A row per kill, and figures of the whole.
    """
    whole = kind.folder(root / "whole")
    work_s, end_s = kind.time_of_work(whole)
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    searches, lost, same, failed, twice = 0, 0, 0, 0, 0
    while len(rows) < kills:
        searches += 1
        folder = kind.folder(root / f"search{searches}")
        before: set[tuple[str, str]] = set()
        is_running = True
        while is_running and len(rows) < kills and (left := 1 - len(before) / len(measured(whole))) > 0:
            delay_s = chance.uniform(work_s, work_s + max(left, _LEAST_SHARE) * (end_s - work_s))
            is_running = kind.killed_after(folder, delay_s)
            if is_running:
                found, now = inspect(folder), measured(folder)
                lost += len(before - now)
                before = now
                twice += forgive(folder)
                rows.append({"kill": len(rows) + 1, "search": searches, "after_s": delay_s} | found)
        if is_running:
            kind.finish(folder)
        lost += len(before - measured(folder))
        # A race may pass over what an earlier one evaluated.
        has_all = not kind.exhaustive or measured(folder) >= _searched(whole)
        same += has_all and winners(folder) == winners(whole)
        # What was cut off and is not worth another attempt has not failed.
        failed += sum(why != "interrupted" for _, why, _ in folder.failures())
    summary = {
        "kills": len(rows),
        "searches": searches,
        "searches_with_the_same_winners": same,
        "lost_measurements": lost,
        "failures_left": failed,
        "candidates_cut_off_twice": twice,
    }
    return rows, summary


def _searched(folder: SearchFolder) -> set[tuple[str, str]]:
    return {(key, purpose) for key, purpose in measured(folder) if purpose == "search"}


def main() -> None:
    """Kill searches and print what was left each time."""
    made = parser(__doc__ or "")
    made.add_argument("--kills", type=int, default=20, help="how often to kill (default: 20)")
    made.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    made.add_argument("--exhaustive", action="store_true", help="searches that measure everything")
    made.add_argument("--workers", type=int, default=1, help="processes of each search (default: 1)")
    arguments = made.parse_args()
    kind = Kind(arguments.exhaustive, arguments.workers)
    with tempfile.TemporaryDirectory() as name:
        rows, summary = resume(kind, Path(name), arguments.kills, arguments.seed)
    show("searches killed and resumed", rows, summary, as_json=arguments.json)
    is_bad = summary["lost_measurements"] or summary["failures_left"]
    if is_bad or summary["searches_with_the_same_winners"] < summary["searches"]:
        raise SystemExit("a killed search did not end as it should have")


if __name__ == "__main__":
    main()
