"""Which sessions search into one store at once: a row each, kept fresh for as long as the session lasts."""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import suppress

from psutil import pid_exists

from pytest_diffaccel.records.contents import Holder, RunningSession
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError

#: Seconds between two signs of life, unless told otherwise; and after how many missing ones a session has died.
BEAT_S, _MISSED = 60.0, 5
# Its row is swept later: a session that lives and was held up must not lose it.
_SWEPT_S = 3600.0
# At its end a session waits no longer for a store that others hold, or that is away; its row then goes stale by itself.
_PATIENCE_S = 5.0
# Numbers of processes hold within this; only Linux has it.
_NAMESPACE = "/proc/self/ns/pid"


class Presence:
    """A session's row in its store, and with it all groups that the session is in.

    Args:
        store: where the session searches into; it is closed when the session ends.
        session: what no other session is called.
        began_at: when it began, seconds since the epoch.
        beat_s: seconds between two signs of life; after five missing ones the session has died.
    """

    def __init__(self, store: Store, session: str, began_at: float, beat_s: float = BEAT_S) -> None:
        self._store = store
        self._beat_s = beat_s
        here = platform.node(), os.getcwd(), os.getpid()
        self._own = RunningSession(session, *here, began_at, _namespace())
        self._has_ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="diffaccel-presence", daemon=True)

    def begin(self) -> list[RunningSession]:
        """Be seen by others from now on.

        A session of this folder whose process is gone is forgotten at once, with its leases: the same command goes on.

        Returns:
            The other sessions that are there already.

        Raises:
            StoreError: when the store cannot be read or written; the session is seen as soon as it can be.
        """
        self._heart.start()
        self._show()
        self._store.forget_dead(_SWEPT_S)
        others = [session for session in self._store.sessions() if session.name != self._own.name]
        for killed in filter(self._was_killed, others):
            self._store.forget_session(killed.name)
        return [session for session in others if not self._was_killed(session)]

    def waits_for(self) -> Holder | None:
        """The session that this one's workers waited for last; None where it has ended, or they never did."""
        return self._store.waits_for(self._own.name)

    def is_here(self, session: RunningSession) -> bool:
        """Whether another session was started in this folder of this host."""
        return (session.host, session.folder) == (self._own.host, self._own.folder)

    def _was_killed(self, session: RunningSession) -> bool:
        is_known = self.is_here(session) and session.namespace == self._own.namespace
        return is_known and not pid_exists(session.process)

    def end(self) -> None:
        """Be gone, and close the store."""
        self._has_ended.set()
        self._store.patience_s = min(self._store.patience_s, _PATIENCE_S)
        if self._heart.ident is not None:
            self._heart.join(_PATIENCE_S)
        if not self._heart.is_alive():
            with suppress(StoreError):
                self._store.forget_session(self._own.name)
        self._store.close()

    def _show(self) -> None:
        self._store.show_session(self._own, _MISSED * self._beat_s)

    def _beat(self) -> None:
        while not self._has_ended.wait(self._beat_s):
            with suppress(StoreError):  # whoever measures says what is wrong with it
                self._show()


def _namespace() -> str:
    try:
        return os.readlink(_NAMESPACE)
    except OSError:
        return ""


def session_words(session: RunningSession) -> str:
    """Which session it is: host, process, beginning and folder."""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(session.began_at))
    return f"{session.host}, process {session.process}, since {since}, in {session.folder}"
