"""What one pytest case of a search does: measure a candidate, unless it cannot win."""

from __future__ import annotations

from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.search.calibrate.calibration import ensure_calibrated
from pytest_diffaccel.search.decide.plan import REUSES_NOTHING
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.workbench import Workbench


class NotWorthwhile(Exception):
    """What is known says that the candidate cannot win, or that the model cannot take it; the message says why."""


class FailedElsewhere(RuntimeError):
    """Another session with this store has found that the candidate fails; the message says how."""


def search_case(
    bench: Workbench, candidate: Candidate, *, within_budget: bool, others_follow: bool
) -> tuple[Measurement, bool]:
    """Measure a candidate for the search, unless it was measured before or cannot win.

    Args:
        bench: the search's workbench.
        candidate: what to measure.
        within_budget: whether the search's time is limited: then the winners' case evaluates, most promising first.
        others_follow: whether the group's winners' case comes after it, and evaluates what promises more.

    Returns:
        The measurement, and whether it was made now (else an earlier run made it).

    Raises:
        NotWorthwhile: when it is not worth a first evaluation, or the model cannot take its parameters; in an
            exhaustive search also when it was to decide by the pictures what it reuses, and reused nothing.
        FailedElsewhere: when it failed in another session, since this one began.
        CaseTimeout: after ``--case-timeout``.
        OutOfMemory: when memory ran out.
        Exception: whatever else went wrong; every failure is stored, and the bench is ready for the next case.
    """
    knowledge = bench.knowledge(candidate.cell, candidate.accelerator)
    known = knowledge.find(candidate)
    if known is not None and known.sampling.num_samples >= bench.first_samples(candidate.cell, candidate.accelerator):
        return known, False
    misfit = bench.pipelines.misfit(candidate)
    if misfit:
        raise NotWorthwhile(misfit)
    failure = bench.failure_elsewhere(candidate)
    if failure is not None and failure.kind == "not-fired" and _may_reuse_nothing(bench, candidate):
        raise NotWorthwhile(REUSES_NOTHING)
    if failure is not None:
        raise FailedElsewhere(f"{failure.message} (found by another session, {failure.created_at[:16]} UTC)")
    group = GroupSearch(bench, candidate.cell, candidate.accelerator)
    if group.leaves_out(candidate):
        raise NotWorthwhile(
            f"does nothing in this cell, or the same as another case: that is what {candidate.accelerator} learnt here"
        )
    if not bench.settings.exhaustive:
        if within_budget:
            raise NotWorthwhile("left to the winners' case, which evaluates the most promising first (--search-budget)")
        decided = group.why_passed_over(candidate)
        if decided is not None:
            raise NotWorthwhile(decided)
        ensure_calibrated(bench, candidate.cell)
        advice = group.plan().advice(candidate, group.grid if others_follow else ())
        if not advice.evaluate:
            group.pass_over(candidate, advice.evidence)
            raise NotWorthwhile(advice.evidence)
    try:
        return group.measure(candidate), True
    except MethodDidNotAct as error:
        if not _may_reuse_nothing(bench, candidate):
            raise
        raise NotWorthwhile(REUSES_NOTHING) from error


def _may_reuse_nothing(bench: Workbench, candidate: Candidate) -> bool:
    """Whether that is no fault: the pictures decide, and no other search has foreseen what.

    A method of which nothing acts is one all the same: then the group's winners' case fails.
    """
    return bench.settings.exhaustive and bench.registry.for_params(candidate.params).deciding is not None
