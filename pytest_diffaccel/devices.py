"""Which GPU a process uses: chosen among those the caller may use, before CUDA is initialised."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]


class NoSuchGpu(ValueError):
    """A GPU was asked for that is not there, or that the caller may not use."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that the caller may use, as ``CUDA_VISIBLE_DEVICES`` names them; without it, all of the machine's."""
    if _VISIBLE in environment:
        return [name.strip() for name in environment[_VISIBLE].split(",") if name.strip()]
    try:
        listed = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def choose_gpus(wanted: Sequence[str], visible: Sequence[str]) -> list[str]:
    """The visible GPUs that ``--gpus`` asks for.

    Args:
        wanted: numbers counted among the visible ones, or names (UUIDs, MIG names); empty for all.
        visible: what the caller may use.

    Raises:
        NoSuchGpu: when there is none, or one of the wanted is not among them.
    """
    if not visible:
        raise NoSuchGpu("--gpus: no GPU can be used here; leave --gpus out to run on the CPU")
    chosen = []
    for name in wanted:
        if name in visible and not name.isdecimal():
            chosen.append(name)
        elif name.isdecimal() and int(name) < len(visible):
            chosen.append(visible[int(name)])
        else:
            known = f"0 to {len(visible) - 1}" if len(visible) > 1 else "0"
            raise NoSuchGpu(f"--gpus: no GPU {name}; those that can be used are {known} ({', '.join(visible)})")
    return chosen or list(visible)


def use_gpu(wanted: Sequence[str], worker: int) -> None:
    """Make this process see one GPU only: the workers take turns among the chosen.

    Args:
        wanted: as for :func:`choose_gpus`.
        worker: number of the xdist worker, 0 without xdist.

    Raises:
        NoSuchGpu: as :func:`choose_gpus`.
    """
    chosen = choose_gpus(wanted, visible_gpus())
    os.environ[_VISIBLE] = chosen[worker % len(chosen)]
