"""What disturbs a GPU while something is timed on it: slowdowns, falling clocks, other processes. Read through NVML."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.measure.watch import ClockRecord

if TYPE_CHECKING:
    import torch

# Share of the GPU's multiprocessors, percent, that another process may use unnoticed: NVML's samples are coarse.
_FOREIGN_PERCENT = 5


@dataclass(frozen=True)
class ProcessLoad:
    """What NVML saw of a process: its number, and the share of the multiprocessors it used, percent."""

    pid: int
    percent: int


def foreign_load(loads: Iterable[ProcessLoad], own_pid: int) -> str:
    """In words, which other processes used the GPU; empty when none did.

    NVML numbers processes as the host does. In a container ours has another number there: then the busiest one is
    taken for ours, since it is what runs.

    Args:
        loads: the samples of the time in question, any number per process.
        own_pid: this process's number.
    """
    most: dict[int, int] = {}
    for load in loads:
        most[load.pid] = max(load.percent, most.get(load.pid, 0))
    if own_pid not in most and most:
        own_pid = max(most, key=lambda pid: most[pid])
    others = sum(percent for pid, percent in most.items() if pid != own_pid)
    return f"other processes used {others}% of the GPU" if others > _FOREIGN_PERCENT else ""


@dataclass(frozen=True)
class GpuWatch:
    """Watches one NVIDIA GPU.

    Attributes:
        handle: NVML's handle of it.
        clock: of its multiprocessors.
    """

    handle: Any
    clock: ClockRecord = field(default_factory=lambda: ClockRecord("GPU"))

    @classmethod
    def of(cls, device: torch.device) -> GpuWatch | None:
        """The watch of a CUDA device; None where NVML does not know it, as on other makers' GPUs."""
        import pynvml
        import torch

        identity = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        try:
            pynvml.nvmlInit()
            return cls(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}"))
        except pynvml.NVMLError:
            return None

    def begin(self) -> Callable[[], str]:
        """Note the time; at the end, ask what NVML saw since."""
        began_us = int(time.time() * 1e6)

        def end() -> str:
            import pynvml

            mhz = _asked(0, pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_SM)
            seen = [self._slowdown(), self.clock.slowed(mhz), foreign_load(self._loads(began_us), os.getpid())]
            return "; ".join(filter(None, seen))

        return end

    def _slowdown(self) -> str:
        """Why the hardware or driver now holds the clocks down, in words.

        The power cap is not among the reasons: large models run at it all the time. Where it costs speed, the clock
        tells.
        """
        import pynvml

        words = {
            pynvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
            pynvml.nvmlClocksEventReasonHwThermalSlowdown: "heat",
            pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "the power supply",
            pynvml.nvmlClocksEventReasonHwSlowdown: "the hardware",
        }
        reasons = _asked(0, pynvml.nvmlDeviceGetCurrentClocksEventReasons, self.handle)
        found = next((word for bit, word in words.items() if reasons & bit), "")
        return found and f"the GPU is slowed down by {found}"

    def _loads(self, since_us: int) -> list[ProcessLoad]:
        import pynvml

        samples = _asked((), pynvml.nvmlDeviceGetProcessUtilization, self.handle, since_us)
        return [ProcessLoad(sample.pid, sample.smUtil) for sample in samples if sample.timeStamp >= since_us]


def _asked(otherwise: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer, or ``otherwise`` where this GPU, driver or virtual machine gives none."""
    import pynvml

    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return otherwise
