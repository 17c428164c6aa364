"""The judge's side of the fork server: starts it, asks it for script processes, ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest_diffaccel
from pytest_diffaccel.judge.channel import Channel, ChannelClosed, ChannelError, Message
from pytest_diffaccel.judge.confine.folder import check_use, temporary_folder
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.confine.sandbox import clean_environment
from pytest_diffaccel.judge.work_clock import WorkClock

#: Height and width in pixels.
Size = tuple[int, int]

# Loading libraries and a pipeline takes seconds, on a busy machine many.
_START_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 10.0
_KEPT_OUTPUT = 4000


@dataclass
class ScriptProcess:
    """A script that runs in a confined process of its own, which stands still while the judge does not wait for it.

    What it leaves running would otherwise slow the judge's baseline down, or work ahead in the judge's time.

    Attributes:
        channel: to the referee in it; what comes from there is a claim.
        limits: what it may use.
        folder: holds its output and its working folder.
        process: its number.
        clock: times its work; it has as many torch threads as the judge's own pipelines.
        waited_s: wall time the judge has waited for it so far, which is the time the script has used.
    """

    channel: Channel
    limits: Limits
    folder: Path
    process: int
    clock: WorkClock
    waited_s: float = 0.0

    def receive(self) -> Message:
        """What it sends next, within its time.

        Raises:
            TimeoutError: when its time is up.
            ChannelClosed: when it has ended.
            ChannelError: when it sent what is no message.
            FolderTooFull: when it wrote more than it may.
        """
        began = time.perf_counter()
        self.signal(signal.SIGCONT)
        try:
            return self.channel.receive(max(0.0, self.limits.seconds - self.waited_s), self.check_folder)
        finally:
            self.signal(signal.SIGSTOP)
            self.waited_s += time.perf_counter() - began

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)

    def check_folder(self) -> None:
        """Look at what it has written.

        Raises:
            FolderTooFull: when that is more than it may.
        """
        check_use(self.folder, self.process, self.limits)

    def last_words(self) -> str:
        """The last line that it wrote to standard error; empty when there is none."""
        text = (self.folder / "stderr").read_bytes()[-_KEPT_OUTPUT:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Workplace:
    """Where scripts run: a fork server, started at the first use.

    Args:
        models: the model source, as ``--models`` names it.
        device: the torch device of scripts' pipelines.
        threads: torch threads of a script's process.
    """

    def __init__(self, models: str, device: str, threads: int) -> None:
        self._arguments = (models, device, str(threads))
        self._clock = partial(WorkClock, threads=threads, device=device)
        self._server: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self, script: bytes, pipe: str, sizes: tuple[Size, Size], limits: Limits) -> Iterator[ScriptProcess]:
        """Run a script; when the block is left, its process is ended, and its folder is gone.

        Args:
            script: the bytes of its file.
            pipe: the pipe to have loaded.
            sizes: the published weights' own image size, and the configured source's.
            limits: what it may use.

        Raises:
            RuntimeError: when the fork server cannot be started or has died.
        """
        self._start()
        with temporary_folder() as folder, contextlib.ExitStack() as stack:
            work = folder / "work"
            work.mkdir()
            path = folder / "script.py"
            path.write_bytes(script)
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            with theirs, (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
                self._control.send(
                    {
                        "script": str(path),
                        "folder": str(work),
                        "pipe": pipe,
                        "own_size": sizes[0],
                        "source_size": sizes[1],
                        "limits": asdict(limits),
                    }
                )
                socket.send_fds(self._end, [b"!"], [theirs.fileno(), stdout.fileno(), stderr.fileno()])
            number = self._answer("started")["process"]
            process = ScriptProcess(Channel(ours), limits, folder, number, self._clock(number))
            self._status: int | None = None
            try:
                yield process
            finally:
                if self._status is None:
                    process.signal(signal.SIGKILL)
                    self._wait(None, None)

    def ended(self, process: ScriptProcess) -> int:
        """Wait for the script's process to end, which runs on.

        Returns:
            Its exit status; minus the signal that ended it.

        Raises:
            TimeoutError: when it has not ended in its time; it is killed when the block is left.
            FolderTooFull: when it wrote more than it may.
        """
        process.signal(signal.SIGCONT)
        status = self._wait(max(0.1, process.limits.seconds - process.waited_s), process.check_folder)
        process.check_folder()
        return status

    def _wait(self, timeout_s: float | None, idle: Callable[[], None] | None) -> int:
        self._status = int(self._answer("ended", timeout_s, idle)["status"])
        return self._status

    def _start(self) -> None:
        if self._server is not None:
            return
        self._end, theirs = socket.socketpair()
        self._control = Channel(self._end)
        environment = clean_environment(os.environ)
        package = str(Path(pytest_diffaccel.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        with theirs:
            command = [sys.executable, "-m", "pytest_diffaccel.judge.forkserver", str(theirs.fileno())]
            # A session of its own: Ctrl-C is the judge's to handle, which then ends the server.
            self._server = subprocess.Popen(
                [*command, *self._arguments],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._answer("ready", _START_TIMEOUT_S)

    def _answer(
        self, event: str, timeout_s: float | None = None, idle: Callable[[], None] | None = None
    ) -> dict[str, int]:
        try:
            header = self._control.receive(timeout_s, idle).header
        except (ChannelClosed, ChannelError) as error:
            raise RuntimeError("the judge's fork server has died; what it printed stands above") from error
        if header.get("event") != event:
            raise RuntimeError(f"the judge's fork server answered {header!r} where {event!r} was due")
        return dict(header)

    def close(self) -> None:
        """End the server, if it was started."""
        if self._server is None:
            return
        self._control.close()
        try:
            self._server.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server = None
