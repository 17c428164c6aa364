"""One machine or GPU, one timing at a time: measuring excludes all other workers, generating for quality shares."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import ReadWriteLock

from pytest_diffaccel.measure.time_limit import waiting


def lock_between_processes(path: Path) -> ReadWriteLock:
    """A lock that many may hold to read or one to write; its folder is made. The system frees it when a holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return ReadWriteLock(path)


@contextmanager
def held(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Hold a lock; no case's time runs until it is got."""
    with ExitStack() as stack:
        with waiting():
            stack.enter_context(lock)
        yield


@dataclass(frozen=True)
class TimingLock:
    """Lock between processes (:func:`lock_between_processes`).

    Attributes:
        path: the lock's file, one per working folder for its machine's processors, one per machine for each GPU.
        shareable: whether two generations at once are any use. With several threads each on one CPU they are not: the
            threads of one wait for those of the other, many times longer than one after the other takes.
    """

    path: Path
    shareable: bool

    @classmethod
    def of_gpu(cls, uuid: str) -> TimingLock:
        """The lock of a GPU, for all processes of this user on the machine, whatever their working folders.

        Args:
            uuid: of the physical GPU: its number depends on ``CUDA_VISIBLE_DEVICES``.
        """
        return cls(Path(tempfile.gettempdir()) / f"pytest-diffaccel-of-{getpass.getuser()}" / f"{uuid}.lock", True)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Hold the machine, or the GPU, alone."""
        with held(lock_between_processes(self.path).write_lock()):
            yield

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Share it with others that do not time, where that is any use."""
        if not self.shareable:
            with self.timing():
                yield
            return
        with held(lock_between_processes(self.path).read_lock()):
            yield
