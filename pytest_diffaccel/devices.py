"""Which GPU a process uses: chosen among those the caller may use, before CUDA is initialised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

#: How CUDA is told which GPUs a process may use (CUDA C++ Programming Guide, "CUDA Environment Variables").
VISIBLE = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_LIST = ["nvidia-smi", "-L"]
# "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8932f937-...)"; its slices follow: "  MIG 1g.10gb Device 0: (UUID: MIG-...)".
_LISTED = re.compile(r"(?:GPU (\d+)|\s+MIG)\b:?\s*(.*?)\s*\(UUID: ([^)]+)\)")
# A driver that wakes eight GPUs takes seconds; a wedged one must not hang the start.
_LIST_TIMEOUT_S = 60.0
_TO_THE_CPU = "leave --gpus out to run on the CPU"


class NoSuchGpu(ValueError):
    """A GPU was asked for that is not there, or that the caller may not use."""


class CudaBroken(RuntimeError):
    """An error of CUDA that every later call of this process returns too: only another process can go on."""


@dataclass(frozen=True)
class Gpu:
    """What one process computes on: a GPU, or a MIG slice of one.

    Attributes:
        name: as ``CUDA_VISIBLE_DEVICES`` names it: a number, a UUID, or the start of one.
        uuid: ``"GPU-..."``, or ``"MIG-..."`` for a slice; empty where only CUDA can tell.
        physical: UUID of the GPU itself, the same for all its slices; empty where only CUDA can tell.
    """

    name: str
    uuid: str = ""
    physical: str = ""


@dataclass(frozen=True)
class _Listed:
    """A GPU as the driver lists it: its model's name, its UUID, and the UUIDs of its MIG slices, if it is sliced."""

    model: str
    uuid: str
    slices: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """UUIDs of what a process can have of it: itself, or its slices."""
        return self.slices or (self.uuid,)

    def named(self, name: str, uuid: str = "") -> Gpu:
        """It, or a slice of it; CUDA gives the first slice to who asks for a sliced GPU itself."""
        return Gpu(name, uuid if uuid in self.parts else self.parts[0], self.uuid)


@cache
def _listed() -> tuple[_Listed, ...]:
    """The machine's GPUs in the order of their numbers; none where there is no NVIDIA driver to ask.

    Asked once in a process: a driver may take seconds to answer.
    """
    try:
        answer = subprocess.run(_LIST, capture_output=True, text=True, timeout=_LIST_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    found: list[_Listed] = []
    for line in answer.stdout.splitlines():
        match = _LISTED.match(line)
        if match and match[1] is not None:
            found.append(_Listed(match[2], match[3]))
        elif match and found:
            last = found[-1]
            found[-1] = _Listed(last.model, last.uuid, (*last.slices, match[3]))
    return tuple(found)


def gpu_models() -> tuple[str, ...]:
    """Model name of each of the machine's GPUs, whoever may use them."""
    return tuple(board.model for board in _listed())


def number_of_gpus() -> int:
    """GPUs that the machine has, whoever may use them; MIG slices do not count."""
    return len(_listed())


def visible_gpus(environment: Mapping[str, str] | None = None) -> list[Gpu]:
    """The GPUs that the caller may use; without ``CUDA_VISIBLE_DEVICES``, all of the machine's.

    As in CUDA, an entry that names nothing (``-1``, a number that is too high, an unknown or ambiguous UUID) hides
    what follows it, and a GPU named twice hides all.

    Args:
        environment: environment variables; None for this process's own.
    """
    environment = os.environ if environment is None else environment
    machine = _listed()
    if VISIBLE not in environment:
        return [board.named(uuid, uuid) for board in machine for uuid in board.parts]
    # CUDA numbers the fastest GPU first, unless told otherwise: among equal ones that is the driver's own order.
    in_order = environment.get(_ORDER) == "PCI_BUS_ID" or len({board.model for board in machine}) == 1
    found: list[Gpu] = []
    for entry in environment[VISIBLE].split(","):
        gpu = _named(entry.strip(), machine, in_order=in_order)
        if gpu is None:
            break
        if any((gpu.uuid or gpu.name) == (other.uuid or other.name) for other in found):
            return []
        found.append(gpu)
    return found


def _named(entry: str, machine: Sequence[_Listed], *, in_order: bool) -> Gpu | None:
    """What an entry of ``CUDA_VISIBLE_DEVICES`` names; taken at its word where the driver lists nothing."""
    if entry.isdecimal():
        if not machine:
            return Gpu(entry)
        if int(entry) >= len(machine):
            return None
        board = machine[int(entry)]
        return board.named(entry) if in_order else Gpu(entry)
    if not re.match(r"(GPU|MIG)-", entry):
        return None
    if not machine:
        return Gpu(entry, entry, entry if entry.startswith("GPU-") else "")
    named = [(board, uuid) for board in machine for uuid in (board.uuid, *board.slices) if uuid.startswith(entry)]
    return named[0][0].named(entry, named[0][1]) if len(named) == 1 else None


def choose_gpus(wanted: Sequence[str], environment: Mapping[str, str] | None = None) -> list[Gpu]:
    """The visible GPUs that ``--gpus`` asks for.

    Args:
        wanted: numbers counted among the visible ones, or names (UUIDs, MIG names, or the start of one); empty for all.
        environment: as for :func:`visible_gpus`.

    Raises:
        NoSuchGpu: when there is none, one of the wanted is not among them, or one is wanted twice.
    """
    environment = os.environ if environment is None else environment
    visible = visible_gpus(environment)
    if not visible:
        given = environment.get(VISIBLE)
        why = "nvidia-smi lists none" if given is None else f"{VISIBLE} is {given!r}"
        raise NoSuchGpu(f"--gpus: no GPU can be used here ({why}); {_TO_THE_CPU}")
    chosen: list[Gpu] = []
    for name in wanted:
        found = _among(name, visible)
        if len(found) != 1:
            known = ", ".join(f"{place} ({gpu.uuid or gpu.name})" for place, gpu in enumerate(visible))
            said = f"{name} is {len(found)} GPUs" if found else f"no GPU {name}"
            raise NoSuchGpu(f"--gpus: {said}; those that can be used are {known}; choose among them, or {_TO_THE_CPU}")
        if found[0] in chosen:
            raise NoSuchGpu(f"--gpus: GPU {name} is named twice; name each once (-n says how many workers there are)")
        chosen += found
    return chosen or visible


def _among(name: str, visible: Sequence[Gpu]) -> Sequence[Gpu]:
    if name.isdecimal():
        return visible[int(name) : int(name) + 1]
    return [gpu for gpu in visible if gpu.name == name or gpu.uuid.startswith(name)]


def use_gpu(gpu: Gpu) -> None:
    """Make this process see one GPU only."""
    os.environ[VISIBLE] = gpu.name


def computing_gpu(gpu: Gpu | None) -> str:
    """UUID of the physical GPU that this process's CUDA computes on; the first use initialises CUDA.

    Args:
        gpu: the one that the process was given; None for none in particular.

    Raises:
        NoSuchGpu: when torch has no CUDA, or CUDA was initialised before it was told which GPU to use.
    """
    import torch

    if not torch.cuda.is_available():
        raise NoSuchGpu(
            f"--gpus: torch {torch.__version__} finds no CUDA device; install a torch that is built for this driver "
            f"(https://pytorch.org/get-started), or {_TO_THE_CPU}"
        )
    actual = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    if gpu is not None and gpu.uuid.startswith("GPU-") and gpu.uuid != actual:
        raise NoSuchGpu(
            f"--gpus: CUDA computes on {actual}, not on {gpu.uuid}: a conftest.py or a plugin initialised it before "
            f"pytest could choose; let it not, or set {VISIBLE}={gpu.name} and give --gpus alone"
        )
    return (gpu and gpu.physical) or actual


def is_cuda_broken() -> bool:
    """Whether an error has made CUDA useless to this process (an illegal memory access, a failed device-side assert).

    Such an error is returned by every call from then on, so any call tells. False where CUDA is not in use.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
