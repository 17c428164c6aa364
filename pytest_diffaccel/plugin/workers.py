"""What a session's processes have in common, which worker has which GPU, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from pytest_diffaccel.devices import Gpu
    from pytest_diffaccel.search.search_run import SearchRun, SearchSession
    from pytest_diffaccel.settings.search_settings import Settings

# Environment variable that tells a worker when its session began, seconds since the epoch.
_BEGAN_AT = "PYTEST_DIFFACCEL_BEGAN_AT"
# Exit status of a worker that gave up; any will do, xdist looks at none.
_CUDA_BROKEN = 70


def worker_number(config: pytest.Config) -> int | None:
    """Number of this xdist worker; None in a process that is none."""
    return int(config.workerinput["workerid"].removeprefix("gw")) if hasattr(config, "workerinput") else None


def session_of(config: pytest.Config) -> SearchSession:
    """What this process has in common with the others of its session."""
    from pytest_diffaccel.search.search_run import SearchSession

    count = number_of_workers(config)
    if not hasattr(config, "workerinput"):
        return SearchSession(count)
    return SearchSession(count, str(config.workerinput["testrunuid"]), float(os.environ[_BEGAN_AT]))


def tell_beginning(specs: Sequence[Any]) -> None:
    """Let each worker know when the session began, also one that replaces a dead one.

    Args:
        specs: execnet's specifications of the workers.
    """
    for spec in specs:
        spec.env[_BEGAN_AT] = str(time.time())


def other_session(config: pytest.Config) -> str:
    """Who else searches in this folder, in words; empty where nobody does, and then later ones are told of this one.

    Raises:
        OSError: when nothing can be written there.
    """
    from filelock import FileLock, Timeout

    WORK.path.mkdir(parents=True, exist_ok=True)
    lock, about = FileLock(WORK.session_lock), WORK.session_words
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return about.read_text(encoding="utf-8") if about.exists() else "process unknown"
    config.add_cleanup(lock.release)
    about.write_text(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M')}", encoding="utf-8")
    return ""


def sessions_of_store(config: pytest.Config, run: SearchRun, *, is_told_of_folder: bool) -> list[str]:
    """Who else searches into this session's store, in words; later ones are told of this one.

    Args:
        config: pytest's.
        run: the session's search.
        is_told_of_folder: whether :func:`other_session` named another one of this folder.

    Raises:
        StoreError: when the store cannot be read or written.
    """
    from pytest_diffaccel.records.presence import Presence
    from pytest_diffaccel.records.store import Store

    presence = Presence(Store.open(run.settings.store), run.session.name, run.session.began_at)
    config.add_cleanup(presence.end)
    return presence.begin(is_told_of_folder=is_told_of_folder)


def number_of_workers(config: pytest.Config) -> int:
    """Processes that run cases at once: xdist's workers, or this process alone."""
    if hasattr(config, "workerinput"):
        return int(config.workerinput["workercount"])
    if not has_workers(config):
        return 1
    from xdist.workermanage import parse_tx_spec_config

    return len(parse_tx_spec_config(config))


def has_workers(config: pytest.Config) -> bool:
    """Whether this process is xdist's controller, which runs no case itself."""
    is_worker = worker_number(config) is not None
    return not is_worker and getattr(config.option, "dist", "no") != "no" and bool(config.option.tx)


def chosen_gpus(config: pytest.Config) -> list[Gpu] | None:
    """The GPUs that ``--gpus`` asks for; None without it.

    Raises:
        pytest.UsageError: when it cannot be met.
    """
    if config.option.gpus is None:
        return None
    from pytest_diffaccel.devices import choose_gpus
    from pytest_diffaccel.settings.search_settings import named_gpus

    try:
        return choose_gpus(named_gpus(config.option.gpus))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def one_worker_a_gpu(config: pytest.Config) -> int | None:
    """Workers that ``-n auto`` means under ``--gpus``; None where xdist knows better."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    chosen = chosen_gpus(config)
    return None if chosen is None else len(chosen)


def share_gpus(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Give each worker its GPU, in turn, by the environment that it starts in: no conftest.py can come before.

    xdist starts the worker that replaces a dead one from the same specification, and so with the same GPU; by its
    number, which is new, it would get another.

    Args:
        config: the controller's.
        specs: execnet's specifications of the workers.

    Raises:
        pytest.UsageError: as :func:`chosen_gpus`.
    """
    chosen = chosen_gpus(config)
    if chosen is None:
        return
    from pytest_diffaccel.devices import VISIBLE

    for spec, gpu in zip(specs, cycle(chosen), strict=False):
        spec.env[VISIBLE] = gpu.name


def with_gpu(settings: Settings, config: pytest.Config) -> Settings:
    """The settings with the GPU that this process has; a process without workers takes the first that is asked for.

    Raises:
        NoSuchGpu: when ``--gpus`` cannot be met.
    """
    if settings.gpus is None:
        return settings
    from pytest_diffaccel import devices

    if worker_number(config) is not None:
        return replace(settings, gpu=devices.choose_gpus(())[0])
    chosen = devices.choose_gpus(settings.gpus)
    if has_workers(config):
        return settings
    devices.use_gpu(chosen[0])
    return replace(settings, gpu=chosen[0])


def interrupt_on_sigterm(config: pytest.Config) -> None:
    """Let SIGTERM, which job schedulers and containers send, act like Ctrl-C: what is under way has not crashed.

    A handler of somebody else's stays.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        config.add_cleanup(_end_on_sigterm)


def _end_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def give_up_broken_cuda(session: pytest.Session) -> None:
    """Go no further in a process whose CUDA is broken: every case from here on would fail.

    An xdist worker ends at once, after its case's reports: its replacement goes on. A single process stops.
    """
    from pytest_diffaccel import devices

    if not devices.is_cuda_broken():
        return
    if worker_number(session.config) is not None:
        os._exit(_CUDA_BROKEN)  # CUDA cannot be shut down in an orderly way any more
    without = " without --fresh" if session.config.option.fresh else ""
    session.shouldstop = f"an error has made CUDA useless to this process; the same command{without} goes on from here"
