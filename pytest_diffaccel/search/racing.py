"""The race of a group: what its cases left open is evaluated, most promising first, until the winners are clear."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import product

import numpy as np

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.search.attempt import evaluate
from pytest_diffaccel.search.evaluation import extend
from pytest_diffaccel.search.plan import Plan
from pytest_diffaccel.search.workbench import Workbench

_LOG = logging.getLogger(__name__)

# Evaluations in a row that lower no target's least loss, after which the rest is left alone.
_PATIENCE = 8
# Points of each method that combinations are made of: the best trade-offs of its whole space.
_SHORTLIST = 16
# Candidates beyond the grid that are looked at again and again as more becomes known.
_PROMISING = 400


def plan(bench: Workbench, cell: Cell, accelerator: str) -> Plan:
    """The group as far as it is known now."""
    knowledge = bench.knowledge(cell, accelerator)
    (known,) = bench.registry.select([accelerator])
    return Plan(
        registry=bench.registry,
        accelerator=known,
        cell=cell,
        costs=knowledge.costs,
        evaluated=knowledge.losses(cell),
        max_loss=bench.settings.max_quality_loss,
        first=bench.first_samples,
    )


def race(bench: Workbench, cell: Cell, accelerator: str) -> int:
    """Evaluate what may win, then give those that cannot be told apart more samples.

    A candidate that fails is left out; why is in the store.

    Returns:
        How many candidates were evaluated beyond those of the cases.

    Raises:
        Exception: when a candidate that was evaluated before fails now.
    """
    evaluated = _explore(bench, cell, accelerator)
    while needed := plan(bench, cell, accelerator).undecided(bench.settings.num_samples):
        for candidate, samples in needed.items():
            known = bench.knowledge(cell, accelerator).find(candidate)
            if known is not None:
                bench.keep(extend(bench, known, samples))
    return evaluated


def _explore(bench: Workbench, cell: Cell, accelerator: str) -> int:
    known = plan(bench, cell, accelerator)
    open_candidates = _open_candidates(bench, known)
    evaluated = in_vain = 0
    while in_vain < _PATIENCE and (candidate := known.best(open_candidates)) is not None:
        open_candidates.remove(candidate)
        try:
            evaluate(bench, candidate)
            evaluated += 1
        except Exception as error:
            _LOG.warning("%s: %s", candidate.key, error)
        before, known = known, plan(bench, cell, accelerator)
        in_vain = 0 if known.improves_on(before) else in_vain + 1
    return evaluated


def _open_candidates(bench: Workbench, known: Plan) -> list[Candidate]:
    """Those not tried yet: of the grid, and of the whole space the most promising."""
    settings, accelerator = bench.settings, known.accelerator
    rows = list(accelerator.grid(known.cell, coarse=settings.coarse))
    if not settings.coarse:
        rows += _space(known)
    failures = bench.store.failures(bench.environment(known.cell).id, bench.sampling(known.cell, "search"))
    tried = {one.key for one in known.evaluated} | {failure.candidate.key for failure in failures}
    fresh = {
        one.key: one for params in rows if (one := Candidate(known.cell, accelerator.name, params)).key not in tried
    }
    return known.promising(list(fresh.values()), _PROMISING)


def _space(known: Plan) -> Iterator[Params]:
    """Points of the accelerator's space: all of a method's, or combinations of the best trade-offs of each."""
    accelerator = known.accelerator
    names = [method.name for method in accelerator.methods]
    if len(names) == 1:
        return ({names[0]: point} for point in accelerator.methods[0].space(known.cell))
    shortlists = [_trade_offs(known, Accelerator((method,))) for method in accelerator.methods]
    return ({name: params[name] for name, params in zip(names, row, strict=True)} for row in product(*shortlists))


def _trade_offs(known: Plan, alone: Accelerator) -> list[Params]:
    """Points of one method of which no other is expected to be both faster and better, evenly spread."""
    rows: list[Params] = [{alone.name: point} for point in alone.methods[0].space(known.cell)]
    speedups = known.costs.speedups([Candidate(known.cell, alone.name, params) for params in rows])
    losses = known.losses_of(alone, rows)
    order = sorted(range(len(rows)), key=lambda place: (-speedups[place].value, losses[place]))
    front, least = [], np.inf
    for place in order:
        if losses[place] < least:
            least = losses[place]
            front.append(rows[place])
    chosen = np.unique(np.linspace(0, len(front) - 1, min(_SHORTLIST, len(front))).round().astype(int))
    return [front[place] for place in chosen]
