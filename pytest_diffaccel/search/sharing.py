"""Groups that this session is in: other sessions with its store go on with others meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.measure.time_limit import waiting
from pytest_diffaccel.records.contents import Holder
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError

#: Seconds between two looks whether another session is done.
POLL_S = 1.0


class SharedGroups:
    """The leases of this process's session (:class:`.Leases`).

    Args:
        store: the search's.
        session: what all processes of the session call it, and no other session.
        sure_s: a lease that was seen so many seconds ago is not looked at again.
        conditions_of: gives a cell's environment and sampling: sessions share a group where these are the same.

    Attributes:
        on_wait: told for whom this process waits, at each look.
    """

    def __init__(
        self, store: Store, session: str, sure_s: float, conditions_of: Callable[[Cell], tuple[str, Sampling]]
    ) -> None:
        self._store = store
        self._session = session
        self._sure_s = sure_s
        self._conditions_of = conditions_of
        self._seen_at: dict[tuple[Cell, str], float] = {}
        self.on_wait: Callable[[Holder], None] = self._keep_waiting

    def take(self, cell: Cell, accelerators: Collection[str]) -> bool:
        """Take some of a cell's groups, all or none; whether the session has them now.

        Where it cannot have all, those that this process had are free: whoever has the others may wait for them.
        """
        if all(self._is_sure(cell, name) for name in accelerators):
            return True
        taken = self._store.take(cell, accelerators, *self._conditions_of(cell), self._session)
        if taken:
            self._seen_at |= dict.fromkeys(((cell, name) for name in accelerators), time.monotonic())
        else:
            self.release(cell, accelerators)
        return taken

    def _is_sure(self, cell: Cell, accelerator: str) -> bool:
        seen_at = self._seen_at.get((cell, accelerator))
        return seen_at is not None and time.monotonic() - seen_at < self._sure_s

    def release(self, cell: Cell, accelerators: Collection[str]) -> None:
        """Give up those of a cell's groups that this process took."""
        own = [name for name in accelerators if self._seen_at.pop((cell, name), None) is not None]
        if own:
            with suppress(StoreError):  # then others wait until this session has ended
                self._store.release(cell, own, *self._conditions_of(cell), self._session)

    @contextmanager
    def together(self, cell: Cell, accelerators: Collection[str]) -> Iterator[None]:
        """Have all of some of a cell's groups, alone; wait for sessions that are in one of them.

        Those of them that this process had are its own still, behind the block too.
        """
        before = [name for name in accelerators if (cell, name) in self._seen_at]
        while not self.take(cell, accelerators):
            self.wait(cell, accelerators)
        try:
            yield
        finally:
            self.release(cell, [name for name in accelerators if name not in before])

    def wait(self, cell: Cell, accelerators: Collection[str]) -> None:
        """Wait a moment for sessions that are in some of a cell's groups; no case's time runs."""
        holder = self._store.holder(cell, accelerators, *self._conditions_of(cell), self._session)
        if holder is not None:
            self.on_wait(holder)
        with waiting():
            time.sleep(POLL_S)

    def _keep_waiting(self, holder: Holder) -> None:
        self._store.wait_for(self._session, holder.session.name)


def whole_pipe(cell: Cell) -> Cell:
    """Stands for all cells of a cell's pipe, of which the scale of losses is measured once."""
    return replace(cell, scheduler="", steps=0)
