"""Groups on workers: the longest first, shared where nothing else is left, also after a worker has died."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from pytest_diffaccel.plugin.case_items import case_id, gate_groups_by_case, groups_by_case, search_cases
from pytest_diffaccel.plugin.workers import may_measure
from pytest_diffaccel.search.effort import Effort, step_weight

if TYPE_CHECKING:
    from pytest_diffaccel.gate.gate_run import GateRun
    from pytest_diffaccel.search.search_run import SearchRun


@dataclass(frozen=True)
class Groups:
    """What the scheduler knows of the session's cases.

    Attributes:
        names: the name of each case's group, by what stands in its node id's brackets.
        efforts: how much work each group is, by name, in any unit.
        divisible: whether several workers may work on a group, of which only the winners' case must come after all
            candidates.
        lasts: how much of that work a divisible group's winners' case is, by name.
    """

    names: Mapping[str, str]
    efforts: Mapping[str, float]
    divisible: bool = False
    lasts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_search(cls, run: SearchRun) -> Groups:
        """A search's cells and accelerators."""
        names, settings = groups_by_case(run), run.settings
        effort, embedded = Effort.of(settings), settings.models == "embedded"
        efforts, lasts = {}, {}
        for name, case in search_cases(run).items():
            weight = case.cell.steps * step_weight(case.cell.pipe, embedded=embedded)
            efforts[names[name]] = weight * effort.group(case.in_group)
            lasts[names[name]] = weight * effort.settling(case.in_group)
        return cls(names, efforts, True, lasts)

    @classmethod
    def of_gate(cls, gate: GateRun) -> Groups:
        """A gate's pipes: loading one takes long."""
        efforts: dict[str, float] = defaultdict(float)
        for case in gate.cases:
            weight = step_weight(case.cell.pipe, embedded=gate.settings.models == "embedded")
            efforts[case.cell.pipe] += case.cost * weight
        return cls(gate_groups_by_case(gate), efforts)

    def is_last(self, case: str) -> bool:
        """Whether a case, by what stands in its node id's brackets, is a divisible group's winners' case."""
        return self.divisible and self.names.get(case) == case


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """xdist's ``loadgroup`` with what it lacks, as of 3.8.

    It reads a test's group from its node id, where xdist cannot write it any more (pytest 9.2 has read-only ids); here
    the controller knows the groups itself. It orders groups by their number of tests; here by their work, and a worker
    gets its next tests no earlier than it must, so that nothing waits behind a long case while others have nothing to
    do. It gives a group to one worker, whatever the others do; here, when no group is left that nobody has begun,
    workers help each other with groups that can be divided.

    And it does not survive a crash (xdist's issues 1323, 1327 and 1378): a worker runs a test only once it knows the
    next one, or that there is none. The worker that replaces a dead one is given what is left of the dead one's groups,
    but not told whether more will come: with one test left, it waits for ever. The test that killed the worker is among
    what is left, so it would kill the replacement too. Here the same trait is of use, too: a worker may be given the
    winners' case of a divided group while others are in the group's last candidates, and begins it when they are done,
    since only then it is told what comes next.

    A worker gives a group back that another session with the same store is in (:mod:`.turns`); it is handed out again
    when no other is left.

    Workers in a Ray cluster come and go with its nodes: one that only stands for a worker without a place is sent home.
    What a dead node leaves may come back when all others have been sent home, too: then one of them is replaced. Where
    none is left that could go on, the session stops.

    ``workqueue`` holds what no worker has, ``assigned_work`` what each worker was given and is not done with; both by
    group. A group that a worker has been in stays there without tests.

    Args:
        config: pytest's.
        log: xdist's.
        groups: of the session's cases.
        on_wait: called when all that is left was given back.
    """

    collection: list[str] | None

    def __init__(
        self, config: pytest.Config, log: Any, groups: Groups, on_wait: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config, log)
        self._groups = groups
        self._on_wait = on_wait
        self._reported: dict[WorkerController, str] = {}
        # What each worker gave back and has not yet said that it is done with; and when each group came back last.
        self._given_back: defaultdict[WorkerController, Counter[str]] = defaultdict(Counter)
        self._put_off: dict[str, int] = {}
        # Tests of each group.
        self._sizes: dict[str, int] = {}
        self._times = count()
        config.pluginmanager.register(self, "diffaccel-scheduling")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the last test that a worker is done with: it may die before it begins another."""
        if report.when == "teardown":
            self._reported[report.node] = report.nodeid

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.names.get(case_id(nodeid), nodeid)

    def schedule(self) -> None:
        """Hand out the groups, the longest first; called again, give workers that came later their share."""
        if self.collection is None:
            if not self._check_nodes_have_same_collection():
                return
            self.collection = list(next(iter(self.registered_collections.values())))
            units: dict[str, dict[str, bool]] = {}
            for nodeid in self.collection:
                units.setdefault(self._split_scope(nodeid), {})[nodeid] = False
            self._sizes = {name: len(tests) for name, tests in units.items()}
            for name in sorted(units, key=lambda name: -self._groups.efforts.get(name, 0.0)):
                self.workqueue[name] = units[name]
        self._hand_out()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """Note that a worker is done with a test, which others may have waited for."""
        nodeid = self.registered_collections[node][item_index]
        if self._given_back[node][nodeid]:
            self._given_back[node][nodeid] -= 1
            return
        name = self._split_scope(nodeid)
        self.assigned_work[node][name].pop(nodeid)
        self._put_off.pop(name, None)
        self._hand_out()

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        """Take back tests of a group that another session is in; the worker will say once that it is done with each."""
        back = [self.registered_collections[node][index] for index in indices]
        self._given_back[node].update(back)
        for name in dict.fromkeys(map(self._split_scope, back)):
            given = self.assigned_work[node].pop(name)
            left = dict.fromkeys((nodeid for nodeid in given if nodeid not in back), False)
            if left:
                self.assigned_work[node][name] = left
            self._queue(name, {*self.workqueue.get(name, ()), *(nodeid for nodeid in given if nodeid in back)})
            self._put_off[name] = next(self._times)
        self._hand_out()
        begun = {name for other in self.nodes for name, _ in self._left(other)}
        if {*self.workqueue, *begun} <= self._put_off.keys():
            self._on_wait()

    def remove_node(self, node: WorkerController) -> str | None:
        """Give up a worker; the groups it has not finished, less the test it died in, go to others."""
        left = self._left(node)
        del self.assigned_work[node]
        # It does not begin the last test that it knows before it is sent home (shutting_down is true of all dead ones).
        has_begun = len(left) > 1 or node._shutdown_sent
        begun, others = left[:has_begun], left[has_begun:]
        for name in reversed(dict.fromkeys(name for name, _ in others)):
            tests = [nodeid for group, nodeid in others if group == name]
            # A winners' case behind candidates that others gave back: whoever has it waits for these.
            self._queue(name, {*tests, *self.workqueue.get(name, ())})
            self.workqueue.move_to_end(name, last=False)
        if self._is_needed_again(node):
            self._session._clone_node(node)
        self._hand_out()
        return next((nodeid for _, nodeid in begun if nodeid != self._reported.get(node)), None)

    def _queue(self, name: str, tests: Collection[str]) -> None:
        """Let a group's tests wait for a worker, in the order in which they were collected."""
        self.workqueue[name] = dict.fromkeys((one for one in self.collection or () if one in tests), False)

    @property
    def tests_finished(self) -> bool:
        """Whether nothing is left to hand out: xdist then sends all workers home, to the last tests that they know."""
        return super().tests_finished and not any(map(self._waits, self.nodes))

    def _hand_out(self) -> None:
        """Give each worker as much as it must know of, in turn; send those home that can be spared."""
        ready = [node for node in self.registered_collections if node in self.assigned_work and not node.shutting_down]
        for node in ready:
            if not may_measure(node):
                node.shutdown()
        ready = [node for node in ready if may_measure(node)]
        # What xdist has beside these is about to come.
        if self.nodes and self.workqueue and not any(map(may_measure, self._session._active_nodes)):
            self._stop()
        open_to_work = list(ready)
        while self.workqueue and open_to_work:
            node = min(open_to_work, key=lambda waiting: len(self._left(waiting)))
            if self._needs_more(node) and not self._can_be_spared(node):
                self._assign_to(node)
            else:
                open_to_work.remove(node)
        for node in ready:
            if self._needs_more(node) and self._can_be_spared(node):
                node.shutdown()

    @property
    def _session(self) -> Any:
        """What starts workers, and has them all: those that are about to come among them."""
        return self.config.pluginmanager.get_plugin("dsession")

    def _is_needed_again(self, node: WorkerController) -> bool:
        """Whether a worker that ended well is to be replaced, as xdist does with those that died.

        It is where something is left to hand out, and all others have been sent home.
        """
        if not self.workqueue or not hasattr(node, "workeroutput") or self._session.shuttingdown:
            return False
        others = self._session._active_nodes - {node}
        return may_measure(node) and not any(may_measure(other) and not other.shutting_down for other in others)

    def _stop(self) -> None:
        """End the session: what is left has nobody to do it."""
        self._session.shouldstop = "no node of the Ray cluster is left for a worker; the same command goes on from here"

    def _needs_more(self, node: WorkerController) -> bool:
        """Whether a worker goes on only when it knows another test, or that there is none, and should go on."""
        return len(self._left(node)) < 2 and not self._waits(node)

    def _can_be_spared(self, node: WorkerController) -> bool:
        """Whether a worker may be sent home: nothing is left to hand out, or only what others can do as soon.

        They can where the worker still has a winners' case before it, and what is left are winners' cases that wait for
        others' candidates: each of those workers can take one when it gets that far.
        """
        if not self.workqueue:
            return True
        left = self._left(node)
        if not left or not self._is_last(left[0][1]):
            return False
        must_wait = (
            self._is_last(next(iter(tests))) and self._is_elsewhere(name, node)
            for name, tests in self.workqueue.items()
        )
        others = [other for other in self.nodes if other is not node and not other.shutting_down]
        return len(self.workqueue) <= sum(map(self._is_in_candidates, others)) and all(must_wait)

    def _is_in_candidates(self, node: WorkerController) -> bool:
        left = self._left(node)
        return bool(left) and not any(self._is_last(nodeid) for _, nodeid in left)

    def _waits(self, node: WorkerController) -> bool:
        """Whether the one test that a worker knows is a winners' case whose candidates are not all done.

        The worker does not begin it before it knows of another test, or that there is none: so it can be told to wait.
        """
        left = self._left(node)
        if len(left) != 1 or not self._is_last(left[0][1]):
            return False
        name = left[0][0]
        return name in self.workqueue or self._is_elsewhere(name, node)

    def _left(self, node: WorkerController) -> list[tuple[str, str]]:
        """Group and node id of the tests that a worker was given and is not done with, in its order."""
        groups = self.assigned_work[node].items()
        return [(name, nodeid) for name, tests in groups for nodeid in tests]

    def _is_last(self, nodeid: str) -> bool:
        return self._groups.is_last(case_id(nodeid))

    def _is_elsewhere(self, name: str, node: WorkerController) -> bool:
        """Whether another worker was given tests of a group that it is not done with."""
        return any(group == name for other in self.nodes if other is not node for group, _ in self._left(other))

    def _assign_to(self, node: WorkerController) -> None:
        """Give a worker its next tests: a whole group, or one test of a group that can be divided."""
        name = min(self.workqueue, key=self._turn(node))
        queued = self.workqueue[name]
        tests = list(queued)[:1] if self._groups.divisible else list(queued)
        for test in tests:
            del queued[test]
        if not queued:
            del self.workqueue[name]
        # The group given last stands last: a worker dies in the first that is not done.
        group = self.assigned_work[node].pop(name, {})
        self.assigned_work[node][name] = group | dict.fromkeys(tests, False)
        node.send_runtest_some([self.registered_collections[node].index(test) for test in tests])

    def _turn(self, node: WorkerController) -> Callable[[str], tuple[int, float]]:
        """How soon a worker should take a group in the queue, as a sort key.

        First the group it is in; then one whose winners would be looked for too late if nobody helped with it; then
        those that nobody is in; then those with least left, since winners can be looked for only when a group is whole.
        Winners' cases, which take long, come before all others as long as there are more groups than workers, then
        after them: the last ones, one per worker, end together. Last of all come those that would have to wait for
        others, and those that other sessions were in, the longest ago first.
        """
        own = list(self.assigned_work[node])[-1:]
        begun = {name for groups in self.assigned_work.values() for name in groups}
        winners_turn = 0 if len(self.workqueue) > len(self.nodes) else 5
        late = self._late()

        def turn(name: str) -> tuple[int, float]:
            tests = self.workqueue[name]
            if name in self._put_off:
                return 7, self._put_off[name]
            if self._is_last(next(iter(tests))):
                return 6 if self._is_elsewhere(name, node) else winners_turn, 0.0
            if name in own:
                return 1, 0.0
            if name in late:
                return 2, -late[name]
            if name not in begun:
                return 3, 0.0
            return 4, self._groups.efforts.get(name, 0.0) * len(tests)

        return turn

    def _late(self) -> dict[str, float]:
        """Groups that workers are in, of which the winners' case, if these go on alone, would end after all else could.

        By name, with the work that is left of candidates for each of their workers. All else could end when what is
        left is shared out evenly. Without much work in winners' cases no group is late: all can help at the end.
        """
        if not any(self._groups.lasts.values()):
            return {}
        tests, workers = Counter({name: len(tests) for name, tests in self.workqueue.items()}), Counter[str]()
        for other in self.nodes:
            own = [name for name, _ in self._left(other)]
            tests.update(own)
            workers.update(set(own))
        lasts = {name: self._groups.lasts.get(name, 0.0) for name in tests}
        left = {
            name: (self._groups.efforts.get(name, 0.0) - lasts[name]) * count / self._sizes[name]
            for name, count in tests.items()
        }
        in_time = (sum(left.values()) + sum(lasts.values())) / len(self.nodes)
        each = {name: left[name] / count for name, count in workers.items()}
        return {name: work for name, work in each.items() if work > in_time - lasts[name]}
