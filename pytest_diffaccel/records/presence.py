"""Which sessions search into one store at once: a row each, kept fresh for as long as the session lasts."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pytest_diffaccel.measure.measurement import Sampling
from pytest_diffaccel.records.store import SESSION_PURPOSE, Store
from pytest_diffaccel.records.tables import StoreError

# Seconds between two signs of life, and after how many without one a session has died.
_BEAT_S = 60.0
_STALE_S = 300.0
# Its row is swept later: hosts' clocks may differ, and a session that lives must not lose it.
_SWEPT_S = 3600.0
# At its end a session waits no longer for a store that others hold; its row then goes stale by itself.
_PATIENCE_S = 5.0
# Where the rows are, among those that a store keeps of sessions: they are of no environment and of no pictures.
_ENVIRONMENT = ""
_SAMPLING = Sampling(num_samples=0, batch_size=0, seed=0, prompts_digest="", purpose=SESSION_PURPOSE)


class Presence:
    """A session's row in its store.

    Args:
        store: where the session searches into; it is closed when the session ends.
        session: what no other session is called.
        began_at: when it began, seconds since the epoch.
    """

    def __init__(self, store: Store, session: str, began_at: float) -> None:
        self._store = store
        self._session = session
        self._place = {"host": platform.node(), "folder": os.getcwd()}
        self._about = json.dumps({**self._place, "process": os.getpid(), "began_at": began_at})
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
        self._show()
        known = self._store.decisions(_ENVIRONMENT, _SAMPLING)
        living = self._store.decisions(_ENVIRONMENT, _SAMPLING, since=time.time() - _STALE_S)
        recent = self._store.decisions(_ENVIRONMENT, _SAMPLING, since=time.time() - _SWEPT_S)
        for session in known.keys() - recent.keys() - {self._session}:
            self._store.forget_decision(session, _ENVIRONMENT, _SAMPLING)
        self._heart.start()
        others = [json.loads(about) for session, about in living.items() if session != self._session]
        return [_words(other) for other in others if not (is_told_of_folder and self._place.items() <= other.items())]

    def end(self) -> None:
        """Be gone, and close the store."""
        self._has_ended.set()
        if self._heart.ident is not None:
            self._heart.join(_PATIENCE_S)
        if not self._heart.is_alive():
            with suppress(StoreError):
                self._store.forget_decision(self._session, _ENVIRONMENT, _SAMPLING)
        self._store.close()

    def _show(self) -> None:
        self._store.save_decision(self._session, _ENVIRONMENT, _SAMPLING, self._about)

    def _beat(self) -> None:
        while not self._has_ended.wait(_BEAT_S):
            with suppress(StoreError):  # whoever measures says what is wrong with it
                self._show()


def _words(about: Mapping[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(about.get("began_at", 0)))
    return f"{about.get('host')}, process {about.get('process')}, since {since}, in {about.get('folder')}"
