"""Groups on workers: the longest first, also after a worker has died."""

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
    """

    names: Mapping[str, str]
    efforts: Mapping[str, float]

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
        return cls(groups_by_case(run), efforts)

    @classmethod
    def of_gate(cls, gate: GateRun) -> Groups:
        """A gate's pipes: loading one takes long."""
        efforts: dict[str, float] = defaultdict(float)
        for case in gate.cases:
            weight = step_weight(case.cell.pipe, embedded=gate.settings.models == "embedded")
            efforts[case.cell.pipe] += case.cost * weight
        return cls(gate_groups_by_case(gate), efforts)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """xdist's ``loadgroup`` with what it lacks, as of 3.8.

    It reads a test's group from its node id, where xdist cannot write it any more (pytest 9.2 has read-only ids); here
    the controller knows the groups itself. It orders groups by their number of tests; here by their work, and a worker
    gets its next group no earlier than it must, so that nothing waits behind a long case while others have nothing to
    do. And it does not survive a crash (xdist's issues 1323, 1327 and 1378): a worker runs a test only once it knows
    the next one, or that there is none. The worker that replaces a dead one is given what is left of the dead one's
    groups, but not told whether more will come: with one test left, it waits for ever. The test that killed the worker
    is among what is left, so it would kill the replacement too.
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
            for node in self.nodes[: len(self.workqueue)]:
                self._assign_work_unit(node)
        for node in self.nodes:
            self._reschedule(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Give up a worker; the groups it has not finished, less the test it died in, go to others."""
        groups = self.assigned_work.pop(node)
        left = [(group, test) for group in groups.values() for test, is_done in group.items() if not is_done]
        if not left:
            return None
        group, test = left[0]
        group[test] = True
        for name in reversed([name for name, group in groups.items() if not all(group.values())]):
            self.workqueue[name] = groups[name]
            self.workqueue.move_to_end(name, last=False)
        for other in self.assigned_work:
            self._reschedule(other)
        return None if self._reported.get(node) == test else str(test)

    def _reschedule(self, node: WorkerController) -> None:
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue and not node.shutting_down:
            node.shutdown()
