"""A limit on the time of one case that does not take its process with it, and does not count waiting for others."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The limits in force in this process, in seconds: any other timer is somebody else's.
_limits: list[float] = []


class CaseTimeout(Exception):
    """The case took longer than it may."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise :class:`CaseTimeout` in the block once ``seconds`` have passed; no limit for None.

    Uses the interval timer of POSIX, which needs the main thread; elsewhere there is no limit. What passes in a
    :func:`waiting` block does not count.
    """
    if seconds is None or not _has_timer():
        yield
        return

    text, is_over = f"took longer than --case-timeout {seconds:g} s", list[bool]()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        is_over.append(True)
        raise CaseTimeout(text)

    previous = signal.signal(signal.SIGALRM, stop)
    _limits.append(seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        # A compiler that is cut off calls it an error of its own, or adds to it where its user's code is.
        if is_over and (type(error), str(error)) != (CaseTimeout, text):
            raise CaseTimeout(text) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limits.pop()
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def waiting() -> Iterator[None]:
    """Let no time limit run in the block: it waits for another process, which is none of the case's doing."""
    if not _limits or not _has_timer():  # somebody else's timer runs on
        yield
        return
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s)


def _has_timer() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
