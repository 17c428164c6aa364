"""How well does a search use a cluster, and does its store keep up?

``python -m benchmarks.cluster schedule`` simulates the full matrix (27 cells of three pipes, 6 accelerators each) on 1,
4, 16 and 64 GPUs. The plugin's own scheduler hands out the groups; what a group takes is reckoned, not recorded: by the
work that the scheduler itself expects of it (:class:`.effort.Effort`), in seconds of the H200 whose steps
``pipes.py`` tells. Workers need 10 s to start, and one group in 100 takes its worker with it, which costs the case that
was running and another start.

``python -m benchmarks.cluster ray --workers 8`` runs the same groups with sleeping cases, the time shortened, as a real
session with ``--ray`` on a cluster of this machine: what starting, handing out and reporting cost is in its wall clock.

``python -m benchmarks.cluster store --store postgresql+psycopg://...`` lets 32 processes save 20,000 measurements: none
may be lost and none be there twice; and how long a save takes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.output import needed, parser, show
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import PIPES, Candidate, Cell, Group, candidates, cells, groups
from pytest_diffaccel.measure.measurement import Block, Interval, Measurement, Quality, RunTiming, Sampling
from pytest_diffaccel.pipes import described
from pytest_diffaccel.plugin.scheduling import Groups, GroupScheduling
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search.effort import Effort

_STEPS = (20, 25, 50)
# What starting a worker costs, and how often a group takes its worker with it.
_START_S, _LOST = 10.0, 0.01
_SEED = 20270211
# Of a search of full-size pipelines: 32 samples in batches of 8.
_EFFORT = Effort(batches=4, first_batches=1, blocks=None, rival_batches=1)
_IMAGES = 8


@dataclass(frozen=True)
class Work:
    """A group's work.

    Attributes:
        name: the group's.
        cases: seconds of each of its candidates' cases; then of its winners'.
    """

    name: str
    cases: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return sum(self.cases)


def full_matrix() -> list[Work]:
    """The groups of the full matrix, as long as the scheduler expects them to be."""
    registry = default_registry()
    all_cells = [cell for pipe in PIPES for cell in cells([pipe], described(pipe).schedulers, _STEPS)]
    accelerators = registry.suiting(PIPES[0])
    found = candidates(all_cells, accelerators, coarse=False)
    counts: dict[Group, int] = {}
    for candidate in found:
        counts[candidate.group] = counts.get(candidate.group, 0) + 1
    return [_work(group, counts[group]) for group in groups(all_cells, accelerators) if group in counts]


def _work(group: Group, count: int) -> Work:
    run_s = group.cell.steps * described(group.cell.pipe).full_size_step_s * _IMAGES
    evaluated = max(1, round(_EFFORT.evaluated(count)))
    each = run_s * _EFFORT.evaluation()
    others = [0.0] * (count - evaluated)
    return Work(group.name, (*([each] * evaluated), *others, run_s * _EFFORT.settling(count) + each))


class _Worker:
    """A worker as the scheduler sees it: it begins a case once it knows the next one, or that there is none."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.workerinput: dict[str, Any] = {}
        self.given: list[int] = []
        self.is_down = False
        self._shutdown_sent = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self._shutdown_sent = True

    @property
    def shutting_down(self) -> bool:
        return self.is_down or self._shutdown_sent

    @property
    def can_begin(self) -> bool:
        return len(self.given) >= (1 if self._shutdown_sent else 2)


class Simulation:
    """A session on ``workers`` GPUs, in simulated time.

    Args:
        work: its groups.
        workers: how many.
        lost: the share of groups that take their worker with them, half way through.
    """

    def __init__(self, work: Sequence[Work], workers: int, lost: float) -> None:
        self._seconds: dict[str, float] = {}
        names: dict[str, str] = {}
        for one in work:
            # As real cases are named: the winners' by the group alone.
            own = [*(f"{one.name}-{place}" for place in range(len(one.cases) - 1)), one.name]
            names |= dict.fromkeys(own, one.name)
            self._seconds |= {f"test_search.py::test[{case}]": took for case, took in zip(own, one.cases, strict=True)}
        chance = random.Random(_SEED)
        self._deadly = {
            f"test_search.py::test[{one.name}-{len(one.cases) // 2}]" for one in work if chance.random() < lost
        }
        plugins = pytest.PytestPluginManager()
        self._active: set[_Worker] = set()
        plugins.register(SimpleNamespace(_active_nodes=self._active, shuttingdown=False), "dsession")
        config: Any = SimpleNamespace(
            pluginmanager=plugins,
            getvalue=lambda _: [f"{workers}*popen"],
            option=SimpleNamespace(loadscopereorder=True),
        )
        efforts, lasts = {one.name: one.seconds for one in work}, {one.name: one.cases[-1] for one in work}
        self._scheduling = GroupScheduling(config, None, Groups(names, efforts, True, lasts))
        self._scheduling.numnodes = workers
        self._tests = list(self._seconds)
        self._ends: list[tuple[float, int, _Worker]] = []
        self._ready_at: dict[_Worker, float] = {}
        self._running: set[_Worker] = set()
        self._now = 0.0
        for _ in range(workers):
            self._start()
        self._scheduling.schedule()

    def _start(self) -> None:
        worker = _Worker(len(self._ready_at))
        self._ready_at[worker] = self._now + _START_S
        self._active.add(worker)
        self._scheduling.add_node(worker)
        self._scheduling.add_node_collection(worker, self._tests)

    def makespan_s(self) -> float:
        """Seconds from the start to the end of the last case."""
        while True:
            for worker in self._scheduling.nodes:
                if worker not in self._running and worker.can_begin:
                    self._running.add(worker)
                    begin = max(self._now, self._ready_at[worker])
                    took = self._seconds[self._tests[worker.given[0]]]
                    heapq.heappush(self._ends, (begin + took, worker.number, worker))
            if not self._ends:
                return self._now
            self._now, _, worker = heapq.heappop(self._ends)
            self._running.remove(worker)
            self._end(worker)
            if self._scheduling.tests_finished:
                for idle in self._scheduling.nodes:
                    idle.shutdown()

    def _end(self, worker: _Worker) -> None:
        test = worker.given[0]
        if self._tests[test] in self._deadly:
            self._deadly.discard(self._tests[test])
            worker.is_down = True
            self._scheduling.remove_node(worker)
            self._active.remove(worker)
            self._start()
            self._scheduling.schedule()
        else:
            worker.given.pop(0)
            self._scheduling.mark_test_complete(worker, test)


def simulated(counts: Sequence[int], lost: float) -> list[dict[str, Any]]:
    """A row per number of GPUs."""
    work = full_matrix()
    total, longest = sum(one.seconds for one in work), max(work, key=lambda one: one.seconds)
    rows = []
    for count in counts:
        makespan = Simulation(work, count, lost).makespan_s()
        rows.append(
            {
                "GPUs": count,
                "groups": len(work),
                "work_h": total / 3600,
                "makespan_h": makespan / 3600,
                "efficiency": total / count / makespan,
                "bound_by_longest": min(1.0, total / count / (longest.seconds + _START_S)),
                "longest": f"{longest.name}, {longest.seconds / 3600:.2f} h",
            }
        )
    return rows


# A case of a real session that sleeps as long as its place in the file of seconds says.
_SLEEPING = """
import json, os, time
from pathlib import Path

FOLDER = Path(__file__).parent
SECONDS = json.loads((FOLDER / "seconds.json").read_text())

def sleep(case):
    began = time.time()
    time.sleep(SECONDS[case])
    with (FOLDER / "ran.jsonl").open("a") as ran:
        ran.write(json.dumps([case, began, time.time()]) + chr(10))

def test_search(diffaccel_candidate):
    sleep(diffaccel_candidate.key)

def test_winners(diffaccel_group):
    sleep(diffaccel_group.name)
"""
# The groups of one pipe in 20 and 25 steps, on the coarse grid: hundreds of cases, not thousands.
_SLEEPING_OPTIONS = ("--pipe", "SD1.5", "--steps", "20,25", "--grid", "coarse")


def slept(workers: int, seconds_per_group: float) -> dict[str, Any]:
    """A real session of sleeping cases on a Ray cluster of this machine, from its first case's begin to its last's end.

    Args:
        workers: CPUs that the cluster claims to have; sleeping takes none.
        seconds_per_group: what a group sleeps in the mean.
    """
    needed("ray", "ray")
    from ray.cluster_utils import Cluster

    work = _coarse_work(seconds_per_group)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False})
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "test_cases.py").write_text(_SLEEPING, encoding="utf-8")
            (folder / "seconds.json").write_text(json.dumps(work), encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", f"--ray={cluster.address}", *_SLEEPING_OPTIONS]
            began = time.time()
            made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            took = time.time() - began
            if made.returncode:
                raise SystemExit(made.stdout[-2000:] + made.stderr[-2000:])
            ran = [json.loads(line) for line in (folder / "ran.jsonl").read_text(encoding="utf-8").splitlines()]
    finally:
        cluster.shutdown()
    span = max(end for _, _, end in ran) - min(begin for _, begin, _ in ran)
    total = sum(work.values())
    return {
        "workers": workers,
        "cases": len(ran),
        "twice": len(ran) - len({case for case, *_ in ran}),
        "slept_s": total,
        "start_s": min(begin for _, begin, _ in ran) - began,
        "whole_s": took,
        "efficiency": total / workers / span,
    }


def _coarse_work(seconds_per_group: float) -> dict[str, float]:
    """Seconds by case: those of a real search's groups of one pipe, shortened alike."""
    chosen = cells(["SD1.5"], described("SD1.5").schedulers, (20, 25))
    accelerators = default_registry().suiting("SD1.5")
    counts: dict[Group, list[Candidate]] = {}
    for candidate in candidates(chosen, accelerators, coarse=True):
        counts.setdefault(candidate.group, []).append(candidate)
    work = {group: _work(group, len(own)) for group, own in counts.items()}
    scale = seconds_per_group * len(work) / sum(one.seconds for one in work.values())
    found = {}
    for group, own in counts.items():
        *each, last = work[group].cases
        found |= {candidate.key: scale * seconds for candidate, seconds in zip(own, each, strict=True)}
        found[group.name] = scale * last
    return found


def _save_many(store: str, template: Measurement, first: int, count: int) -> list[float]:
    """Save measurements of made-up candidates; seconds of each save."""
    took = []
    with Store.open(store) as opened:
        for number in range(first, first + count):
            made = replace(template, candidate=_numbered(number))
            began = time.perf_counter()
            opened.save(made)
            took.append(time.perf_counter() - began)
    return took


def _numbered(number: int) -> Candidate:
    params = {"DeepCache": {"cache_interval": 2 + number, "cache_branch_id": 0}}
    return Candidate(Cell("SD1.5", "DDIM", 20), "DeepCache", params)


def saved(store: str, processes: int, count: int) -> dict[str, Any]:
    """Processes that save into one store at once."""
    shares = [(place * count // processes, (place + 1) * count // processes) for place in range(processes)]
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    with context.Pool(processes) as pool:
        jobs = [(store, _template(), first, end - first) for first, end in shares]
        took = sorted(seconds for part in pool.starmap(_save_many, jobs) for seconds in part)
    whole_s = time.perf_counter() - began
    with Store.open(store) as opened:
        keys = [one.measurement.candidate.key for one in opened.contents().measurements]
    return {
        "processes": processes,
        "saved": count,
        "lost": count - len(set(keys)),
        "twice": len(keys) - len(set(keys)),
        "p50_ms": 1000 * statistics.median(took),
        "p95_ms": 1000 * took[int(0.95 * len(took))],
        "saves_per_s": count / whole_s,
    }


def _template() -> Measurement:
    """A measurement as long as most: four blocks of 20 steps."""
    interval = Interval(1.5, 1.4, 1.6)
    run = RunTiming(1.0, (0.04,) * 20, ("plain",) * 20)
    return Measurement(
        candidate=_numbered(0),
        environment="0123456789ab",
        sampling=Sampling(8, 4, 0, "0" * 12, "search"),
        speedup=interval,
        wall_speedup=interval,
        estimates_agree=True,
        quality=Quality(Interval(0.1, 0.09, 0.11), 30.0, 0.9, (0.1,) * 8),
        blocks=tuple(Block(run, (run,)) for _ in range(4)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark that is named."""
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = made.add_subparsers(dest="kind", required=True)
    schedule = kinds.add_parser("schedule")
    schedule.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 16, 64])
    schedule.add_argument("--lost", type=float, default=_LOST, help="share of groups that take their worker with them")
    on_ray = kinds.add_parser("ray")
    on_ray.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8])
    on_ray.add_argument("--seconds", type=float, default=2.0, help="what a group sleeps in the mean")
    store = kinds.add_parser("store")
    store.add_argument("--store", required=True)
    store.add_argument("--processes", type=int, default=32)
    store.add_argument("--count", type=int, default=20_000)
    given = made.parse_args(argv)
    if given.kind == "schedule":
        show("the full matrix, simulated", simulated(given.gpus, given.lost), {}, as_json=given.json)
    elif given.kind == "ray":
        rows = [slept(workers, given.seconds) for workers in given.workers]
        show("sleeping cases on a Ray cluster of this machine", rows, {"cores": os.cpu_count()}, as_json=given.json)
    else:
        rows = [saved(given.store, given.processes, given.count)]
        show("one store under load", rows, {"cores": os.cpu_count()}, as_json=given.json)


if __name__ == "__main__":
    main()
