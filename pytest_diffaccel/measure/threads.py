"""How many threads a CPU pipeline has and how they wait, which decides what a busy neighbour costs."""

from __future__ import annotations

import os
import sys
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


def computing_threads(device: torch.device) -> int:
    """Threads of this process that a generation keeps busy: one that feeds a GPU, torch's own on the CPU."""
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1
