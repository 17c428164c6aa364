"""Groups in turn: one that another session with the same store is in is put off, behind all that can be done now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_diffaccel.plugin.case_items import group_of, is_winners_case, measures, others_of
from pytest_diffaccel.plugin.fixtures import search_run
from pytest_diffaccel.plugin.workers import can_give_back, worker_number

if TYPE_CHECKING:
    from pytest_diffaccel.matrix import Group
    from pytest_diffaccel.search.search_run import SearchRun


class _Order(Protocol):
    """The order of a process's cases, which can be changed."""

    def begin(self, item: pytest.Item) -> bool:
        """Take in that a case is about to begin; whether it should: not one that was put off with others."""

    def others(self, item: pytest.Item, nextitem: pytest.Item | None) -> int:
        """How many groups the process can go on with meanwhile, as far as it is known; 0 where it must wait."""

    def put_off(self, item: pytest.Item) -> None:
        """Put a case and what is left of its group behind all others."""


class _OneProcess:
    """The cases of a session without workers, in pytest's own list, which is changed in place behind the present one.

    Args:
        session: pytest's.
    """

    def __init__(self, session: pytest.Session) -> None:
        self._items = session.items
        self._place = -1

    def begin(self, item: pytest.Item) -> bool:
        """Always: what is put off is not in its old place any more."""
        self._place += 1
        return True

    def others(self, item: pytest.Item, nextitem: pytest.Item | None) -> int:
        """Groups behind this one; none where somebody else's loop runs the cases in another order."""
        if self._place >= len(self._items) or self._items[self._place] is not item:
            return 0
        return len({group_of(other) for other in self._items[self._place + 1 :]} - {group_of(item)})

    def put_off(self, item: pytest.Item) -> None:
        """Move what is left of a case's group to the list's end; the loop has taken the case from its own place."""
        later = self._items[self._place + 1 :]
        group = group_of(item)
        same = [other for other in later if group_of(other) == group]
        self._items[self._place + 1 :] = [*(other for other in later if group_of(other) != group), item, *same]


class _Worker:
    """The cases that xdist's worker was given: those of a group go back to the controller (:class:`.GroupScheduling`).

    As of xdist 3.8 a worker tells the controller of tests that it does not run when these were asked of it, and the
    controller lets its scheduler hand them out again; whoever asked is not looked at.

    Args:
        session: pytest's.
        interactor: xdist's loop in the worker.
    """

    def __init__(self, session: pytest.Session, interactor: Any) -> None:
        self._items = session.items
        self._interactor = interactor
        self._given_back: Counter[int] = Counter()

    def begin(self, item: pytest.Item) -> bool:
        """Not where it was given back; it is in the worker's queue still."""
        index = self._interactor.item_index
        was_given_back = self._given_back[index] > 0
        self._given_back[index] -= was_given_back
        return not was_given_back

    def others(self, item: pytest.Item, nextitem: pytest.Item | None) -> int:
        """At least one as long as the controller has not said that nothing comes after this case."""
        return int(nextitem is not None)

    def put_off(self, item: pytest.Item) -> None:
        """Give a case back, and all of its group that the worker was given."""
        group, worker = group_of(item), self._interactor
        with worker.torun.lock() as queued:
            known = [index for index in (worker.nextitem_index, *queued) if isinstance(index, int)]
        same = [index for index in known if not self._given_back[index] and group_of(self._items[index]) == group]
        self._given_back.update(same)
        worker.sendevent("unscheduled", indices=[worker.item_index, *same])


class _AsGiven:
    """The cases of a worker whose scheduler takes none back."""

    def begin(self, item: pytest.Item) -> bool:
        """Always."""
        return True

    def others(self, item: pytest.Item, nextitem: pytest.Item | None) -> int:
        """None: the process waits."""
        return 0

    def put_off(self, item: pytest.Item) -> None:
        """Never asked for."""
        raise NotImplementedError


class Turns:
    """Hooks of a process that runs cases: before each, its group is taken, or put off.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._order: _Order | None = None
        self._taken: tuple[Group, Collection[str] | None] | None = None
        # Groups that were put off since a case ran, or all were waited for.
        self._in_vain = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run no case of a group that another session is in."""
        order = self._order = self._order or self._order_of(item.session)
        if not order.begin(item):
            return True
        group = group_of(item)
        if group is None or not measures(item):
            return None
        from pytest_diffaccel.records.tables import StoreError

        others = others_of(item, group) if is_winners_case(item) else None
        self._leave(group)
        while not self._take(group, others):
            count = order.others(item, nextitem)
            if count and self._in_vain <= count:
                self._in_vain += 1
                order.put_off(item)
                return True
            with suppress(StoreError):  # the case will tell
                self._run.wait_for(group, others)
            self._in_vain = 0
        self._in_vain = 0
        return None

    def _order_of(self, session: pytest.Session) -> _Order:
        plugins = self._config.pluginmanager.get_plugins()
        # What xdist runs in a worker has no module that it could be imported from.
        loop = next((plugin for plugin in plugins if type(plugin).__name__ == "WorkerInteractor"), None)
        if loop is None:
            return _OneProcess(session)
        # Other schedulers than ours take nothing back.
        return _Worker(session, loop) if can_give_back() else _AsGiven()

    @property
    def _run(self) -> SearchRun:
        return search_run(self._config)

    def _take(self, group: Group, others: Collection[str] | None) -> bool:
        """Take what a case needs; true, too, where that cannot be: then the case meets the same, and fails of it."""
        if worker_number(self._config) is None:
            reporting = self._config.pluginmanager.get_plugin("diffaccel-reporting")
            self._run.on_wait = getattr(reporting, "waits_for", None)
            self._run.on_phase = getattr(reporting, "works_on", None)
        with self._capturing():
            try:
                is_taken = self._run.take(group, others)
            except Exception:
                return True
        self._taken = (group, others) if is_taken else None
        return is_taken

    def _leave(self, group: Group) -> None:
        """Give up the group of the case before, where this one is of another: its winners may be no case of ours."""
        may_be_divided = self._run.session.workers > 1
        if self._taken is not None and self._taken[0] != group and not may_be_divided:
            self._run.give_up(*self._taken)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """What loading a pipeline prints is the first case's, as if that had loaded it."""
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            yield
            return
        capture.resume_global_capture()
        try:
            yield
        finally:
            capture.suspend_global_capture(in_=False)
