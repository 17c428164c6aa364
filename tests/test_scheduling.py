"""Who gets what: the scheduler under stand-in workers that die, lag and help each other."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_diffaccel.matrix import Candidate, Cell, Group
from pytest_diffaccel.plugin.scheduling import Groups, GroupScheduling
from pytest_diffaccel.plugin.workers import tell_place
from pytest_diffaccel.search.effort import Effort

WINNERS_S = 5.0
#: What it takes to find that another session is in a group; a real worker then waits a moment.
GIVING_BACK_S = 0.25


class Worker:
    """As xdist's, it begins a test once it knows the next one or that there is none."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_down = False
        self._shutdown_sent = False
        self.given: list[int] = []
        self.given_back: Counter[int] = Counter()
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.workerinput: dict[str, Any] = {}
        # Where it has ended well, as xdist's has one then only.
        self.workeroutput: dict[str, Any]

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down
        self.given += indices

    def shutdown(self) -> None:
        self._shutdown_sent = True

    @property
    def shutting_down(self) -> bool:
        return self.is_down or self._shutdown_sent

    @property
    def can_begin(self) -> bool:
        return len(self.given) >= (1 if self._shutdown_sent else 2)


class Session:
    """xdist's, as far as the scheduler knows it.

    Attributes:
        shouldstop: why the session ends early.
        replaced: workers in whose place others are asked for.
    """

    def __init__(self) -> None:
        self._active_nodes: set[Worker] = set()
        self.shuttingdown = False
        self.shouldstop = ""
        self.replaced: list[Worker] = []

    def _clone_node(self, worker: Worker) -> None:
        self.replaced.append(worker)


class Host:
    """Runs a session's tests in simulated time.

    Attributes:
        runs: when each test began and ended, and on which worker.
        lost: tests whose worker died in them.
        held: until when another session is in a group, by its number; a worker gives it back until then, or waits where
            it knows of no other test.
        waits: when all that was left was given back.
    """

    def __init__(
        self,
        config: pytest.Config,
        sizes: Sequence[int],
        workers: int,
        *,
        divisible: bool,
        held: Mapping[int, float] = MappingProxyType({}),
        last: float = 0.0,
    ) -> None:
        names = {f"group{group}-{test}": f"group{group}" for group, size in enumerate(sizes) for test in range(size)}
        names |= {group: group for group in names.values()}
        tests = sorted(names, key=lambda case: case == names[case])
        self.tests = [f"test_cases.py::test[{case}]" for case in tests]
        efforts = {f"group{group}": size + last for group, size in enumerate(sizes)}
        lasts = dict.fromkeys(efforts, last)
        self.held = {f"group{group}": until for group, until in held.items()}
        self.waits: list[float] = []
        on_wait = lambda: self.waits.append(self._now)  # noqa: E731
        self.scheduling = GroupScheduling(config, None, Groups(names, efforts, divisible, lasts), on_wait)
        config.pluginmanager.unregister(self.scheduling)  # for the next one
        if config.pluginmanager.has_plugin("dsession"):
            config.pluginmanager.unregister(name="dsession")
        self.session = Session()
        config.pluginmanager.register(self.session, "dsession")
        self.scheduling.numnodes = workers
        self.runs: dict[str, tuple[float, float, int]] = {}
        self.lost: list[str] = []
        self._now = 0.0
        self._ends: list[tuple[float, int, Worker]] = []
        self._started = 0
        for _ in range(workers):
            self._start_worker()
        self.scheduling.schedule()

    def _start_worker(self, *, has_place: bool = True) -> Worker:
        worker = Worker(self._started)
        self._started += 1
        tell_place(worker, has_place=has_place)
        self.session._active_nodes.add(worker)
        self.scheduling.add_node(worker)
        self.scheduling.add_node_collection(worker, self.tests)
        return worker

    def run(self, seconds: Iterator[float], deaths: Iterator[bool]) -> None:
        """Run until nothing goes on."""
        running: set[Worker] = set()
        while True:
            for worker in self.scheduling.nodes:
                if worker not in running and worker.can_begin:
                    running.add(worker)
                    if self._gives_back(worker):
                        heapq.heappush(self._ends, (self._now + GIVING_BACK_S, worker.number, worker))
                        continue
                    last = 0.0 if "-" in self.tests[worker.given[0]] else WINNERS_S
                    began = max(self._now, self.held.get(self._group(worker.given[0]), 0.0))
                    heapq.heappush(self._ends, (began + next(seconds) + last, worker.number, worker))
                    self.runs[self.tests[worker.given[0]]] = (began, self._ends[-1][0], worker.number)
            if not self._ends:
                return
            self._now, _, worker = heapq.heappop(self._ends)
            running.remove(worker)
            if worker.given_back[worker.given[0]]:
                worker.given_back[worker.given[0]] -= 1
                self.scheduling.mark_test_complete(worker, worker.given.pop(0))
            else:
                self._end(worker, dies=next(deaths))
            for waiting in [worker for worker in self.scheduling.nodes if worker not in running and worker.given]:
                if not waiting.can_begin and next(deaths):
                    assert self.die(waiting) is None
            if self.scheduling.tests_finished:  # what xdist does after every event
                for worker in self.scheduling.nodes:
                    worker.shutdown()

    def _group(self, test: int) -> str:
        return self.tests[test].partition("[")[2].rstrip("]").partition("-")[0]

    def _gives_back(self, worker: Worker) -> bool:
        """Whether a worker does not run its next test, but gives it back, with all of its group that it knows."""
        test = worker.given[0]
        if worker.given_back[test]:
            return True
        if self.held.get(self._group(test), 0.0) <= self._now or len(worker.given) == 1:
            return False
        same = [one for one in worker.given if self._group(one) == self._group(test) and not worker.given_back[one]]
        worker.given_back.update(same)
        self.scheduling.remove_pending_tests_from_node(worker, same)
        return True

    def _end(self, worker: Worker, *, dies: bool) -> None:
        test = worker.given[0]
        began, _, number = self.runs[self.tests[test]]
        self.runs[self.tests[test]] = (began, self._now, number)
        if dies:
            lost = self.die(worker)
            assert lost == self.tests[test]
            self.lost.append(lost)
        else:
            worker.given.pop(0)
            self.scheduling.mark_test_complete(worker, test)

    def die(self, worker: Worker) -> str | None:
        """What was lost with it; another takes its place."""
        worker.is_down = True
        lost = self.scheduling.remove_node(worker)
        self.session._active_nodes.remove(worker)
        self._start_worker()
        self.scheduling.schedule()
        return lost

    def by_group(self) -> Mapping[str, Mapping[str, tuple[float, float, int]]]:
        """The runs of each group's candidates, and of its winners' case under its own name."""
        groups: dict[str, dict[str, tuple[float, float, int]]] = defaultdict(dict)
        for test, run in self.runs.items():
            case = test.partition("[")[2].rstrip("]")
            groups[case.partition("-")[0]][case] = run
        return groups


@pytest.fixture
def config(pytester: pytest.Pytester) -> pytest.Config:
    return pytester.parseconfig("--tx=1*popen")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    workers=st.integers(1, 5),
    divisible=st.booleans(),
    randoms=st.randoms(use_true_random=False),
    death_rate=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_every_test_runs_once_and_winners_come_last(
    config: pytest.Config, sizes: list[int], workers: int, divisible: bool, randoms: object, death_rate: float
) -> None:
    host = Host(config, sizes, workers, divisible=divisible)
    draw = randoms.random  # type: ignore[attr-defined]
    host.run(iter(lambda: draw() ** 3, -1.0), iter(lambda: draw() < death_rate, None))
    assert sorted(host.runs) == sorted(host.tests)
    assert not host.scheduling.has_pending
    assert all(worker.shutting_down for worker in host.scheduling.nodes)
    for name, runs in host.by_group().items():
        began, _, winners_worker = runs[name]
        assert all(ended <= began for case, (_, ended, _) in runs.items() if case != name)
        if not divisible and not host.lost:
            assert {worker for _, _, worker in runs.values()} == {winners_worker}


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    held=st.dictionaries(st.integers(0, 5), st.floats(0, 30), max_size=6),
    workers=st.integers(1, 4),
    divisible=st.booleans(),
    seed=st.integers(0, 1 << 32),
    death_rate=st.sampled_from([0.0, 0.0, 0.1]),
)
# Both workers had a winners' case whose candidates nobody was given any more.
@example(sizes=[1, 2, 1, 1, 1, 1], held={5: 12.0, 1: 12.0}, workers=2, divisible=True, seed=1, death_rate=0.1)
def test_groups_that_other_sessions_are_in_run_once_these_are_done(
    config: pytest.Config,
    sizes: list[int],
    held: dict[int, float],
    workers: int,
    divisible: bool,
    seed: int,
    death_rate: float,
) -> None:
    host = Host(config, sizes, workers, divisible=divisible, held=held)
    draw = random.Random(seed).random  # Hypothesis's own would be drawn from for each second of waiting
    host.run(iter(lambda: draw() ** 3, -1.0), iter(lambda: draw() < death_rate, None))
    assert sorted(host.runs) == sorted(host.tests)
    assert not host.scheduling.has_pending
    assert all(worker.shutting_down for worker in host.scheduling.nodes)
    for name, runs in host.by_group().items():
        began, *_ = runs[name]
        assert all(ended <= began for case, (_, ended, _) in runs.items() if case != name)
        assert all(began >= host.held.get(name, 0.0) for began, _, _ in runs.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_group_that_another_session_is_in_comes_last(config: pytest.Config, workers: int) -> None:
    host = Host(config, [9, 2, 2, 2], workers, divisible=False, held={0: 60.0})
    host.run(repeat(1.0), repeat(False))
    others = [ended for name, runs in host.by_group().items() if name != "group0" for _, ended, _ in runs.values()]
    assert max(others) <= 3 * (2 + 1 + WINNERS_S) / workers + 1 + WINNERS_S
    began = min(began for began, _, _ in host.by_group()["group0"].values())
    assert 60.0 <= began < 62.0
    # Only then it is told for whom the session waits.
    assert host.waits
    assert max(others) <= min(host.waits)


def test_a_worker_that_dies_while_it_waits_loses_nothing(config: pytest.Config) -> None:
    host = Host(config, [3], 2, divisible=True)
    _, second = host.scheduling.nodes
    measured = second.given.pop(0)
    host.scheduling.mark_test_complete(second, measured)
    assert [host.tests[test] for test in second.given] == ["test_cases.py::test[group0]"]
    assert host.die(second) is None
    host.run(repeat(1.0), repeat(False))
    assert sorted([*host.runs, host.tests[measured]]) == sorted(host.tests)


class Cluster(Host):
    """A host whose first worker has done its group and was sent home when the second one died, with its node."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config, [2, 2], 2, divisible=False)
        self.first, second = self.scheduling.nodes
        while self.first.given:
            self.scheduling.mark_test_complete(self.first, self.first.given.pop(0))
        assert self.first.shutting_down
        second.is_down = True
        self.scheduling.remove_node(second)
        self.session._active_nodes.remove(second)

    def add(self, *, has_place: bool) -> Worker:
        """A worker comes, or one that only stands for it."""
        worker = self._start_worker(has_place=has_place)
        self.scheduling.schedule()
        return worker

    def end(self, worker: Worker) -> None:
        """A worker that was sent home has ended."""
        worker.is_down = True
        worker.workeroutput = {}
        self.scheduling.remove_node(worker)
        self.session._active_nodes.remove(worker)


def test_what_a_dead_node_leaves_is_done_though_all_others_were_sent_home(config: pytest.Config) -> None:
    """Its own replacement has no place: one of those that were sent home, whose places are free then, is replaced."""
    cluster = Cluster(config)
    stand_in = cluster.add(has_place=False)
    assert stand_in.shutting_down
    assert not cluster.session.shouldstop
    cluster.end(cluster.first)
    assert cluster.session.replaced == [cluster.first]
    assert [cluster.tests[test] for test in cluster.add(has_place=True).given] == [
        "test_cases.py::test[group1-1]",
        "test_cases.py::test[group1]",
    ]
    cluster.end(stand_in)
    assert cluster.session.replaced == [cluster.first]
    assert not cluster.session.shouldstop


def test_a_session_stops_where_no_worker_has_a_place_any_more(config: pytest.Config) -> None:
    cluster = Cluster(config)
    cluster.add(has_place=False)
    cluster.end(cluster.first)
    cluster.add(has_place=False)
    assert "no node of the Ray cluster is left for a worker" in cluster.session.shouldstop


def test_a_session_that_ends_early_replaces_nobody(config: pytest.Config) -> None:
    cluster = Cluster(config)
    cluster.session.shuttingdown = True
    cluster.end(cluster.first)
    assert not cluster.session.replaced


@pytest.mark.parametrize("workers", [2, 4])
def test_groups_that_can_be_divided_keep_all_workers_busy(config: pytest.Config, workers: int) -> None:
    sizes = [96, 80, 40, 24, 14, 10]
    total = sum(sizes) + len(sizes) * (1 + WINNERS_S)
    took = {}
    for divisible in (True, False):
        host = Host(config, sizes, workers, divisible=divisible)
        host.run(repeat(1.0), repeat(False))
        took[divisible] = max(ended for _, ended, _ in host.runs.values())
    assert took[True] <= total / workers + 1.0
    assert took[False] >= max(sizes) + 1 + WINNERS_S


def test_winners_do_not_wait_behind_other_winners_while_a_worker_is_free(config: pytest.Config) -> None:
    host = Host(config, [2, 2], 2, divisible=True)
    host.run(chain([1.0, 4.0], repeat(1.0)), repeat(False))
    groups = host.by_group().values()
    assert [len({worker for _, _, worker in group.values()}) for group in groups] == [1, 1]
    assert max(ended for _, ended, _ in host.runs.values()) == 4.0 + 1.0 + 1.0 + WINNERS_S


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    workers=st.integers(1, 6),
    randoms=st.randoms(use_true_random=False),
)
def test_at_most_a_winners_case_and_three_others_are_lost(
    config: pytest.Config, sizes: list[int], workers: int, randoms: object
) -> None:
    host = Host(config, sizes, workers, divisible=True)
    host.run(iter(randoms.random, -1.0), repeat(False))  # type: ignore[attr-defined]
    took = sum(ended - began for began, ended, _ in host.runs.values())
    longest, longest_winners = 1.0, 1.0 + WINNERS_S
    assert max(ended for _, ended, _ in host.runs.values()) <= took / workers + longest_winners + 3 * longest


def test_a_worker_stays_with_its_group_and_helps_when_no_group_is_left(config: pytest.Config) -> None:
    host = Host(config, [30, 3, 3], 2, divisible=True)
    host.run(repeat(1.0), repeat(False))
    groups = {name: [run for case, run in runs.items() if case != name] for name, runs in host.by_group().items()}
    own = max(ended for name in ("group1", "group2") for _, ended, _ in groups[name])
    assert {worker for name in ("group1", "group2") for _, _, worker in groups[name]} == {1}
    assert {worker for began, _, worker in groups["group0"] if began < own} == {0}
    assert {worker for began, _, worker in groups["group0"] if began >= own} == {0, 1}


def test_a_group_whose_winners_would_come_too_late_gets_help_before_others_begin(config: pytest.Config) -> None:
    helps_early = {}
    for known in (0.0, 1 + WINNERS_S):
        host = Host(config, [30, *[2] * 24], 8, divisible=True, last=known)
        host.run(repeat(1.0), repeat(False))
        groups = [sorted(runs.values()) for runs in host.by_group().values()]
        (_, _, first), *others = max(groups, key=len)
        helped = min(began for began, _, worker in others if worker != first)
        helps_early[known] = helped < max(began for (began, *_), *_ in groups)
    assert list(helps_early.values()) == [False, True]


@pytest.mark.parametrize("exhaustive", [False, True])
def test_a_group_is_as_much_work_as_its_cases(exhaustive: bool) -> None:
    """Three candidates of 20 steps, and five of 50, which take 2.5 times as long each."""
    short, long = (Cell("SD1.5", "DDIM", steps) for steps in (20, 50))
    points = [(short, ratio / 10) for ratio in range(1, 4)] + [(long, ratio / 10) for ratio in range(1, 6)]
    run: Any = SimpleNamespace(
        settings=SimpleNamespace(
            models="embedded", exhaustive=exhaustive, fresh=False, num_samples=8, batch_size=4, blocks=3, metrics=()
        ),
        groups=[Group(short, "ToMe"), Group(long, "ToMe")],
        candidates=[Candidate(cell, "ToMe", {"ToMe": {"ratio": ratio, "max_downsample": 1}}) for cell, ratio in points],
    )
    groups = Groups.of_search(run)
    efforts = [groups.efforts[f"SD1.5-DDIM-{steps}-ToMe"] for steps in (20, 50)]
    effort = Effort.of(run.settings)
    assert efforts[1] / efforts[0] == pytest.approx(2.5 * effort.group(5) / effort.group(3))
    assert groups.divisible
    assert any(groups.lasts.values()) is not exhaustive
