"""What a session's processes have in common, which worker has which GPU, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from pytest_diffaccel.plugin.ray_carrier import WORKERS_HERE
from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from pytest_diffaccel.devices import Gpu
    from pytest_diffaccel.records.presence import Presence
    from pytest_diffaccel.search.search_run import SearchRun, SearchSession
    from pytest_diffaccel.settings.search_settings import Settings

# Environment variables that tell a worker what its session is called, and when it began, seconds since the epoch.
_SESSION, _BEGAN_AT = "PYTEST_DIFFACCEL_SESSION", "PYTEST_DIFFACCEL_BEGAN_AT"
# And whether the controller takes back tests that the worker does not run: an option that it changed is not sent.
_TAKES_BACK = "PYTEST_DIFFACCEL_TAKES_BACK"
_NAMED = pytest.StashKey[tuple[str, float]]()
# Of a worker's input: whether it has a place in its cluster.
_HAS_PLACE = "diffaccel_has_place"
# Exit status of a worker that gave up; any will do, xdist looks at none.
_CUDA_BROKEN = 70


def worker_number(config: pytest.Config) -> int | None:
    """Number of this xdist worker; None in a process that is none."""
    return int(config.workerinput["workerid"].removeprefix("gw")) if hasattr(config, "workerinput") else None


def tell_place(node: Any, *, has_place: bool) -> None:
    """Let a worker of a cluster know whether it is there, or only stands for one that has no place any more."""
    node.workerinput[_HAS_PLACE] = has_place


def may_measure(node: Any) -> bool:
    """Whether a worker, as the controller has it, has a place to measure in."""
    return bool(node.workerinput.get(_HAS_PLACE, True))


def has_place(config: pytest.Config) -> bool:
    """Whether this worker may measure: all but one that :func:`tell_place` told otherwise."""
    given: Mapping[str, Any] = getattr(config, "workerinput", {})
    return bool(given.get(_HAS_PLACE, True))


def session_of(config: pytest.Config) -> SearchSession:
    """What this process has in common with the others of its session."""
    from pytest_diffaccel.search.search_run import SearchSession

    count = number_of_workers(config)
    return SearchSession(count, *_named(config), int(os.environ.get(WORKERS_HERE, count)))


def _named(config: pytest.Config) -> tuple[str, float]:
    """What the session is called, and when it began."""
    if hasattr(config, "workerinput"):
        return os.environ[_SESSION], float(os.environ[_BEGAN_AT])
    if _NAMED not in config.stash:
        config.stash[_NAMED] = uuid4().hex, time.time()
    return config.stash[_NAMED]


def tell_session(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Let each worker know which session it is of, also one that replaces a dead one.

    Args:
        config: the controller's.
        specs: execnet's specifications of the workers.
    """
    name, began_at = _named(config)
    takes_back = "yes" if config.option.dist == "loadgroup" else ""
    for spec in specs:
        spec.env |= {_SESSION: name, _BEGAN_AT: str(began_at), _TAKES_BACK: takes_back}


def can_give_back() -> bool:
    """Whether this worker's controller hands out again what the worker gives back: its scheduler is ours."""
    return bool(os.environ.get(_TAKES_BACK))


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


def presence_of(config: pytest.Config, run: SearchRun) -> Presence:
    """What shows this session to others in its store, until it ends.

    Raises:
        StoreError: when the store cannot be read or written.
    """
    from pytest_diffaccel.records.database import PATIENCE_S
    from pytest_diffaccel.records.presence import Presence
    from pytest_diffaccel.records.store import Store

    store = Store.open(run.settings.store, PATIENCE_S)
    presence = Presence(store, run.session.name, run.session.began_at, run.settings.heartbeat_s)
    config.add_cleanup(presence.end)
    return presence


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
    chosen = chosen_gpus(config) if config.option.ray is None else None  # Ray gives its workers theirs
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
    is_worker = worker_number(config) is not None
    if settings.gpus is None or (config.option.ray is not None and not (is_worker and has_place(config))):
        return settings
    from pytest_diffaccel import devices

    if is_worker:
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


def has_line(entry: Any) -> bool:
    """Whether an entry of a traceback, as pytest has it, is of a line of its file."""
    try:
        return int(entry.lineno) >= 0
    except TypeError:
        return False


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
