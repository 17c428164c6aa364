"""Winners of a cell and accelerator: chosen by the search, then measured again before anything is recorded.

The best of many noisy figures looks better than it is. Every winner is timed again, together with the other winners of
its group in blocks of their own, on other prompts and seeds; one that then misses its target makes room for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.search.cost_model import pooled_speedups
from pytest_diffaccel.search.evaluation import BlockBudget, measure
from pytest_diffaccel.search.select import Choice, Option, choose
from pytest_diffaccel.search.time_limit import time_limit
from pytest_diffaccel.search.workbench import Workbench

# Enough blocks for a half-width of 2%, which 2 noisy cores give after about eight (docs/method.md).
FINAL_BUDGET = BlockBudget(least=4, most=12, half_width_ratio=0.02)
# A coarse grid is a first look: half the time, and a half-width of some 3%.
COARSE_FINAL_BUDGET = BlockBudget(least=3, most=6, half_width_ratio=0.03)


class Unfinished(Exception):
    """Some candidates of the group have been neither measured nor tried: no winner can be named yet."""


@dataclass(frozen=True)
class Winner:
    """A target's outcome.

    Attributes:
        choice: what was chosen, or the best reached and why that is not enough.
        measurement: the final measurement of the chosen; None when nothing was measured.
    """

    choice: Choice
    measurement: Measurement | None


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
    """
    searched = _in_grid(bench, cell, accelerator)
    verified: dict[str, Measurement] = {}
    while True:
        choices = [choose(_options(searched, verified), target, bench.settings.max_quality_loss) for target in TARGETS]
        chosen = {choice.option.candidate.key: choice.option.candidate for choice in choices if choice.option}
        missing = [candidate for key, candidate in chosen.items() if key not in verified]
        if not missing:
            return [
                Winner(choice, verified[choice.option.candidate.key] if choice.option else None) for choice in choices
            ]
        verified |= _verify(bench, missing)


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


def _options(searched: Sequence[Measurement], verified: dict[str, Measurement]) -> list[Option]:
    pooled = pooled_speedups(searched)
    options = []
    for measurement in searched:
        key = measurement.candidate.key
        final = verified.get(key)
        speedup = final.speedup if final else pooled[key]
        # The loss that chooses stays the search's: all options on the same images.
        options.append(Option(measurement.candidate, speedup, measurement.quality.lpips.value, final is not None))
    return options


def _verify(bench: Workbench, candidates: Sequence[Candidate]) -> dict[str, Measurement]:
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
                budget = COARSE_FINAL_BUDGET if bench.settings.coarse else FINAL_BUDGET
                measurements = measure(bench, missing, "winner", budget)
        except Exception:
            bench.unload()
            raise
        for measurement in measurements:
            bench.store.save(measurement)
            verified[measurement.candidate.key] = measurement
    return verified
