"""xdist's workers in a Ray cluster: Ray gives each its place, and xdist does not notice.

xdist hands out cases, takes reports and replaces workers that die, and speaks to each worker through the standard input
and output of a process. Here that process is a relay (:mod:`.relay`), which joins a socket of the controller; behind it
an actor of Ray runs the worker's interpreter on some node, and copies bytes both ways. So everything that a session
does with workers of its own machine (order, ``-x``, ``--maxfail``, reports, replacements) it does with these.

Nothing here knows pytest, and :class:`RemoteWorker` nothing but the standard library: it goes to the nodes as it is.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

_CHUNK = 1 << 16
# A worker that is told to end puts down what it measures first; then it is killed.
_GRACE_S = 10.0
# How long a worker's place may take, once it should be free: a process starts there. A dead node's is never free.
_PLACE_S = 120.0
# Variables of the controller's environment that decide what a worker does; the rest is the node's.
_PREFIXES = ("DIFFACCEL_", "HF_", "MKL_", "OMP_", "PYTEST_", "PYTHON", "TORCH_", "TRANSFORMERS_")
# Ray sets it to the cores that an actor asks for, where the node has none; a worker chooses its threads itself.
_OMP = "OMP_NUM_THREADS"
#: Tells a worker how many of the session share its machine.
WORKERS_HERE = "PYTEST_DIFFACCEL_WORKERS_HERE"


class RemoteWorker:
    """An actor that runs a worker's interpreter on its node."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
        """Start the interpreter.

        Args:
            arguments: of the interpreter.
            folder: where the session was started; the node has it at the same place.
            environment: variables that come from the controller.
        """
        own = {name: value for name, value in os.environ.items() if name != _OMP}
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**own, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C of whoever started the node is none of ours
        )

    def write(self, data: bytes) -> None:
        """Give it what xdist says; no bytes: nothing more will come."""
        channel = self._running.stdin
        with suppress(BrokenPipeError, ValueError):
            _ = channel and (channel.write(data) if data else channel.close())

    def read(self) -> bytes:
        """What it says next; no bytes: it has ended."""
        channel: IO[bytes] | None = self._running.stdout
        return os.read(channel.fileno(), _CHUNK) if channel else b""

    def end(self) -> None:
        """Let it end as after Ctrl-C, and soon."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
            self._process.kill()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process


@dataclass(frozen=True)
class Place:
    """Where a worker of the session runs.

    Attributes:
        node: Ray's id of the node.
        gpus: GPUs that it has for itself, 0 or 1; without one it has a core.
        shared_by: workers of the session on that node.
    """

    node: str
    gpus: int
    shared_by: int


def ask_node(folder: str, request: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """What :mod:`.ray_node` prints on the node that this runs on: its exit status, output and errors."""
    if not os.path.isdir(folder):
        return 1, "", f"there is no folder {folder}"
    command = [sys.executable, "-m", "pytest_diffaccel.plugin.ray_node", request]
    own = {**os.environ, **environment}
    made = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    return made.returncode, made.stdout, made.stderr


def passed_on() -> dict[str, str]:
    """The variables of this process's environment that nodes' processes get."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


class _Worker(Protocol):
    """A worker, wherever it runs."""

    def start(self, arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
        """Start it."""

    def write(self, data: bytes) -> None:
        """Give it what xdist says."""

    def read(self) -> bytes:
        """What it says next."""

    def end(self) -> None:
        """Let it end."""


class _InCluster:
    """A :class:`RemoteWorker` on another node; every call raises what Ray says of a dead one.

    Args:
        place: where.
    """

    def __init__(self, place: Place) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote: Any = ray.remote  # its types lack groups
        # Each of these goes on while another waits.
        kind = remote(max_restarts=0, concurrency_groups={"write": 1, "read": 1, "end": 1})(RemoteWorker)
        self.place = place
        self._actor = kind.options(
            num_gpus=place.gpus,
            num_cpus=0 if place.gpus else 1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        ).remote()

    def start(self, arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
        import ray

        ray.get(self._actor.start.remote(arguments, folder, environment), timeout=_PLACE_S)

    def write(self, data: bytes) -> None:
        self._do("write", data)

    def read(self) -> bytes:
        read: bytes = self._do("read")
        return read

    def end(self) -> None:
        import ray

        try:
            self._do("end")
        finally:
            ray.kill(self._actor)

    def _do(self, name: str, *arguments: object) -> Any:
        import ray

        return ray.get(getattr(self._actor, name).options(concurrency_group=name).remote(*arguments))


class RayCarrier:
    """Gives each relay that joins its socket a worker in the cluster that this process has joined.

    The first workers are asked for all at once, and wait for their relays, which xdist starts one after the other. One
    that dies or has nothing left to do leaves its place to whoever comes next. Where no place is left, as a node died,
    xdist, which would wait for ever, gets a worker on this machine, which only stands for one: it must be given nothing
    to do.

    Args:
        places: one per worker that the session begins with.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._environment = passed_on()
        self._asked = [_InCluster(place) for place in places]
        self._free: list[Place] = []
        # Workers that xdist is done with, and those of all that have ended: the others' places will be free.
        self._done, self._ended = 0, 0
        self._changed = threading.Condition()
        self._serving: set[threading.Thread] = set()
        #: Whether the worker that joined last is in the cluster.
        self.last_has_place = True
        self._folder = tempfile.TemporaryDirectory(prefix="pytest-diffaccel-")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen(len(places))
        threading.Thread(target=self._accept, name="diffaccel-ray", daemon=True).start()

    @property
    def relay(self) -> str:
        """What xdist starts as a worker's interpreter."""
        program = Path(__file__).with_name("relay.py")
        return shlex.join([sys.executable, "-S", "-E", str(program), str(self._path)])

    def is_done(self) -> None:
        """Note that xdist is done with one more worker, which has ended or is about to."""
        with self._changed:
            self._done += 1

    def close(self) -> None:
        """Let all workers end, and wait for them."""
        self._socket.close()
        for thread in list(self._serving):
            thread.join(2 * _GRACE_S)
        self._folder.cleanup()

    @property
    def _path(self) -> Path:
        return Path(self._folder.name) / "relays"

    def _accept(self) -> None:
        while True:
            try:
                relay, _ = self._socket.accept()
            except OSError:  # it is closed
                return
            thread = threading.Thread(target=self._serve, args=(relay,), daemon=True)
            self._serving.add(thread)
            thread.start()

    def _serve(self, relay: socket.socket) -> None:
        """Be a worker to xdist until either side ends. Its place is free again before xdist can ask for another."""
        with relay, relay.makefile("rb", buffering=0) as heard:
            worker = self._started(json.loads(heard.readline()))
            said = threading.Thread(target=_pass_on, args=(heard, worker), daemon=True)
            said.start()
            with suppress(Exception):  # Ray's, of a node or an actor that died: what it leaves is the same
                while data := worker.read():
                    relay.sendall(data)
            with suppress(Exception):
                worker.end()
            place = worker.place if isinstance(worker, _InCluster) else None
            is_free = place is not None and place.node in living_nodes()
            with self._changed:
                if place and is_free:
                    self._free.append(place)
                self._ended += 1
                self._changed.notify_all()
            self._serving.discard(threading.current_thread())
            # Closed alone it would stay open to the relay, as long as the other thread reads from it: for ever.
            with suppress(OSError):
                relay.shutdown(socket.SHUT_RDWR)

    def _started(self, arguments: Sequence[str]) -> _Worker:
        """A worker in the cluster, or one here where none has a place."""
        where = os.getcwd()
        # One place after the other: of a node that has just died, Ray says for a while that it is there.
        while self._asked or self._ask_again():
            worker = self._asked.pop(0)
            shared = {WORKERS_HERE: str(worker.place.shared_by)}
            with suppress(Exception):  # Ray's: the node died, or others took what was free
                worker.start(arguments, where, {**self._environment, **shared})
                self.last_has_place = True
                return worker
        here = RemoteWorker()
        here.start(arguments, where, self._environment)
        self.last_has_place = False
        return here

    def _ask_again(self) -> bool:
        """Ask for a worker in a place that another has left, or is about to leave; whether there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._ended >= self._done, 2 * _GRACE_S)
            if self._free:
                self._asked.append(_InCluster(self._free.pop()))
        return bool(self._asked)


def _pass_on(heard: IO[bytes], worker: _Worker) -> None:
    """What xdist says; at its end the worker ends."""
    with suppress(Exception):  # Ray's, of a dead worker
        while data := heard.read(_CHUNK):
            worker.write(data)
        worker.write(b"")
        worker.end()


def living_nodes() -> set[str]:
    """Ray's ids of the nodes that are there."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
