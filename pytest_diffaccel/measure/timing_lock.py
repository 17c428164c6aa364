"""One machine, one timing at a time: measuring excludes every other worker, generating for quality only shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import ReadWriteLock


@dataclass(frozen=True)
class TimingLock:
    """Lock between processes; the system frees it when a holder dies.

    Attributes:
        path: the lock's file, one a machine (or GPU) and working folder.
        shareable: whether two generations at once are any use. With several threads each on one CPU they are not: the
            threads of one wait for those of the other, many times longer than one after the other takes.
    """

    path: Path
    shareable: bool

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Hold the machine alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ReadWriteLock(self.path).write_lock():
            yield

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Share the machine with others that do not time, where that is any use."""
        if not self.shareable:
            with self.timing():
                yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ReadWriteLock(self.path).read_lock():
            yield
