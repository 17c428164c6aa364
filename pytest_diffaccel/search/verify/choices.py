"""What is chosen of a group as far as it is known: its winner for each target, or why there is none."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pytest_diffaccel.matrix import TARGETS, Cell
from pytest_diffaccel.measure.bounds import Barring
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.search.decide.select import Choice, Option, choose_within
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.words import counted


class Unfinished(Exception):
    """Some candidates of the group have been neither measured nor tried: no winner can be named yet."""


class NothingWorked(Exception):
    """Every candidate that was tried failed: that shows nothing about any target, so nothing is recorded."""


class NothingFits(Exception):
    """The model can take none of the group's candidates: there is nothing to choose from, and nothing went wrong."""


def choices(bench: Workbench, cell: Cell, accelerator: str) -> list[Choice]:
    """The winners of a group, one per target in the targets' order.

    Raises:
        Unfinished: when the search is exhaustive and candidates of the group's grid have not been tried.
        NothingWorked: when all that were tried failed.
        NothingFits: when the model can take none of them.
    """
    options = options_of(bench, cell, accelerator)
    if not options:
        _refuse_without_any(bench, cell, accelerator)
    barred, max_loss = bench.secondary.bars(cell, accelerator), bench.settings.quality.max_loss
    return [choose_within(options, target, max_loss, barred) for target in TARGETS]


def verifiable(bench: Workbench, cell: Cell, accelerators: Sequence[str]) -> list[str]:
    """Those of the accelerators whose groups have something to choose from."""

    def has_options(accelerator: str) -> bool:
        try:
            return bool(options_of(bench, cell, accelerator))
        except Unfinished:
            return False

    return [name for name in accelerators if has_options(name)]


def final_choice(
    options: Sequence[Option],
    verified: Container[str],
    target: float,
    max_loss: float,
    barred: Mapping[str, Barring] = MappingProxyType({}),
) -> Choice:
    """What is chosen of a group's options: where the best is not verified, the best of those that are; else undecided.

    What only comes nearest to a target that is out of reach needs no verification.

    Args:
        options: the group's.
        verified: keys of candidates.
        target: required speed-up.
        max_loss: largest mean loss allowed.
        barred: why options cannot win within the bounds, by candidate key.
    """
    best = choose_within(options, target, max_loss, barred)
    if best.reason is not None or best.option is None or best.option.candidate.key in verified:
        return best
    known = [option for option in options if option.candidate.key in verified]
    choice = choose_within(known, target, max_loss, barred)
    return choice if choice.reason is None else replace(best, reason="undecided")


def worth_verifying(
    options: Sequence[Option],
    verified: Container[str],
    target: float,
    max_loss: float,
    barred: Mapping[str, Barring] = MappingProxyType({}),
) -> Choice:
    """What :func:`final_choice` would choose if the best were verified, unless what is verified is as good.

    Takes what that does. Speed-ups become known better with all that is verified, and the best moves with them; what
    nobody could see is not worth verifying another one for.
    """
    best = choose_within(options, target, max_loss, barred)
    known = choose_within([one for one in options if one.candidate.key in verified], target, max_loss, barred)
    if best.option is None or known.option is None or known.reason is not None:
        return best
    if best.option.candidate.key in verified:  # of several that tie, the best of all need not be that of the verified
        return best
    return best if best.option.is_visibly_better(known.option) else known


def options_of(bench: Workbench, cell: Cell, accelerator: str) -> list[Option]:
    """What is evaluated of a group, also what a bound bars; of an exhaustive search, its grid's points only."""
    options = GroupSearch(bench, cell, accelerator).plan().evaluated_options
    if not bench.settings.exhaustive:
        return options
    measured = {measurement.candidate.key for measurement in _in_grid(bench, cell, accelerator)}
    return [option for option in options if option.candidate.key in measured]


def _refuse_without_any(bench: Workbench, cell: Cell, accelerator: str) -> None:
    """Raise what failed, or why nothing fits; else no candidate has had its turn yet."""
    failures = bench.failures(cell, bench.sampling(cell, "search"))
    failed = [
        failure
        for failure in failures
        if failure.candidate.cell == cell and failure.candidate.accelerator == accelerator
    ]
    if failed:
        raise NothingWorked(
            f"all that was tried failed ({counted(len(failed), 'candidate')}), so nothing is recorded; "
            f"the first: {failed[0].candidate.key}: {failed[0].message}"
        )
    group = GroupSearch(bench, cell, accelerator)
    misfits = [bench.pipelines.misfit(candidate) for candidate in group.cases]
    if misfits and all(misfits):
        raise NothingFits(f"this model takes none of its {counted(len(misfits), 'candidate')}; the first: {misfits[0]}")
    needless = [group.plan().needless(candidate) for candidate in group.grid]
    if needless and all(needless):
        raise NothingFits(f"none of its {counted(len(needless), 'candidate')} acts; the first {needless[0]}")


def _in_grid(bench: Workbench, cell: Cell, accelerator: str) -> list[Measurement]:
    """The search's measurements of this grid; a store may hold those of a wider one."""
    environment, sampling = bench.environment(cell).id, bench.sampling(cell, "search")
    cases = GroupSearch(bench, cell, accelerator).cases
    grid = {candidate.key for candidate in cases if not bench.pipelines.misfit(candidate)}
    stored = bench.store.group(cell, accelerator, environment, sampling, bench.since)
    measured = [made for made in stored if made.candidate.key in grid and bench.is_usable(made)]
    failed = bench.failed(cell) & grid
    untried = len(grid - failed - {measurement.candidate.key for measurement in measured})
    if untried:
        raise Unfinished(f"not measured yet: {untried} of {counted(len(grid), 'candidate')}; run their cases first")
    return measured
