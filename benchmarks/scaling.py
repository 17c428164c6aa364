"""Does a search on several GPUs find the same, faster, and does a busy neighbour disturb what is timed?

Run ``python -m benchmarks.scaling --folder scaling -- --pipe SD1.5 --sched DDIM --steps 20`` on a host with several
GPUs that are otherwise idle; what follows ``--`` goes to ``pytest benches``. One cell is searched from nothing with
one worker per GPU, on 1, 2 and 4 GPUs, one after the other, after one candidate that warms the disk's cache up. A
number of GPUs that is finished in ``--folder`` is not searched again, so the same command goes on where it was
interrupted. A number that is named twice (``--gpus-counts 1,2,1``) is searched on twice: how far two searches without
neighbours are apart is what the machine does of itself, and only what is further apart is the neighbours' doing. Where
the plugin is not installed, set ``PYTEST_ADDOPTS="-p pytest_diffaccel.plugin.entry"``.

Each row tells, beside the whole search's wall time, whether the winners are those of one GPU, and compares the
speed-ups of the candidates that were timed both times: how many agree (their 95% intervals overlap), how far apart
they are; the same of the speed-ups that golden records, which rest on the blocks of all candidates; and how much
slower the unaccelerated pipeline itself was beside busy neighbours. The last columns tell where the workers' time
went: until the first timed block, at work, and idle at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.neighbours import usable_gpus
from benchmarks.output import parser, show
from pytest_diffaccel.matrix import format_params
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.jsonfile import write_text
from pytest_diffaccel.records.store import Store

ROOT = Path(__file__).resolve().parent.parent
_COUNTS = (1, 2, 4)
_CELL = ["--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20"]
_AGAIN = "-again"
_LOG = "cases.jsonl"
_FIGURES = ROOT / "docs" / "figures" / "scaling.json"


@dataclass(frozen=True)
class WorkerTimes:
    """Where the time of a search's workers went, seconds.

    Attributes:
        start_s: from the command to a worker's first timed block: processes, imports, loading, the first pictures;
            mean over the workers.
        work_s: from each worker's first timed block to the end of its last case, all workers together.
        idle_s: from the end of a worker's last case to that of the last of all; mean over the workers.
    """

    start_s: float
    work_s: float
    idle_s: float

    @classmethod
    def read(cls, log: Path, began_at: float, first_block_at: Mapping[str, float]) -> WorkerTimes:
        """From the file that ``--diffaccel-log`` wrote.

        Args:
            log: of a search with xdist's workers.
            began_at: when the command was started, seconds since the epoch.
            first_block_at: when the first block of each candidate began, by key; other cases count from their start.
        """
        begins: dict[str, list[float]] = defaultdict(list)
        ends: dict[str, list[float]] = defaultdict(list)
        for line in log.read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            ended_at = datetime.fromisoformat(case["ended_at"]).timestamp()
            ends[case["worker"]].append(ended_at)
            begins[case["worker"]].append(first_block_at.get(case["case"], ended_at - case["duration_s"]))
        first, last = [min(times) for times in begins.values()], [max(times) for times in ends.values()]
        return cls(
            start_s=statistics.fmean(first) - began_at,
            work_s=sum(last) - sum(first),
            idle_s=max(last) - statistics.fmean(last),
        )


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Attributes:
        name: the number of GPUs, and whether it is the second search on as many.
        gpus: GPUs, and workers, that it had.
        seconds: wall time of the whole command.
        winners: status and params of each golden record, by key.
        speedups: of every candidate that was timed, by candidate key and purpose.
        recorded: speed-ups as golden records them, from the blocks of all candidates, by parameters.
        baseline_s: median time of a run of the unaccelerated pipeline, seconds.
        disturbed_share: share of the timed blocks in which something else was noticed on the machine.
        times: where its workers' time went.
        environment: what it was measured in.
    """

    name: str
    gpus: int
    seconds: float
    winners: Mapping[str, Any]
    speedups: Mapping[tuple[str, str], Interval]
    recorded: Mapping[str, Interval]
    baseline_s: float
    disturbed_share: float
    times: WorkerTimes
    environment: Environment

    @classmethod
    def read(cls, folder: Path) -> Searched:
        """What a finished search left in its folder."""
        result = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        began_at = result.pop("began_at")
        with Store.open(f"sqlite:///{folder / '.diffaccel' / 'search.sqlite'}") as store:
            contents = store.contents()
        timed = [one.measurement for one in contents.measurements if one.measurement.blocks]
        searched = [one for one in timed if one.sampling.purpose == "search"]
        first_block_at = {one.candidate.key: one.blocks[0].started_at for one in searched}
        blocks = [block for measurement in timed for block in measurement.blocks]
        golden = read_golden(folder / "golden.json")
        return cls(
            name=folder.name,
            **result,
            winners={str(key): [entry.status, entry.params] for key, entry in golden.items()},
            speedups={(one.candidate.key, one.sampling.purpose): one.speedup for one in timed},
            recorded={
                format_params(entry.params): Interval(entry.speedup, *entry.speedup_ci95)
                for entry in golden.values()
                if entry.speedup is not None and entry.speedup_ci95 is not None
            },
            baseline_s=statistics.median(block.baseline.total_s for block in blocks),
            disturbed_share=sum(bool(block.disturbance) for block in blocks) / len(blocks),
            times=WorkerTimes.read(folder / _LOG, began_at, first_block_at),
            environment=next(iter(contents.environments.values())),
        )

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of all winners."""
        return hashlib.sha256(json.dumps(self.winners, sort_keys=True).encode()).hexdigest()[:12]


def search(folder: Path, gpus: int, options: Sequence[str]) -> None:
    """Search from nothing in ``folder``, which then holds ``finished.json``.

    Raises:
        SystemExit: when the search fails; its output went to standard error.
    """
    began_at, began = time.time(), time.monotonic()
    workers = ("-n", str(gpus), f"--gpus={','.join(map(str, range(gpus)))}")
    _pytest(folder, str(ROOT / "benches"), *workers, "--diffaccel-log", _LOG, *options)
    result = {"gpus": gpus, "began_at": began_at, "seconds": time.monotonic() - began}
    write_text(folder / "finished.json", json.dumps(result) + "\n")


def warm_up(folder: Path, options: Sequence[str]) -> None:
    """Measure one candidate, briefly: else the first search alone waits for the disk, when it loads CUDA's libraries.

    Raises:
        SystemExit: when there is no candidate, or it fails.
    """
    # One name per line, whatever verbosity the user's environment asks for.
    one_a_line = ("--collect-only", "--verbosity=-1")
    listed = _pytest(folder, str(ROOT / "benches"), *options, *one_a_line, output=subprocess.PIPE)
    candidates = [line for line in listed.splitlines() if "::test_search[" in line]
    if not candidates:
        raise SystemExit("there is nothing to search")
    _pytest(folder, str(ROOT / candidates[0]), "-n", "1", "--gpus=0", *options, "--blocks", "1")


def _pytest(folder: Path, *arguments: str, output: int | None = None) -> str:
    """Run pytest in a new ``folder``, and return what it printed if ``output`` is a pipe (default: standard error)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pytest", "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    # This clone's package, whatever is installed.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, "--golden", "golden.json", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=sys.stderr if output is None else output,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"pytest {' '.join(arguments)} failed (exit code {done.returncode}); see above")
    return done.stdout or ""


def row(one: Searched, alone: Searched) -> dict[str, Any]:
    """A search on several GPUs, compared with that on one."""
    own, recorded = _changes(one.speedups, alone.speedups), _changes(one.recorded, alone.recorded)
    return {
        "search": one.name,
        "gpus": one.gpus,
        "seconds": one.seconds,
        "speedup": alone.seconds / one.seconds,
        "winners": one.digest,
        "same_winners": f"{len(one.winners) - len(differing(one, alone))}/{len(one.winners)}",
        "timed_twice": len(own),
        "agree": _share_that_agree(own),
        "median_change": _median(change for change, _ in own),
        "median_distance": _median(abs(change) for change, _ in own),
        "recorded_twice": len(recorded),
        "recorded_agree": _share_that_agree(recorded),
        "recorded_distance": _median(abs(change) for change, _ in recorded),
        "baseline_slowdown": one.baseline_s / alone.baseline_s,
        "disturbed_share": one.disturbed_share,
        **asdict(one.times),
    }


def _changes(busy: Mapping[Any, Interval], quiet: Mapping[Any, Interval]) -> list[tuple[float, bool]]:
    """Of each speed-up that both have: the share by which the first is higher, and whether their intervals overlap."""
    both = [(busy[key], quiet[key]) for key in busy.keys() & quiet.keys()]
    return [(first.value / second.value - 1, first.overlaps(second)) for first, second in both]


def _share_that_agree(changes: Sequence[tuple[float, bool]]) -> float:
    return sum(agrees for _, agrees in changes) / len(changes) if changes else 0.0


def _median(values: Iterable[float]) -> float:
    return statistics.median([*values] or [0.0])


def columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as columns: a search has more figures than a terminal is wide."""
    figures = [name for name in rows[0] if name != "search"]
    return [{"search": name, **{row["search"]: row[name] for row in rows}} for name in figures]


def differing(one: Searched, alone: Searched) -> list[str]:
    """Golden keys whose records name other winners, or that only one of the two has."""
    keys = sorted(one.winners.keys() | alone.winners.keys())
    return [key for key in keys if one.winners.get(key) != alone.winners.get(key)]


def disagreeing(one: Searched, alone: Searched) -> dict[str, list[list[float]]]:
    """Candidates whose 95% intervals of the speed-up do not overlap: low, value and high, of ``alone`` first."""
    pairs = {key: (alone.speedups[key], one.speedups[key]) for key in one.speedups.keys() & alone.speedups.keys()}
    return {
        f"{candidate} ({purpose})": [[round(end, 4) for end in (each.low, each.value, each.high)] for each in pair]
        for (candidate, purpose), pair in sorted(pairs.items())
        if not pair[0].overlaps(pair[1])
    }


def report(searches: Sequence[Searched], options: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The table's rows and what holds of all."""
    alone = searches[0]
    summary = {
        "search": " ".join(options),
        "models": alone.environment.model_source,
        "device": alone.environment.device,
        "cpu_cores": os.cpu_count(),
        "other_winners": {one.name: differing(one, alone) for one in searches[1:]},
        "other_speedups": {one.name: disagreeing(one, alone) for one in searches[1:]},
    }
    return [row(one, alone) for one in searches], summary


def _check_folder(folder: Path, options: Sequence[str]) -> None:
    """A folder is for one search: rows of several mean nothing together."""
    note = folder / "options.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != list(options):
        raise SystemExit(f"--folder: {folder} holds another search ({note.name} says which); name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(list(options)) + "\n")


def _named_counts(text: str | None) -> dict[str, int]:
    """Numbers of GPUs, in the order given, by the name of their search."""
    there = len(usable_gpus())
    counts = [int(part) for part in text.split(",")] if text else [one for one in _COUNTS if one <= there]
    if max(counts) > there or min(counts) < 1:
        raise SystemExit(f"--gpus-counts: {there} GPU(s) can be used here; ask for 1 to {there}")
    named: dict[str, int] = {}
    for count in counts:
        name = str(count) if str(count) not in named else f"{count}{_AGAIN}"
        if name in named:
            raise SystemExit(f"--gpus-counts: {count} comes three times; twice tells what the machine does of itself")
        named[name] = count
    return named


def main() -> None:
    """Search on each number of GPUs that is not finished, and print the comparison."""
    made = parser(__doc__ or "")
    made.add_argument(
        "--gpus-counts",
        metavar="LIST",
        help="numbers of GPUs, in this order; one that comes twice is searched on twice (default: those of 1,2,4 that "
        "there are)",
    )
    made.add_argument("--folder", type=Path, help="keep the searches here, and go on from what it holds")
    made.add_argument("--output", nargs="?", type=Path, const=_FIGURES, help=f"write JSON (default: {_FIGURES.name})")
    made.add_argument("options", nargs="*", help="options of the search, after --")
    arguments = made.parse_args()
    options = arguments.options or _CELL
    counts = _named_counts(arguments.gpus_counts)
    with ExitStack() as stack:
        folder = (arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        _check_folder(folder, options)
        missing = [name for name in counts if not (folder / name / "finished.json").exists()]
        if missing:
            warm_up(folder / "warm-up", options)
        for name in missing:
            search(folder / name, counts[name], options)
        finished = [Searched.read(path.parent) for path in folder.glob("*/finished.json")]
    searches = sorted(finished, key=lambda one: (one.gpus, one.name))
    rows, summary = report(searches, options)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        written = {**summary, "environment": searches[0].environment.to_json(), "rows": rows}
        write_text(arguments.output, json.dumps(written, indent=2) + "\n")
    shown = rows if arguments.json else columns(rows)
    show("one search on several GPUs", shown, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
