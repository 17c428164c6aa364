"""How much memory a generation takes at its highest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Linux keeps the highest resident memory of a process, and forgets it when 5 is written here (proc(5)).
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_FORGET_PEAK = "5"


def reset_peak_memory(device: torch.device) -> None:
    """Begin to watch for the highest memory: of a CUDA device, or of this process.

    Where the system keeps no mark of a process that could be reset, it goes on from the process's start.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _RESET.write_text(_FORGET_PEAK)
    except OSError:  # not Linux, or a container that does not allow it
        return


def peak_memory_mb(device: torch.device) -> float:
    """Memory in MiB, the highest since the reset: allocated on a CUDA device, elsewhere resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    marks = [line.split() for line in _status() if line.startswith("VmHWM:")]
    return float(marks[0][1]) / 2**10 if marks else _highest_of_process_mb()


def _status() -> list[str]:
    try:
        return _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _highest_of_process_mb() -> float:
    """Where there is no /proc: what the system has noted since the process began."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit / 2**20
