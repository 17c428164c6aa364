"""Groups on workers: the longest first, shared where nothing else is left, also after a worker has died."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from pytest_diffaccel.fixtures import case_id, gate_groups_by_case, group_name, groups_by_case
from pytest_diffaccel.search.effort import group_effort, step_weight

if TYPE_CHECKING:
    from pytest_diffaccel.gate.run import GateRun
    from pytest_diffaccel.search.run import SearchRun


@dataclass(frozen=True)
class Groups:
    """What the scheduler knows of the session's cases.

    Attributes:
        names: the name of each case's group, by what stands in its node id's brackets.
        efforts: how much work each group is, by name, in any unit.
        divisible: whether several workers may work on a group: its candidates tell nothing about each other, and only
            its winners' case must come after all of them.
    """

    names: Mapping[str, str]
    efforts: Mapping[str, float]
    divisible: bool = False

    @classmethod
    def of_search(cls, run: SearchRun) -> Groups:
        """A search's cells and accelerators."""
        settings = run.settings
        points = Counter((one.cell, one.accelerator) for one in run.candidates)
        embedded = settings.models == "embedded"
        efforts = {
            group_name(group): group_effort(group[0], points[group], exhaustive=settings.exhaustive, embedded=embedded)
            for group in run.groups
        }
        return cls(groups_by_case(run), efforts, divisible=settings.exhaustive and not settings.fresh)

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
    workers help each other with groups that can be divided. And it does not survive a crash (xdist's issues 1323, 1327
    and 1378): a worker runs a test only once it knows the next one, or that there is none. The worker that replaces a
    dead one is given what is left of the dead one's groups, but not told whether more will come: with one test left, it
    waits for ever. The test that killed the worker is among what is left, so it would kill the replacement too.

    ``workqueue`` holds what no worker has, ``assigned_work`` what each worker was given, done or not; both by group.
    """

    collection: list[str] | None

    def __init__(self, config: pytest.Config, log: Any, groups: Groups) -> None:
        super().__init__(config, log)
        self._groups = groups
        self._reported: dict[WorkerController, str] = {}
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
            for name in sorted(units, key=lambda name: -self._groups.efforts.get(name, 0.0)):
                self.workqueue[name] = units[name]
        self._hand_out()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """Note that a worker is done with a test, which others may have waited for."""
        nodeid = self.registered_collections[node][item_index]
        self.assigned_work[node][self._split_scope(nodeid)][nodeid] = True
        self._hand_out()

    def remove_node(self, node: WorkerController) -> str | None:
        """Give up a worker; the groups it has not finished, less the test it died in, go to others."""
        groups = self.assigned_work.pop(node)
        left = {name: [test for test, is_done in group.items() if not is_done] for name, group in groups.items()}
        unfinished = [(name, test) for name, tests in left.items() for test in tests]
        if not unfinished:
            return None
        died_in_group, died_in = unfinished[0]
        left[died_in_group].remove(died_in)
        for name in reversed([name for name, tests in left.items() if tests]):
            self.workqueue[name] = dict.fromkeys([*left[name], *self.workqueue.get(name, ())], False)
            self.workqueue.move_to_end(name, last=False)
        self._hand_out()
        return None if self._reported.get(node) == died_in else died_in

    def _hand_out(self) -> None:
        """Give each worker as much as it must know of, in turn; send those home that will not be needed."""
        ready = [node for node in self.registered_collections if node in self.assigned_work and not node.shutting_down]
        open_to_work = list(ready)
        while open_to_work and self._pending(node := min(open_to_work, key=self._pending)) < 2:
            if not self._assign_to(node):
                open_to_work.remove(node)
        # One that waits with a test begins it when it is sent home, so it goes before one that has nothing to do.
        for node in sorted(ready, key=self._pending, reverse=True):
            if self._is_superfluous(node):
                node.shutdown()

    def _pending(self, node: WorkerController) -> int:
        return int(self._pending_of(self.assigned_work[node]))

    def _assign_to(self, node: WorkerController) -> bool:
        """Give a worker its next tests; False when there are none for it now."""
        for name in self._by_turn(node):
            tests = self._next_of(name, node)
            if tests:
                queued = self.workqueue[name]
                for test in tests:
                    del queued[test]
                if not queued:
                    del self.workqueue[name]
                # The group given last stands last: a worker dies in the first that is not done.
                group = self.assigned_work[node].pop(name, {})
                self.assigned_work[node][name] = group | dict.fromkeys(tests, False)
                node.send_runtest_some([self.registered_collections[node].index(test) for test in tests])
                return True
        return False

    def _by_turn(self, node: WorkerController) -> list[str]:
        """The groups in the queue as a worker should take them: the one it is in; those that nobody is in; those with
        least left, since winners can be looked for only when a group is whole. Winners' cases, which take long, come
        first as long as there are more groups than workers: the last of them, one a worker, end together.
        """
        own = list(self.assigned_work[node])[-1:]
        begun = {name for groups in self.assigned_work.values() for name in groups}
        winners_first = len(self.workqueue) > len(self.nodes)

        def turn(name: str) -> tuple[int, float]:
            tests = self.workqueue[name]
            if self._groups.is_last(case_id(next(iter(tests)))):
                return (0 if winners_first else 4), 0.0
            if name in own or name not in begun:
                return (1 if name in own else 2), 0.0
            return 3, self._groups.efforts.get(name, 0.0) * len(tests)

        return sorted(self.workqueue, key=turn)

    def _next_of(self, name: str, node: WorkerController) -> list[str]:
        """What of a group in the queue a worker can be given next."""
        tests = list(self.workqueue[name])
        if not self._groups.divisible:
            return tests
        if not self._groups.is_last(case_id(tests[0])):
            return tests[:1]
        elsewhere = [groups.get(name, {}) for other, groups in self.assigned_work.items() if other is not node]
        return tests if all(all(group.values()) for group in elsewhere) else []

    def _is_superfluous(self, node: WorkerController) -> bool:
        """Whether enough others wait for what is in the queue, which nobody can be given yet.

        It waits for tests that others are in. A worker does not begin its last test before it knows the next, so if all
        are at their last, one must go for the others to go on.
        """
        if self._pending(node) >= 2:
            return False
        waiting = [other for other in self.nodes if not other.shutting_down and self._pending(other) < 2]
        at_work = any(self._pending(other) >= (1 if other.shutting_down else 2) for other in self.nodes)
        return len(self.workqueue) < len(waiting) or not at_work
