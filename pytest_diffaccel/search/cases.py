"""What one pytest case of a search does: measure a candidate and keep what came of it, good or bad."""

from __future__ import annotations

from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.records.store import FailureKind
from pytest_diffaccel.search.evaluation import BlockBudget, measure
from pytest_diffaccel.search.time_limit import CaseTimeout, time_limit
from pytest_diffaccel.search.workbench import Workbench


class OutOfMemory(RuntimeError):
    """The generation did not fit into memory; the message says what to try."""


def search_case(bench: Workbench, candidate: Candidate) -> tuple[Measurement, bool]:
    """Measure a candidate for the search, unless the store has it.

    Returns:
        The measurement, and whether it was made now (else it was stored by an earlier run).

    Raises:
        CaseTimeout: after ``--case-timeout``.
        OutOfMemory: when memory ran out.
        Exception: whatever else went wrong; every failure is stored, and the bench is ready for the next case.
    """
    environment = bench.environment(candidate.cell)
    sampling = bench.sampling(candidate.cell, "search")
    if not bench.settings.fresh:
        stored = bench.store.find(candidate.key, environment.id, sampling)
        if stored is not None:
            return stored, False
    budget = BlockBudget(bench.settings.blocks, bench.settings.blocks, 0.0)
    # What is left of a case that takes its process with it: the group's winners need not wait for it for ever.
    bench.store.save_failure(candidate, environment.id, sampling, "crash", "the process ended during this case")
    try:
        with time_limit(bench.settings.case_timeout_s):
            (measurement,) = measure(bench, [candidate], "search", budget)
    except Exception as error:
        kind, explained = _explain(error, bench)
        bench.unload()
        bench.store.save_failure(candidate, environment.id, sampling, kind, str(explained))
        if explained is error:
            raise
        raise explained from error
    bench.store.save(measurement)
    return measurement, True


def _explain(error: Exception, bench: Workbench) -> tuple[FailureKind, Exception]:
    if isinstance(error, CaseTimeout):
        return "timeout", error
    if isinstance(error, MethodDidNotAct):
        return "not-fired", error
    # CUDA's error by name (no torch is imported for this); torch's CPU allocator raises a plain RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        size = bench.settings.batch_size
        fix = f"try --batch-size {max(1, size // 2)}" if size > 1 else "the smallest batch does not fit either"
        return "oom", OutOfMemory(f"out of memory at batch size {size}: {fix} ({error})")
    return "error", error
