"""``--search-budget``: a search's wall time, shared out among its groups."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Tells whether to begin no more work.
TimeIsUp = Callable[[], bool]


def never() -> bool:
    """The limit of a search without one."""
    return False


# The rest of a group's time verifies its winners.
_EVALUATING = 0.65


class SearchBudget:
    """Even shares of a search's time; what a group leaves over is for those after it.

    Args:
        seconds: for the whole search; None for no limit.
        groups: groups that the search has, at least 1.
        workers: processes that search at once, at least 1.
    """

    def __init__(self, seconds: float | None, groups: int, workers: int = 1) -> None:
        self._seconds = seconds
        self._share_s = (seconds or 0.0) * workers / groups
        self._began = 0
        self._started_at: float | None = None

    @property
    def limits(self) -> bool:
        """Whether there is one at all."""
        return self._seconds is not None

    def is_spent(self) -> bool:
        """Whether the whole search's time is over."""
        if self._seconds is None or self._started_at is None:
            return False
        return time.monotonic() - self._started_at >= self._seconds

    def next_group(self) -> TimeIsUp:
        """The limit of the group that begins now, for evaluating candidates; verifying is what remains."""
        if self._seconds is None:
            return never
        now = time.monotonic()
        if self._started_at is None:
            self._started_at = now
        self._began += 1
        end = min(self._started_at + self._seconds, self._started_at + self._began * self._share_s)
        stop = now + _EVALUATING * (end - now)
        return lambda: time.monotonic() >= stop
