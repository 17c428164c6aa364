"""Winners of a cell and accelerator: chosen by the search, then measured again before anything is recorded.

The best of many noisy figures looks better than it is. Every winner is timed again, together with the other winners of
its group in blocks of their own, on other prompts and seeds; one that then misses its target makes room for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.search.evaluation import BlockBudget, measure
from pytest_diffaccel.search.fewer_steps import rival
from pytest_diffaccel.search.group import Group
from pytest_diffaccel.search.select import Choice, choose
from pytest_diffaccel.search.time_limit import time_limit
from pytest_diffaccel.search.workbench import Workbench

# Enough for a wall estimate of its own; pooled with all other blocks of the same kinds, the speed-up is known to 1% or
# 2%.
FINAL_BUDGET = BlockBudget(least=3, most=3, half_width_ratio=0.0)
# A verification may move a rival past its target by a hair. That rival's kinds are known by then.
_AGAIN_BUDGET = BlockBudget(least=2, most=2, half_width_ratio=0.0)


class Unfinished(Exception):
    """Some candidates of the group have been neither measured nor tried: no winner can be named yet."""


class NothingWorked(Exception):
    """Every candidate that was tried failed: that shows nothing about any target, so nothing is recorded."""


@dataclass(frozen=True)
class Winner:
    """A target's outcome.

    Attributes:
        choice: what was chosen, or the best reached and why that is not enough.
        measurement: the final measurement of the chosen; None when nothing was measured.
        rival: the unaccelerated pipeline with as few steps as are as fast; None when there is none.
    """

    choice: Choice
    measurement: Measurement | None
    rival: Measurement | None


def find_winners(bench: Workbench, cell: Cell, accelerator: str) -> list[Winner]:
    """Choose and verify the winners of all targets; what is verified is stored at once and not verified twice.

    Args:
        bench: the search's workbench, whose store has the search's measurements.
        cell: the cell.
        accelerator: the accelerator's name.

    Returns:
        One a target, in the targets' order.

    Raises:
        Unfinished: when candidates of the group's grid have not been tried.
        NothingWorked: when all that were tried failed.
    """
    measured = None
    if bench.settings.exhaustive:
        measured = [measurement.candidate for measurement in _in_grid(bench, cell, accelerator)]
    verified: dict[str, Measurement] = {}
    while True:
        options = Group(bench, cell, accelerator).plan().options
        options = [option for option in options if measured is None or option.candidate in measured]
        if not options:
            _refuse_without_any(bench, cell, accelerator)
        choices = [choose(options, target, bench.settings.max_quality_loss) for target in TARGETS]
        chosen = {choice.option.candidate.key: choice.option.candidate for choice in choices if choice.option}
        missing = [candidate for key, candidate in chosen.items() if key not in verified]
        if not missing:
            return [_winner(bench, cell, accelerator, choice, verified) for choice in choices]
        verified |= _verify(bench, missing, _AGAIN_BUDGET if verified else FINAL_BUDGET)


def _refuse_without_any(bench: Workbench, cell: Cell, accelerator: str) -> None:
    """Raise what failed, if something did; without failures, no candidate has had its turn yet."""
    failures = bench.store.failures(bench.environment(cell).id, bench.sampling(cell, "search"))
    failed = [one for one in failures if one.candidate.cell == cell and one.candidate.accelerator == accelerator]
    if failed:
        raise NothingWorked(
            f"all {len(failed)} candidates that were tried failed, so nothing is recorded; "
            f"the first: {failed[0].candidate.key}: {failed[0].message}"
        )


def _winner(
    bench: Workbench, cell: Cell, accelerator: str, choice: Choice, verified: Mapping[str, Measurement]
) -> Winner:
    if choice.option is None:
        return Winner(choice, None, None)
    costs = bench.knowledge(cell, accelerator).costs
    measurement = verified[choice.option.candidate.key]
    return Winner(choice, measurement, rival(bench, cell, costs, choice.option.speedup.value))


def _in_grid(bench: Workbench, cell: Cell, accelerator: str) -> list[Measurement]:
    """The search's measurements of this grid; a store may hold those of a wider one."""
    environment, sampling = bench.environment(cell).id, bench.sampling(cell, "search")
    (known,) = bench.registry.select([accelerator])
    grid = {Candidate(cell, accelerator, params).key for params in known.grid(cell, coarse=bench.settings.coarse)}
    stored = bench.store.group(cell, accelerator, environment, sampling)
    measured = [measurement for measurement in stored if measurement.candidate.key in grid]
    failed = {failure.candidate.key for failure in bench.store.failures(environment, sampling)} & grid
    untried = len(grid - failed - {measurement.candidate.key for measurement in measured})
    if untried:
        raise Unfinished(f"{untried} of {len(grid)} candidates are not measured yet: run their cases first")
    return measured


def _verify(bench: Workbench, candidates: Sequence[Candidate], budget: BlockBudget) -> dict[str, Measurement]:
    sampling = bench.sampling(candidates[0].cell, "winner")
    verified, missing = {}, []
    for candidate in candidates:
        stored = bench.store.find(candidate.key, bench.environment(candidate.cell).id, sampling)
        if stored is None or bench.settings.fresh:
            missing.append(candidate)
        else:
            verified[candidate.key] = stored
    if missing:
        try:
            with time_limit(bench.settings.case_timeout_s):
                measurements = measure(bench, missing, "winner", budget)
        except Exception:
            bench.unload()
            raise
        for measurement in measurements:
            bench.keep(measurement)
            verified[measurement.candidate.key] = measurement
    return verified
