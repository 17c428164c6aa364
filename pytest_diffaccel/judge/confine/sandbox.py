"""Confines the process that is about to run a script: limits, files, system calls, environment."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_diffaccel.judge.confine.landlock import restrict_files
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.confine.privileges import drop_capabilities, refuse_new_privileges
from pytest_diffaccel.judge.confine.seccomp import filter_system_calls

# What is passed on to a script's process; all else may be somebody's secret.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
_THREAD_SETTINGS = ("OMP_", "MKL_", "OPENBLAS_", "KMP_")
# Programs, libraries and the public half of the system's settings.
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/opt", "/nix/store", "/sys", "/proc"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd", "/etc/fonts"),
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)
_DEVICES = ("null", "nvidia", "dri", "kfd")
_MB = 2**20
# Far more than a pipeline needs; what is deleted while it is open can be counted only by looking at each.
_OPEN_FILES = 512


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment a script's process gets: paths, language, threads; no keys, tokens or names."""
    passed_on = {
        name: value for name, value in environment.items() if name in _PASSED_ON or name.startswith(_THREAD_SETTINGS)
    }
    return passed_on | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Asks the driver for devices in a way after which a process can still be forked.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def confine(folder: Path, limits: Limits, readable: Sequence[Path]) -> list[str]:
    """Confine this process, for ever.

    Args:
        folder: where it may write; its working, home and temporary folder from now on.
        limits: what it may use.
        readable: files and folders that it may read beside Python's own and the system's.

    Returns:
        What could not be put in force here, in words; empty when all of it is.
    """
    os.chdir(folder)
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME"), str(folder)))
    _limit(limits)
    missing = []
    if not (refuse_new_privileges() and drop_capabilities()):
        missing.append("privileges cannot be given up")
    packages = (root for root in sys.path if Path(root).name in ("site-packages", "dist-packages"))
    code = [Path(root).resolve() for root in (sys.prefix, sys.base_prefix, sys.exec_prefix, *packages)]
    devices = [path for path in Path("/dev").iterdir() if path.name.startswith(_DEVICES)] if os.name == "posix" else []
    if not restrict_files([*code, *map(Path, _SYSTEM), *readable], [folder, *devices]):
        missing.append("files outside the temporary folder are not protected (no Landlock)")
    if not filter_system_calls():
        missing.append("new processes and the network are not refused (no seccomp)")
    return missing


def _limit(limits: Limits) -> None:
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_mb * _MB),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        resource.setrlimit(kind, (most, most))
    # CUDA reserves address space by the terabyte: there only the device's own memory is a limit.
    if not Path("/dev/nvidiactl").exists():
        most = _reserved() + limits.memory_mb * _MB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _reserved() -> int:
    """Address space of this process, bytes."""
    import psutil

    return int(psutil.Process().memory_info().vms)
