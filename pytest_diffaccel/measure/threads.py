"""How many threads a CPU pipeline has and how they wait, which decides what a busy neighbour costs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_POLICY = "OMP_WAIT_POLICY"


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user chose otherwise.

    By default a thread that waits for another spins. On a core that another process wants too, it spins away the very
    time that the thread it waits for would need: a denoiser call then takes many times longer
    (``python -m benchmarks.contention`` shows how many). OpenMP reads the setting when torch loads it, so this does
    nothing once torch is imported.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault(_POLICY, "PASSIVE")


def use_one_thread() -> None:
    """Run torch on one thread in this process.

    Right for pipelines as small as the embedded ones: their operations are too short to share out, a single thread
    waits for nobody, and its times vary least.
    """
    import torch

    torch.set_num_threads(1)


def solve_on_one_thread() -> None:
    """Let numpy and scipy solve equations on one thread in this process, where their wheels brought OpenBLAS along.

    A search solves thousands of systems of some hundred equations. Threads that wait for one another take longer over
    one than a single thread does, and spin on cores that other workers compute and time on. torch's threads are its
    own.
    """
    import scipy.linalg  # noqa: F401  only libraries that are loaded can be told
    from threadpoolctl import ThreadpoolController

    loaded = ThreadpoolController()
    paths = [library["filepath"] for library in loaded.info()]
    # torch may bring one along, too, whose threads draw pictures.
    own = [path for path in paths if Path(path).parent.name in ("numpy.libs", "scipy.libs")]
    loaded.select(filepath=own).limit(limits=1)


def computing_threads(device: torch.device) -> int:
    """Threads of this process that a generation keeps busy: one that feeds a GPU, torch's own on the CPU."""
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_share_of_cores(gpus: int, workers: int) -> None:
    """Run torch on this process's even share of the cores, and on no more than it has by itself.

    The share is a GPU's, whether or not all GPUs are in use now, so that figures of one worker and of several come
    from the same number of threads: the cores divided by the machine's GPUs, or by the workers where they are more.

    Args:
        gpus: that the machine has; 0 where nothing tells.
        workers: processes that run cases at once, at least 1.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), max(1, cores() // max(gpus, workers))))
