"""Which sessions search into one store at once: a row each, kept fresh for as long as the session lasts."""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import suppress

from psutil import pid_exists

from pytest_diffaccel.records.bookkeeping import LIVES_S
from pytest_diffaccel.records.contents import RunningSession
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError

# Seconds between two signs of life, and after how many without one a session has died.
_BEAT_S = 60.0
_STALE_S = LIVES_S
# Its row is swept later: hosts' clocks may differ, and a session that lives must not lose it.
_SWEPT_S = 3600.0
# At its end a session waits no longer for a store that others hold; its row then goes stale by itself.
_PATIENCE_S = 5.0


class Presence:
    """A session's row in its store.

    Args:
        store: where the session searches into; it is closed when the session ends.
        session: what no other session is called.
        began_at: when it began, seconds since the epoch.
    """

    def __init__(self, store: Store, session: str, began_at: float) -> None:
        self._store = store
        self._own = RunningSession(session, platform.node(), os.getcwd(), os.getpid(), began_at)
        self._has_ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="diffaccel-presence", daemon=True)

    def begin(self, *, is_told_of_folder: bool) -> list[str]:
        """Be seen by others from now on.

        Args:
            is_told_of_folder: whether another session of this folder is told already, by its lock.

        Returns:
            The sessions that are there already, in words.

        Raises:
            StoreError: when the store cannot be read or written.
        """
        self._store.show_session(self._own)
        known = {session.name for session in self._store.sessions()}
        living = [session for session in self._store.sessions(time.time() - _STALE_S) if session.name != self._own.name]
        recent = {session.name for session in self._store.sessions(time.time() - _SWEPT_S)}
        for name in known - recent - {self._own.name}:
            self._store.forget_session(name)
        self._heart.start()
        return [_words(other) for other in living if not self._is_told(other, is_told_of_folder)]

    def _is_told(self, other: RunningSession, is_told_of_folder: bool) -> bool:
        """Whether nobody need be told of another session: of this folder, and told already, or killed a moment ago."""
        is_here = (other.host, other.folder) == (self._own.host, self._own.folder)
        return is_here and (is_told_of_folder or not pid_exists(other.process))

    def end(self) -> None:
        """Be gone, and close the store."""
        self._has_ended.set()
        if self._heart.ident is not None:
            self._heart.join(_PATIENCE_S)
        if not self._heart.is_alive():
            with suppress(StoreError):
                self._store.forget_session(self._own.name)
        self._store.close()

    def _beat(self) -> None:
        while not self._has_ended.wait(_BEAT_S):
            with suppress(StoreError):  # whoever measures says what is wrong with it
                self._store.show_session(self._own)


def _words(session: RunningSession) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(session.began_at))
    return f"{session.host}, process {session.process}, since {since}, in {session.folder}"
