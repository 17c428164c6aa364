"""What a store holds of each cell: one environment, one sampling, each candidate once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement, Sampling
from pytest_diffaccel.records.contents import (
    Attempt,
    Contents,
    Decision,
    Failure,
    GroupDecision,
    GroupWinners,
    Recorded,
)
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey

#: Environment, images per call, seed and prompts: what must be equal for two losses to be comparable.
_Conditions: TypeAlias = tuple[str, int, int, str]


@dataclass(frozen=True)
class CellRecord:
    """All that is known of a cell under its newest conditions.

    Attributes:
        cell: the cell.
        environment: id of the environment.
        described: what the id stands for; None where the store does not say.
        sampling: of the newest measurement, or of the newest failure or decision where nothing was measured.
        searched: each candidate's measurement for choosing, with the most samples, by key.
        verified: measurements of winners on other prompts and seeds, by key.
        rivals: the unaccelerated pipeline with fewer steps, by rising number of steps.
        skipped: candidates passed over.
        failures: candidates that could not be measured.
        running: candidates that are being measured.
        winners: what was chosen in each group, by accelerator.
        finished: accelerators whose winners are found.
        left_out: measurements of the cell under other conditions.
    """

    cell: Cell
    environment: str
    described: Environment | None
    sampling: Sampling
    searched: Mapping[str, Measurement]
    verified: Mapping[str, Measurement]
    rivals: tuple[Measurement, ...]
    skipped: tuple[Decision, ...]
    failures: tuple[Failure, ...]
    running: tuple[Attempt, ...]
    winners: Mapping[str, GroupWinners]
    finished: frozenset[str]
    left_out: int

    @property
    def model_source(self) -> str:
        """Where the weights come from, in plain words."""
        return self.described.model_source if self.described else "unknown model source"

    @property
    def best_known(self) -> dict[str, Measurement]:
        """Each candidate's measurement that says most: the verification of a winner, else the search's; by key."""
        return {**self.searched, **self.verified}

    @cached_property
    def speedups(self) -> dict[str, Interval]:
        """Of each measured candidate, by key: as its group's winners were chosen by it, else as it was measured."""
        chosen_by = {key: speedup for own in self.winners.values() for key, speedup in own.speedups.items()}
        return {key: chosen_by.get(key, measurement.speedup) for key, measurement in self.best_known.items()}

    @property
    def barred(self) -> dict[str, str]:
        """Why verified candidates could not win within bounds on other metrics, in words, by key."""
        return {key: why for own in self.winners.values() for key, why in own.barred.items()}

    @property
    def entries(self) -> dict[GoldenKey, GoldenEntry]:
        """What was chosen, as golden records it; targets that are undecided are not in it."""
        return {
            GoldenKey(self.cell, accelerator, target): entry
            for accelerator, own in self.winners.items()
            for target, entry in own.entries.items()
        }


def cells_of(contents: Contents, wanted: Callable[[Cell], bool] = lambda _: True) -> list[CellRecord]:
    """The cells that anything is recorded of, pipe, scheduler and steps in order.

    Args:
        contents: everything in a store.
        wanted: which cells to take.
    """
    by_cell: dict[Cell, list[Recorded]] = {}
    for recorded in contents.measurements:
        by_cell.setdefault(_home(recorded.measurement), []).append(recorded)
    failures: dict[Cell, list[Failure]] = {}
    for failure in contents.failures:
        failures.setdefault(failure.candidate.cell, []).append(failure)
    known = dict.fromkeys((*by_cell, *failures))
    return [
        _record(cell, by_cell.get(cell, []), failures.get(cell, []), contents)
        for cell in sorted(known, key=lambda cell: (cell.pipe, cell.scheduler, cell.steps))
        if wanted(cell)
    ]


def _home(measurement: Measurement) -> Cell:
    """The cell that a measurement belongs to: a rival has fewer steps than its own."""
    cell, steps = measurement.candidate.cell, measurement.sampling.rival_of
    return cell if steps is None else replace(cell, steps=steps)


def _conditions(environment: str, sampling: Sampling) -> _Conditions:
    return environment, sampling.batch_size, sampling.seed, sampling.prompts_digest


def _record(cell: Cell, recorded: Sequence[Recorded], failures: Sequence[Failure], contents: Contents) -> CellRecord:
    newest = max(
        [(record.created_at, record.measurement.environment, record.measurement.sampling) for record in recorded]
        or [(failure.created_at, failure.environment, failure.sampling) for failure in failures],
        key=lambda found: found[0],
    )
    environment, sampling = newest[1:]
    chosen = _conditions(environment, sampling)
    own = [record.measurement for record in recorded if _of(record.measurement, chosen)]
    searched = _with_most_samples(measurement for measurement in own if measurement.sampling.purpose == "search")
    verified = _with_most_samples(measurement for measurement in own if measurement.sampling.purpose == "winner")
    newest_last = [record.measurement for record in sorted(recorded, key=lambda one: one.created_at)]
    # Drawn further, or anew, with what was then known of the speed-up.
    rivals = {one.candidate.key: one for one in newest_last if _of(one, chosen) and one.sampling.rival_of is not None}

    def is_own(found: Decision | Failure | Attempt | GroupWinners | GroupDecision) -> bool:
        place = found.cell if isinstance(found, GroupWinners | GroupDecision) else found.candidate.cell
        return place == cell and _conditions(found.environment, found.sampling) == chosen

    # Searches of other numbers of samples, or of other options, each say so of a candidate: the last word counts.
    skipped = {decision.candidate.key: decision for decision in contents.decisions if is_own(decision)}
    failed = {failure.candidate.key: failure for failure in failures if is_own(failure)}
    return CellRecord(
        cell=cell,
        environment=environment,
        described=contents.environments.get(environment),
        sampling=sampling,
        searched=searched,
        verified=verified,
        rivals=tuple(sorted(rivals.values(), key=_steps)),
        skipped=tuple(decision for key, decision in skipped.items() if key not in {**searched, **verified, **failed}),
        failures=tuple(failed.values()),
        running=tuple(attempt for attempt in contents.running if is_own(attempt)),
        winners={winners.accelerator: winners for winners in contents.winners if is_own(winners)},
        finished=frozenset(
            decision.accelerator for decision in contents.groups if is_own(decision) and decision.state == "done"
        ),
        left_out=len(recorded) - len(own),
    )


def _of(measurement: Measurement, chosen: _Conditions) -> bool:
    return _conditions(measurement.environment, measurement.sampling) == chosen


def _steps(measurement: Measurement) -> int:
    return measurement.candidate.cell.steps


def _with_most_samples(measurements: Iterable[Measurement]) -> dict[str, Measurement]:
    most: dict[str, Measurement] = {}
    for measurement in measurements:
        key = measurement.candidate.key
        if key not in most or measurement.sampling.num_samples >= most[key].sampling.num_samples:
            most[key] = measurement
    return most
