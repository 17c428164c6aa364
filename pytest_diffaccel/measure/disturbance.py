"""What else the machine did while something was being timed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

# Work of other processes, in cores beyond those that the run leaves free, that counts as a disturbance; below it are
# the kernel's own housekeeping and ours.
_FOREIGN_CORES = 0.15


@dataclass(frozen=True)
class LoadReading:
    """Processor time used so far, in seconds: by everything on the machine, and by this process and its children."""

    wall_s: float
    busy_s: float
    own_s: float

    @classmethod
    def now(cls) -> LoadReading:
        """Read the machine's and the process's counters."""
        import time

        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        own = os.times()
        return cls(time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system)

    def disturbance_until(self, later: LoadReading, threads: int) -> str:
        """What other processes did between this reading and ``later``, in words; empty when it left cores enough.

        Args:
            later: the reading at the end.
            threads: threads that the run computes on, at least 1.
        """
        elapsed = later.wall_s - self.wall_s
        if elapsed <= 0:
            return ""
        foreign = ((later.busy_s - self.busy_s) - (later.own_s - self.own_s)) / elapsed
        free = max(0, (psutil.cpu_count() or 1) - threads)
        return f"other processes used {foreign:.1f} cores" if foreign > free + _FOREIGN_CORES else ""
