"""One measurement for the search, and what is kept of it, good or bad."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from traceback import walk_tb

from filelock import Timeout

from pytest_diffaccel.accelerators.acceleration import Generate, MethodDidNotAct
from pytest_diffaccel.devices import CudaBroken, is_cuda_broken
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.measure.metrics.base import MetricFault
from pytest_diffaccel.measure.time_limit import CaseTimeout, time_limit
from pytest_diffaccel.records.contents import KeptKind
from pytest_diffaccel.records.tables import StoreError
from pytest_diffaccel.search.evaluate.evaluation import measure
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.search.workbench import Workbench

# What any candidate would have met: a file that is gone, a store or a lock that nobody gives back, a disk that is full.
_MISSING = (FileNotFoundError, PermissionError, StoreError, Timeout)
_NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class OutOfMemory(RuntimeError):
    """The generation did not fit into memory; the message says what to try."""


def evaluate(bench: Workbench, candidate: Candidate, predicted: Interval | None) -> Measurement:
    """Measure a candidate on its first samples: all of them in an exhaustive search, else few.

    Args:
        bench: the search's workbench.
        candidate: what to measure.
        predicted: its speed-up, where that is known well enough; None to time it.

    Raises:
        CaseTimeout: after ``--case-timeout``.
        OutOfMemory: when memory ran out.
        CudaBroken: when no candidate after this one can be measured by this process.
        Unavailable: when something that measuring needs is missing, or the unaccelerated pipeline draws nothing to
            compare with; that is no failure of the candidate.
        Exception: whatever else went wrong; every failure is stored, and the bench is ready for the next candidate.
    """
    blocks = 0 if predicted is not None else bench.settings.blocks

    def make() -> Measurement:
        first = bench.first_samples(candidate.cell, candidate.accelerator)
        return measure(bench, candidate, blocks, first, predicted)

    with bench.in_progress(candidate.cell, candidate.accelerator):
        return _attempt(bench, candidate, make)


def _attempt(bench: Workbench, candidate: Candidate, make: Callable[[], Measurement]) -> Measurement:
    """Make a measurement and keep it; or keep why it failed."""
    environment = bench.environment(candidate.cell).id
    sampling = bench.sampling(candidate.cell, "search")
    # What is left of a case that takes its process with it: the group's winners need not wait for it for ever.
    bench.attempted.add(candidate.key)
    bench.store.begin(candidate, environment, sampling, "case", session=bench.session, since=bench.since)
    try:
        with time_limit(bench.settings.case_timeout_s):
            measurement = bench.secondary.with_known(make())
    except (KeyboardInterrupt, SystemExit):
        bench.store.forget_failure(candidate, environment, sampling)  # it is the user's doing
        raise
    except Exception as error:
        explained = note_failure(bench, candidate, error)
        if explained is error:
            raise
        raise explained from error
    bench.keep(measurement)
    bench.store.forget_failure(candidate, environment, sampling)
    return measurement


def note_failure(bench: Workbench, candidate: Candidate, error: Exception) -> Exception:
    """Keep why a candidate failed, forget what it did before, and load the pipeline anew before its next use.

    Returns:
        The error, or one that says more.

    Raises:
        CudaBroken: when this process can measure nothing any more.
        Unavailable: when something was missing, or a disk full; that is no failure of the candidate, and none is kept.
            What a method misses while it generates, a file of its own perhaps, is one in this session.
    """
    kind, explained = _explain(error, bench)
    no_disk, is_missing = getattr(error, "errno", None) in _NO_DISK, isinstance(error, _MISSING)
    bench.pipelines.unload()
    place = bench.environment(candidate.cell).id, bench.sampling(candidate.cell, "search")
    if isinstance(error, Unavailable):
        bench.store.forget_failure(candidate, *place)
        raise error
    if isinstance(error, MetricFault):
        # What decides would fail of other candidates, too, and its fault is none of theirs.
        bench.store.forget_failure(candidate, *place)
        raise Unavailable(str(error)) from error
    if no_disk or (is_missing and not _is_of_methods(error)):
        with suppress(StoreError):
            bench.store.forget_failure(candidate, *place)
        raise Unavailable(f"{error}; mend it, and the same command goes on") from error
    # What a method misses now may be there when the next session tries again.
    bench.store.save_failure(candidate, *place, "missing" if is_missing else kind, str(explained))
    bench.known(candidate.cell).drop(candidate)
    if is_cuda_broken():
        raise CudaBroken(f"this process can use its GPU no more; later cases need another ({explained})") from error
    return explained


def _is_of_methods(error: Exception) -> bool:
    """Whether an error came out of an accelerated generation: other candidates, of other parameters, may go on."""
    callers = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
    return any(isinstance(caller, Generate) and caller.accelerator.methods for caller in callers)


def _explain(error: Exception, bench: Workbench) -> tuple[KeptKind, Exception]:
    if isinstance(error, CaseTimeout):
        return "timeout", error
    if isinstance(error, MethodDidNotAct):
        return "not-fired", error
    # CUDA's error by name (no torch is imported for this); torch's CPU allocator raises a plain RuntimeError.
    if (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        size = bench.settings.batch_size
        fix = f"try --batch-size {max(1, size // 2)}" if size > 1 else "the smallest batch does not fit either"
        return "oom", OutOfMemory(f"out of memory at batch size {size}: {fix} ({error})")
    return "error", error
