"""What else the machine did while something was being timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from pytest_diffaccel.measure.watch import ClockRecord, Watch

if TYPE_CHECKING:
    import torch

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


@dataclass(frozen=True)
class HostWatch:
    """Watches the processors: what other processes use of them, and their clock.

    Attributes:
        threads: threads that a run computes on, at least 1.
        clock: of the fastest core, which is one that computes.
    """

    threads: int
    clock: ClockRecord = field(default_factory=lambda: ClockRecord("CPU"))

    def begin(self) -> Callable[[], str]:
        """Read the counters now, and again at the end."""
        before = LoadReading.now()

        def end() -> str:
            mhz = max((core.current for core in psutil.cpu_freq(percpu=True) or ()), default=0.0)
            return before.disturbance_until(LoadReading.now(), self.threads) or self.clock.slowed(mhz)

        return end


@dataclass(frozen=True)
class Watches:
    """Several watches as one.

    Attributes:
        parts: what each of them sees is told, in this order.
    """

    parts: tuple[Watch, ...]

    def begin(self) -> Callable[[], str]:
        """Begin all."""
        ends = [part.begin() for part in self.parts]
        return lambda: "; ".join(filter(None, [end() for end in ends]))


def watch_machine(device: torch.device, threads: int) -> Watch:
    """What watches everything that disturbs runs on a device: the host's load and clock, and a GPU's own.

    Args:
        device: that the runs compute on.
        threads: of the host that they keep busy, at least 1.
    """
    return Watches((HostWatch(threads), watch_device(device)))


def watch_device(device: torch.device) -> Watch:
    """What watches a GPU alone, for times that the host has no part in; on other devices it sees nothing."""
    if device.type != "cuda":
        return Watches(())
    from pytest_diffaccel.measure.gpu_watch import GpuWatch

    gpu = GpuWatch.of(device)
    return Watches((gpu,) if gpu else ())
