"""The race of a group: what its cases left open is evaluated, most promising first, until the winners are clear."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.devices import CudaBroken
from pytest_diffaccel.matrix import TARGETS, Candidate, Params
from pytest_diffaccel.records.tables import StoreError
from pytest_diffaccel.search.budget import TimeIsUp, never
from pytest_diffaccel.search.decide.contenders import Contenders
from pytest_diffaccel.search.decide.plan import Plan
from pytest_diffaccel.search.pipelines import Unavailable

_LOG = logging.getLogger(__name__)

# Evaluations in a row that lower no target's least loss, after which the rest is left alone.
_PATIENCE = 8
# Evaluations that a group of however few cases may have: a method with one parameter has most of its winners between
# its grid's points, and each target asks for some.
_FEW_CASES = 4 * len(TARGETS)
# Points of each method that combinations are made of: the best trade-offs of its whole space.
_SHORTLIST = 16
#: Candidates beyond the grid that are looked at again and again as more becomes known.
PROMISING = 400


class Track(Protocol):
    """Where a group's race is run: with a pipeline, or on a table of what one showed."""

    def plan(self) -> Plan:
        """The group as far as it is known now."""

    def evaluate(self, candidate: Candidate) -> None:
        """Give a candidate its first samples. Raises what goes wrong; others may go on."""

    def extend(self, candidate: Candidate, num_samples: int) -> None:
        """Give an evaluated candidate more samples."""


def settle(track: Track, num_samples: int, time_is_up: TimeIsUp = never) -> None:
    """Give those that cannot be told apart more samples.

    Args:
        track: where.
        num_samples: samples of a whole evaluation; nobody gets more.
        time_is_up: asked before each round.

    Raises:
        Exception: what the track raises.
    """
    while not time_is_up():
        known = track.plan()
        needed = Contenders(known.options, known.max_loss, known.first, num_samples).undecided()
        if not needed:
            return
        for candidate, samples in needed.items():
            track.extend(candidate, samples)


@dataclass(frozen=True)
class Explored:
    """What an exploration did.

    Attributes:
        evaluated: how many candidates it evaluated.
        left: how many it would have gone on with, had there been time.
        failed: what went wrong with others, a line each.
    """

    evaluated: int
    left: int
    failed: tuple[str, ...] = ()


def explore(
    track: Track, candidates: Sequence[Candidate], most: int, cases: int, time_is_up: TimeIsUp = never
) -> Explored:
    """Evaluate what may win, most promising first; one that fails is passed over.

    There is always something that might win by a little: a method's space has many times as many points as its grid.
    So no more are evaluated than the group has cases, all pictures of which brute force makes, or four per target of a
    small group.

    Args:
        track: where.
        candidates: those of the group that may be evaluated, whether or not they are yet.
        most: candidates that are looked at again and again as more becomes known.
        cases: how many the group has.
        time_is_up: asked before each evaluation.

    Raises:
        CudaBroken: when no further candidate can be measured by this process.
        StoreError, Unavailable: when none can be measured for now, as something is missing.
    """
    known = track.plan()
    evaluated = in_vain = 0
    failed: list[str] = []
    candidates = known.distinct(candidates)
    gentlest = known.gentlest(candidates)
    if gentlest is not None and not time_is_up() and _evaluates(track, gentlest, failed):
        evaluated, known = 1, track.plan()
    open_candidates = known.promising([candidate for candidate in candidates if candidate not in known.evaluated], most)
    enough = max(cases, _FEW_CASES)
    while evaluated < enough and in_vain < _PATIENCE and (candidate := known.best(open_candidates)) is not None:
        if time_is_up():
            return Explored(evaluated, len(known.promising(open_candidates, most)), tuple(failed))
        open_candidates.remove(candidate)
        evaluated += _evaluates(track, candidate, failed)
        before, known = known, track.plan()
        in_vain = 0 if known.improves_on(before) else in_vain + 1
    return Explored(evaluated, 0, tuple(failed))


def _evaluates(track: Track, candidate: Candidate, failed: list[str]) -> bool:
    try:
        track.evaluate(candidate)
    except (CudaBroken, StoreError, Unavailable):
        raise
    except Exception as error:
        failed.append(f"{candidate.key}: {error}")
        _LOG.warning("%s", failed[-1])
        return False
    return True


def space(known: Plan, is_taken: Callable[[Candidate], bool]) -> Iterator[Params]:
    """Points of the accelerator's space: all of a method's, or combinations of the best trade-offs of each.

    Args:
        known: the group as far as it is known.
        is_taken: whether the model can take a point of one method alone.
    """
    shortlists = []
    for method in known.accelerator.methods:
        points = [Candidate(known.cell, method.name, {method.name: point}) for point in method.space(known.cell)]
        shortlists.append([candidate for candidate in points if is_taken(candidate)])
    if len(shortlists) > 1:
        alone = [Accelerator((method,)) for method in known.accelerator.methods]
        shortlists = [_trade_offs(known, *pair) for pair in zip(alone, shortlists, strict=True)]
    return ({name: point for part in row for name, point in part.params.items()} for row in product(*shortlists))


def _trade_offs(known: Plan, alone: Accelerator, points: Sequence[Candidate]) -> list[Candidate]:
    """Those of one method's points of which no other is expected to be both faster and better, evenly spread."""
    if not points:
        return []
    speedups = known.costs.speedups(points)
    losses = known.losses_of(alone, [point.params for point in points])
    order = sorted(range(len(points)), key=lambda place: (-speedups[place].value, losses[place]))
    front, least = [], np.inf
    for place in order:
        if losses[place] < least:
            least = losses[place]
            front.append(points[place])
    chosen = np.unique(np.linspace(0, len(front) - 1, min(_SHORTLIST, len(front))).round().astype(int))
    return [front[place] for place in chosen]
