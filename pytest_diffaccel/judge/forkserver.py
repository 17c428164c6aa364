"""A process with torch, diffusers and the pipelines loaded already, which forks one process per script.

Run by :mod:`pytest_diffaccel.judge.workplace` as ``python -m pytest_diffaccel.judge.forkserver``, with a clean
environment and one end of a socket pair. It never runs a script itself.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import signal
import socket
import sys
import traceback
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.judge.channel import Channel, ChannelClosed
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.confine.sandbox import confine
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.schedulers import SCHEDULER_CLASSES
from pytest_diffaccel.pipes import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What scripts import; loaded once, here, the optional ones where they are installed.
_LIBRARIES = ("diffusers", "transformers", "DeepCache", "tgate", "tomesd", "PIL.Image", "psutil")
_OPTIONAL = ("cache_dit", "cache_dit.ray")
# diffusers imports these when they are first asked for.
_CLASSES = (
    *dict.fromkeys(spec.pipeline_class for spec in BUILT_IN),
    *("DiffusionPipeline", "AutoPipelineForText2Image"),
    *(name for name, _ in SCHEDULER_CLASSES.values()),
)
_PR_SET_PDEATHSIG = 1


class ForkServer:
    """Answers requests for processes until the judge is gone.

    Args:
        end: this side of the socket pair.
        models: the model source, as ``--models`` names it.
        device: the torch device of a script's pipelines; this process itself uses the CPU only.
        threads: torch threads of a script's process.
    """

    def __init__(self, end: socket.socket, models: str, device: str, threads: int) -> None:
        self._end = end
        self._channel = Channel(end)
        self._source = ModelSource.from_option(models)
        self._device = device
        self._threads = threads

    def serve(self) -> None:
        """Fork a process for each request, one at a time, and tell how each ended."""
        import torch

        _die_with_parent()
        torch.set_num_threads(1)  # threads do not survive a fork
        for name in (*_LIBRARIES, *(name for name in _OPTIONAL if find_spec(name.partition(".")[0]))):
            importlib.import_module(name)
        for name in _CLASSES:
            getattr(sys.modules["diffusers"], name)
        self._channel.send({"event": "ready"})
        while True:
            try:
                request = self._channel.receive().header
                files = socket.recv_fds(self._end, 1, 3)[1]
            except ChannelClosed:
                return
            self._serve_one(request, files)

    def _serve_one(self, request: Mapping[str, Any], files: list[int]) -> None:
        self._pipeline(str(request["pipe"]))
        gc.freeze()  # what is loaded is not to be copied by the collector's marks
        process = os.fork()
        if process == 0:
            self._become_script(request, files)
        for file in files:
            os.close(file)
        self._channel.send({"event": "started", "process": process})
        status = os.waitpid(process, 0)[1]
        self._channel.send({"event": "ended", "status": os.waitstatus_to_exitcode(status)})

    @cache  # noqa: B019  # one server per process
    def _pipeline(self, pipe: str) -> Any:
        from pytest_diffaccel.models.loading import default_dtype, load_pipeline

        # As the judge's own is on its device, though this waits on the CPU: start noise differs by number type.
        spec = self._source.spec(pipe)
        dtype = spec.dtype or default_dtype(self._device, spec.family)
        with _errors_only():
            return load_pipeline(pipe, models=self._source, device="cpu", dtype=dtype)

    def _become_script(self, request: Mapping[str, Any], files: list[int]) -> None:
        """Run the script in this new process, and end it."""
        status = 1
        try:
            os.setsid()
            _die_with_parent()
            self._end.close()
            channel = Channel(socket.socket(fileno=files[0]))
            for file, standard in zip((os.open(os.devnull, os.O_RDONLY), *files[1:]), (0, 1, 2), strict=True):
                os.dup2(file, standard)
                os.close(file)
            self._prepare(request, channel)
            status = _run(Path(request["script"]))
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()  # the script may have put anything in their place
            finally:
                os._exit(status)

    def _prepare(self, request: Mapping[str, Any], channel: Channel) -> None:
        import torch

        from pytest_diffaccel.judge.referee import Referee
        from pytest_diffaccel.judge.resolving import resolve_models

        torch.set_num_threads(self._threads)
        resolve_models(self._pipeline, self._source, self._device)
        Referee(channel, tuple(request["own_size"]), tuple(request["source_size"])).watch()
        if self._device != "cpu":
            _start_gpu(self._device)
        folders = [Path(spec.location) for spec in self._source.specs if spec.kind in ("embedded", "directory")]
        missing = confine(Path(request["folder"]), Limits(**request["limits"]), [*folders, Path(request["script"])])
        channel.send({"event": "confined", "missing": missing})


@contextmanager
def _errors_only() -> Iterator[None]:
    """Keep diffusers from warning that float16 cannot run on the CPU, where the weights only wait."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _start_gpu(device: str) -> None:
    """Start CUDA and its libraries, which open sockets and shared memory that a script may not.

    Only here, in the script's own process: one that has started CUDA cannot be forked.
    """
    import torch

    images = torch.zeros(1, 4, 8, 8, device=device)
    torch.nn.functional.conv2d(images, torch.zeros(4, 4, 3, 3, device=device))
    (images[0, 0] @ images[0, 0]).cpu()


def _run(script: Path) -> int:
    """The script's exit status."""
    sys.argv[:] = [str(script)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def _die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however it does."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Serve the socket that the command line names."""
    number, models, device, threads = sys.argv[1:]
    ForkServer(socket.socket(fileno=int(number)), models, device, int(threads)).serve()


if __name__ == "__main__":
    main()
