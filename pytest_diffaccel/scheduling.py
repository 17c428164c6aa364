"""Groups on workers, also after a worker has died."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from pytest_diffaccel.fixtures import case_id


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """xdist's ``loadgroup`` with what it lacks, as of 3.8.

    It reads a test's group from its node id, where xdist cannot write it any more (pytest 9.2 has read-only ids); here
    the controller knows the groups itself. And it does not survive a crash (xdist's issues 1323, 1327 and 1378): a
    worker runs a test only once it knows the next one, or that there is none. The worker that replaces a dead one is
    given what is left of the dead one's groups, but not told whether more will come: with one test left, it waits for
    ever. The test that killed the worker is among what is left, so it would kill the replacement too.
    """

    def __init__(self, config: Any, log: Any, groups: Mapping[str, str]) -> None:
        """Schedule by ``groups``: the name of each case's group, by what stands in its node id's brackets."""
        super().__init__(config, log)
        self._groups = groups

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(case_id(nodeid), nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Give up a worker; the groups it has not finished, less the test it died in, go to others."""
        groups = self.assigned_work.pop(node)
        left = [(group, test) for group in groups.values() for test, is_done in group.items() if not is_done]
        if not left:
            return None
        group, test = left[0]
        group[test] = True
        self.workqueue.update({name: group for name, group in groups.items() if not all(group.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return str(test)

    def _reschedule(self, node: WorkerController) -> None:
        super()._reschedule(node)
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()
