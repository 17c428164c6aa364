"""Short runs that hold the kinds of steps of many candidates: what a calibration times in place of those."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.search.predict.step_counts import StepCounts

# Denoiser steps of a short run. In 8 steps T-GATE's reuse before the gate shows, which it does not in 6; kinds that
# come in no such run are looked for in longer ones.
_STEPS = (8, 12)


@dataclass(frozen=True)
class ShortRuns:
    """Runs of few steps, and which of them tells most of a candidate's speed.

    Attributes:
        registry: the methods known.
        runs: candidates whose cells have few steps, shortest first.
        counts: how many steps of a candidate are of which kind.
    """

    registry: Registry
    runs: tuple[Candidate, ...]
    counts: StepCounts

    @classmethod
    def of(cls, registry: Registry, candidates: Sequence[Candidate], known: StepCounts | None = None) -> ShortRuns:
        """The methods' own grids at few steps, and at more of them as long as a kind is in none.

        Kinds that the full grids lack are looked for in the coarse ones, then in the candidates' own parameters: they
        may be of the space beyond all grids. Methods that decide by the picture show their kinds at their extremes.

        Args:
            registry: the methods known.
            candidates: what is to be told of; of one pipe, at least one.
            known: what is known of the candidates' steps; None: what their parameters say.
        """
        counts = known or StepCounts(registry)
        missing = {kind for candidate in candidates for kind in counts.of(candidate).by_kind}
        names = {candidate.accelerator for candidate in candidates}
        runs: dict[str, Candidate] = {}
        for steps in (*_STEPS, *sorted({candidate.cell.steps for candidate in candidates})):
            cell = replace(candidates[0].cell, steps=steps)
            full, coarse = (
                [
                    Candidate(cell, accelerator.name, params)
                    for accelerator in registry.select_at(cell, names)
                    for params in accelerator.extremes or accelerator.grid(cell, coarse=size)
                ]
                for size in (False, True)
            )
            for made in (
                full,
                coarse,
                [replace(candidate, cell=cell) for candidate in candidates if candidate.cell.steps >= steps],
            ):
                useful = [run for run in made if _is_valid(registry, run) and missing & counts.of(run).by_kind.keys()]
                runs |= {run.key: run for run in useful}
                missing -= {kind for run in useful for kind in counts.of(run).by_kind}
            if not missing:
                break
        return cls(registry, tuple(runs.values()), counts)

    def without(self, keys: set[str]) -> ShortRuns:
        """The same less the runs of these keys: those that do not work."""
        left = tuple(run for run in self.runs if run.key not in keys)
        # Most often nothing fails: then the kinds of all runs need not be counted anew.
        return self if len(left) == len(self.runs) else replace(self, runs=left)

    def best_for(self, candidate: Candidate) -> Candidate | None:
        """The run that holds most of the kinds that the candidate's steps are; None where none holds any.

        A kind counts by its share of the candidate's steps, and by the logarithm of how often the run makes it.
        """
        wanted = self.counts.of(candidate).by_kind
        best, most = None, 0.0
        for run, counts in self._counted:
            if run.accelerator == candidate.accelerator:
                held = sum(count * math.log1p(counts[kind]) for kind, count in wanted.items() if kind in counts)
                if held > most:
                    best, most = run, held
        return best

    @cached_property
    def _counted(self) -> list[tuple[Candidate, Mapping[str, float]]]:
        return [(run, self.counts.of(run).by_kind) for run in self.runs]


def _is_valid(registry: Registry, candidate: Candidate) -> bool:
    try:
        registry.for_params(candidate.params).check(candidate.params, candidate.cell.steps)
    except InvalidParams:
        return False
    return True
