"""How many of a candidate's steps are of each kind: what its parameters say or, where pictures decide, what runs told.

A deciding method (:attr:`.Method.extremes`) is foreseen from unaccelerated generations of the cell's first prompts, for
any parameters, before one of its candidates is generated. What a candidate's own runs decided replaces that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import fmean, variance

from pytest_diffaccel.accelerators.base import Foresight
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Candidate, Group, Params
from pytest_diffaccel.measure.measurement import Block

# Standard deviation of the share of steps that a batch reuses, about that of all prompts (FLUX.1's stand-in, batches of
# four: 0.011 over all thresholds); it counts as so many batches beside those seen.
_BATCH_SD, _PRIOR_BATCHES = 0.012, 2
# By how many steps what is foreseen is off (standard deviation): accelerated residuals are others, by a little.
_FORESEEN_STEPS = 0.3


@dataclass(frozen=True)
class Counts:
    """Steps of a candidate's run.

    Attributes:
        by_kind: how many are of each kind, on average over batches.
        sd: standard deviation of the share of steps that is reused, as far as it is not known; 0 where parameters say.
    """

    by_kind: Mapping[str, float]
    sd: float = 0.0

    @property
    def steps(self) -> float:
        """All of them."""
        return sum(self.by_kind.values())


@dataclass
class StepCounts:
    """What is known of candidates' steps.

    Attributes:
        registry: the methods known.
        foresights: of a cell's first batches, by group.
        decided: the kinds of steps of each batch that a candidate generated, by candidate.
    """

    registry: Registry
    foresights: Mapping[Group, Sequence[Foresight]] = field(default_factory=dict)
    decided: Mapping[Candidate, Sequence[Sequence[str]]] = field(default_factory=dict)
    _known: dict[Candidate, Counts] = field(default_factory=dict)

    def of(self, candidate: Candidate) -> Counts:
        """Of a candidate; where pictures decide and nothing is foreseen, as if all that can be were reused."""
        if candidate not in self._known:
            self._known[candidate] = self._count(candidate)
        return self._known[candidate]

    def reused_share(self, candidate: Candidate) -> float | None:
        """The share of its steps, 0 to 1, that are not computed in full; None where parameters say what a step does."""
        accelerator = self._accelerator(candidate)
        if accelerator.deciding is None:
            return None
        counts = self.of(candidate)
        return 1 - counts.by_kind.get(_computed(accelerator, candidate.params), 0.0) / counts.steps

    def acts(self, candidate: Candidate) -> bool:
        """Whether it is known to reuse anything in the first batch; where parameters say what a step does, it does."""
        decisions = self.decisions(candidate)
        if not decisions:
            return True
        computed = _computed(self._accelerator(candidate), candidate.params)
        return any(kind != computed for kind in decisions[0])

    def decisions(self, candidate: Candidate) -> tuple[tuple[str, ...], ...]:
        """The kinds of steps of the first batches, where pictures decide: as they were decided, else as foreseen.

        Empty where parameters decide, and where nothing is foreseen.
        """
        foreseen = self.foreseen(candidate)
        decided = [tuple(kinds) for kinds in self.decided.get(candidate, ())]
        return (*decided[: len(foreseen)], *foreseen[len(decided) :])

    def _accelerator(self, candidate: Candidate) -> Accelerator:
        return self.registry.at(candidate.cell, candidate.params).for_params(candidate.params)

    def foreseen(self, candidate: Candidate) -> tuple[tuple[str, ...], ...]:
        """The kinds of steps of the first batches as foreseen, whatever its runs decided; empty where nothing is."""
        accelerator = self._accelerator(candidate)
        if accelerator.deciding is None:
            return ()
        point = candidate.params[accelerator.deciding.name]
        told = self.foresights.get(candidate.group, ())
        return tuple(accelerator.decided_kinds(candidate.params, foresight.decisions(point)) for foresight in told)

    def _count(self, candidate: Candidate) -> Counts:
        accelerator = self._accelerator(candidate)
        nominal = Counts(_by_params(accelerator, candidate))
        method = accelerator.deciding
        if method is None or not method.decides(candidate.params[method.name]):
            return nominal
        decided, foreseen = self.decided.get(candidate, ()), self.foreseen(candidate)
        # What runs decided comes first; of the batches that they did not make, what is foreseen.
        batches = [*decided, *foreseen[len(decided) :]]
        if not batches:
            return replace(nominal, sd=1.0)
        share_foreseen = 1 - len(decided) / len(batches)
        computed = _computed(accelerator, candidate.params)
        return _mean_counts(computed, batches, share_foreseen * _FORESEEN_STEPS / candidate.cell.steps)


@lru_cache(maxsize=1 << 16)
def _by_params(accelerator: Accelerator, candidate: Candidate) -> Counter[str]:
    """As the parameters alone say."""
    return Counter(accelerator.kinds(candidate.params, candidate.cell.steps))


def _mean_counts(computed_kind: str, batches: Iterable[Sequence[str]], foreseen_sd: float) -> Counts:
    """Of several batches' runs, which may be of different numbers of steps only where they were ended early."""
    counted = [Counter(kinds) for kinds in batches]
    number = len(counted)
    by_kind = {kind: fmean(one[kind] for one in counted) for kind in sorted({kind for one in counted for kind in one})}
    computed = [one[computed_kind] / one.total() for one in counted]
    seen = variance(computed) if number > 1 else 0.0
    of_batches = (_PRIOR_BATCHES * _BATCH_SD**2 + (number - 1) * seen) / (_PRIOR_BATCHES + number - 1)
    return Counts(by_kind, math.sqrt(of_batches / number + foreseen_sd**2))


def _computed(accelerator: Accelerator, params: Params) -> str:
    """The kind of its steps in which nothing is reused."""
    (kind,) = accelerator.decided_kinds(params, [[False]])
    return kind


def decided_in(blocks: Iterable[Block]) -> list[Sequence[str]]:
    """The kinds of steps of each run of some blocks."""
    return [run.kinds for block in blocks for run in block.runs]
