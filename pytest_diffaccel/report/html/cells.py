"""What a store holds of each cell: one environment, one sampling, each candidate once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from pytest_diffaccel.matrix import Cell, slug
from pytest_diffaccel.measure.measurement import Interval, Measurement, Sampling
from pytest_diffaccel.records.contents import Contents, Decision, Failure, GroupWinners, Recorded
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import ACCELERATORS, GoldenKey

# Purpose of a rival's sampling, as pytest_diffaccel.search.verify.fewer_steps writes it.
_INSTEAD = re.compile(r"instead of (\d+) steps")
# What follows a cell's name in a candidate's key: the accelerator's slug, then name=value pairs.
_KEY_TAIL = re.compile(r"-(?P<slug>.+?)-(?P<params>\w+=.*)", re.DOTALL)

#: Environment, images a call, seed and prompts: what must be equal for two losses to be comparable.
_Conditions: TypeAlias = tuple[str, int, int, str]


@dataclass(frozen=True)
class Skipped:
    """A candidate that was not measured.

    Attributes:
        key: the candidate's key.
        accelerator: its accelerator's name, or slug where no record spells the name.
        params: its parameters as ``name=value`` pairs.
        evidence: why it was skipped.
    """

    key: str
    accelerator: str
    params: str
    evidence: str


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
        winners: what was chosen in each group, by accelerator.
        finished: slugs of the accelerators whose winners are found.
        left_out: measurements of the cell under other conditions.
    """

    cell: Cell
    environment: str
    described: Environment | None
    sampling: Sampling
    searched: Mapping[str, Measurement]
    verified: Mapping[str, Measurement]
    rivals: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    failures: tuple[Failure, ...]
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
        return {key: chosen_by.get(key, one.speedup) for key, one in self.best_known.items()}

    @property
    def entries(self) -> dict[GoldenKey, GoldenEntry]:
        """What was chosen, as golden records it; targets that are undecided are not in it."""
        cell = self.cell
        return {
            GoldenKey(cell.pipe, cell.scheduler, cell.steps, accelerator, target): entry
            for accelerator, own in self.winners.items()
            for target, entry in own.entries.items()
        }


def cells_of(contents: Contents, *, done: str, wanted: Callable[[Cell], bool] = lambda _: True) -> list[CellRecord]:
    """The cells that anything is recorded of, pipe, scheduler and steps in order.

    Args:
        contents: everything in a store.
        done: evidence of a group's decision that its winners are found.
        wanted: which cells to take.
    """
    by_cell: dict[Cell, list[Recorded]] = {}
    for recorded in contents.measurements:
        by_cell.setdefault(_home(recorded.measurement), []).append(recorded)
    failures: dict[Cell, list[Failure]] = {}
    for failure in contents.failures:
        failures.setdefault(failure.candidate.cell, []).append(failure)
    decisions: dict[Cell, list[Decision]] = {}
    known = {str(cell): cell for cell in (*by_cell, *failures)}
    for decision in contents.decisions:
        cell = _cell_of(decision.subject, known)
        if cell is not None:
            decisions.setdefault(cell, []).append(decision)
    names = {slug(name): name for name in (*ACCELERATORS, *_accelerators(contents))}
    return [
        _record(cell, by_cell.get(cell, []), failures.get(cell, []), decisions.get(cell, []), contents, names, done)
        for cell in sorted(known.values(), key=lambda cell: (cell.pipe, cell.scheduler, cell.steps))
        if wanted(cell)
    ]


def _home(measurement: Measurement) -> Cell:
    """The cell that a measurement belongs to: a rival has fewer steps than its own."""
    cell = measurement.candidate.cell
    instead = _INSTEAD.fullmatch(measurement.sampling.purpose)
    return Cell(cell.pipe, cell.scheduler, int(instead[1])) if instead else cell


def _accelerators(contents: Contents) -> Iterator[str]:
    for recorded in contents.measurements:
        yield recorded.measurement.candidate.accelerator
    for failure in contents.failures:
        yield failure.candidate.accelerator


def _cell_of(subject: str, known: Mapping[str, Cell]) -> Cell | None:
    """The cell whose name ``subject`` begins with; cells' names have dashes, so the longest that fits."""
    parts = subject.split("-")
    for end in range(len(parts) - 1, 0, -1):
        cell = known.get("-".join(parts[:end]))
        if cell is not None:
            return cell
    return None


def _conditions(environment: str, sampling: Sampling) -> _Conditions:
    return environment, sampling.batch_size, sampling.seed, sampling.prompts_digest


def _record(
    cell: Cell,
    recorded: Sequence[Recorded],
    failures: Sequence[Failure],
    decisions: Sequence[Decision],
    contents: Contents,
    names: Mapping[str, str],
    done: str,
) -> CellRecord:
    newest = max(
        [(one.created_at, one.measurement.environment, one.measurement.sampling) for one in recorded]
        or [(one.created_at, one.environment, one.sampling) for one in failures],
        key=lambda found: found[0],
    )
    environment, sampling = newest[1:]
    chosen = _conditions(environment, sampling)
    own = [one.measurement for one in recorded if _of(one.measurement, chosen)]
    decided = [one for one in decisions if _conditions(one.environment, one.sampling) == chosen]
    searched = _with_most_samples(one for one in own if one.sampling.purpose == "search")
    verified = _with_most_samples(one for one in own if one.sampling.purpose == "winner")
    prefix = len(str(cell)) + 1
    return CellRecord(
        cell=cell,
        environment=environment,
        described=contents.environments.get(environment),
        sampling=sampling,
        searched=searched,
        verified=verified,
        rivals=tuple(
            sorted((one for one in own if _INSTEAD.fullmatch(one.sampling.purpose)), key=lambda one: _steps(one))
        ),
        skipped=tuple(
            skipped
            for one in decided
            if (skipped := _skipped(one, cell, names)) and skipped.key not in searched and skipped.key not in verified
        ),
        winners={
            one.accelerator: one
            for one in contents.winners
            if one.cell == cell and _conditions(one.environment, one.sampling) == chosen
        },
        failures=tuple(one for one in failures if _conditions(one.environment, one.sampling) == chosen),
        finished=frozenset(one.subject[prefix:] for one in decided if one.evidence == done),
        left_out=len(recorded) - len(own),
    )


def _of(measurement: Measurement, chosen: _Conditions) -> bool:
    return _conditions(measurement.environment, measurement.sampling) == chosen


def _steps(measurement: Measurement) -> int:
    return measurement.candidate.cell.steps


def _with_most_samples(measurements: Iterable[Measurement]) -> dict[str, Measurement]:
    most: dict[str, Measurement] = {}
    for one in measurements:
        key = one.candidate.key
        if key not in most or one.sampling.num_samples >= most[key].sampling.num_samples:
            most[key] = one
    return most


def _skipped(decision: Decision, cell: Cell, names: Mapping[str, str]) -> Skipped | None:
    """The candidate that was decided on; None for a decision on a group."""
    found = _KEY_TAIL.fullmatch(decision.subject[len(str(cell)) :])
    if found is None:
        return None
    return Skipped(decision.subject, names.get(found["slug"], found["slug"]), found["params"], decision.evidence)
