"""Times what a process does, by the kernel's own counters (Linux): its work, not what others' work keeps it from."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

# Of the clock that counts the processor time of another process, as linux/posix-timers.h makes them of its number.
_ALL_THREADS_RUNNING = 2
_NS = 1e-9


@dataclass(frozen=True)
class Reading:
    """Clocks of a process at one moment.

    Attributes:
        wall_s: on the judge's own clock.
        processor_s: processor time of all its threads so far; 0 where that cannot be read.
        queued_s: for how long its first thread was kept from running by others so far; 0 where that is not counted.
    """

    wall_s: float
    processor_s: float
    queued_s: float


@dataclass(frozen=True)
class WorkClock:
    """Times a process's work.

    On one thread of the CPU, what the process waited for a core is left out. Script and baseline do not wait alike: a
    script, which has just stood still, gets a core sooner than the judge, which computes all the time, so on a busy
    machine each script would look faster than it is. With several threads, or on a GPU, work goes on while the first
    thread waits, and nothing is left out. Processor time bounds it all: a process gains nothing by queueing behind
    threads of its own, or by having more of them than its rival.

    Attributes:
        process: its number.
        threads: torch threads that it has.
        device: torch device of its pipelines.
    """

    process: int
    threads: int
    device: str

    def read(self) -> Reading:
        """The clocks now."""
        return Reading(time.perf_counter(), _processor_s(self.process), _queued_s(self.process))

    def since(self, start: Reading) -> float:
        """Seconds worked since then; of processor time, as much as a thread has of it."""
        now = self.read()
        wall_s = now.wall_s - start.wall_s
        if self.device == "cpu" and self.threads == 1:
            wall_s -= max(0.0, now.queued_s - start.queued_s)
        return max(wall_s, (now.processor_s - start.processor_s) / self.threads)


def _processor_s(process: int) -> float:
    try:
        return time.clock_gettime(~process << 3 | _ALL_THREADS_RUNNING)
    except OSError:
        return 0.0


def _queued_s(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text(encoding="ascii").split()[1]) * _NS
    except (OSError, ValueError, IndexError):
        return 0.0
