"""Speed-ups of all candidates from what some of them showed of the costs of their kinds of steps.

A DeepCache candidate with interval 3 and one with interval 5 make the same two kinds of calls, only in other numbers;
pooled over all candidates, cells and step counts of a pipe, a kind's cost is known far better than any one of them
could measure it. And kinds are alike: what T-GATE saves on a full step it saves on a shallow one, in proportion. So
the logarithm of a kind's cost is a Gaussian process over the features of its methods and their products, and kinds
that were never timed are predicted, with an interval that says how well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np

from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Block, Interval, SpeedClock
from pytest_diffaccel.search.predict.kind_costs import BASELINE, Cost, KindCosts
from pytest_diffaccel.search.predict.regression import Array, Regression
from pytest_diffaccel.search.predict.step_counts import Counts, StepCounts

# Standard deviations of the logarithm of a kind's cost. What a method's feature may do to it, before anything is
# timed: from a tenth of it to all of it.
_FEATURE_SD = 1.5
# How far two methods together may be from the product of each, and a kind from what its features say.
_TOGETHER_SD, _OWN_SD = 0.15, 0.02
# What lies outside the steps, where this accelerator was never timed: another's, and this much of it to either side.
_UNKNOWN_FIXED_SD = 0.25
_NORMAL_95 = 1.96
# A normal variable's standard deviation, as a multiple of the median of its absolute value.
_SD_OF_MEDIAN = 1.4826
# Candidates predicted at once: bounds the covariance of all their kinds.
_CHUNK = 64


class CostModel:
    """Costs of kinds of steps, relative to a step of the unaccelerated pipeline, and what follows for candidates.

    Attributes:
        registry: the methods, whose features kinds have.
        counts: how many steps of a candidate are of which kind.
        kinds: cost of every kind that was timed, by kind.
        fixed: cost of what is not a step, by accelerator; ``""`` is the baseline.
    """

    def __init__(self, registry: Registry, costs: KindCosts, counts: StepCounts | None = None) -> None:
        self.registry = registry
        self.counts = counts or StepCounts(registry)
        self.kinds = costs.kinds
        self.fixed = costs.fixed
        self._errors = costs.covariance
        self._search_sd = costs.search_sd
        self._predicted: dict[Candidate, Interval] = {}

    @classmethod
    def fit(
        cls,
        registry: Registry,
        timed: Iterable[tuple[Candidate, Sequence[Block]]],
        clock: SpeedClock = "wall",
        counts: StepCounts | None = None,
    ) -> CostModel:
        """Learn from timed blocks.

        Args:
            registry: the methods known.
            timed: blocks of one environment; candidates of any of its cells and accelerators.
            clock: that timed them.
            counts: how many steps of a candidate are of which kind; None: what its parameters say.
        """
        return cls(registry, KindCosts.from_blocks(timed, clock), counts)

    def speedups(self, candidates: Sequence[Candidate]) -> list[Interval]:
        """Predicted speed-up of each candidate with its 95% interval; very wide where nothing is known.

        Where pictures decide how many steps are reused, the interval holds how far that may be off.
        """
        new = [candidate for candidate in candidates if candidate not in self._predicted]
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            self._predicted.update(zip(chunk, self._speedups(chunk), strict=True))
        return [self._predicted[candidate] for candidate in candidates]

    def of_fewer_steps(self, steps: int, fewer: int) -> Interval:
        """Speed-up of the unaccelerated pipeline with ``fewer`` steps instead of ``steps``, with its 95% interval."""
        fixed = self.fixed.get(BASELINE, Cost(0.0, _UNKNOWN_FIXED_SD**2, 0))
        outside = math.exp(fixed.log_ratio)
        speedup = (steps + outside) / (fewer + outside)
        # What lies outside the steps is in both times: only the difference of its shares counts.
        half = _NORMAL_95 * math.sqrt(fixed.variance) * (outside / (fewer + outside) - outside / (steps + outside))
        return Interval(speedup, speedup * math.exp(-half), speedup * math.exp(half))

    @cached_property
    def widening(self) -> float:
        """Factor on all intervals, at least 1: how much further off predictions were than they said they would be.

        By the median: a single block in which something else ran says little of all the others.
        """
        if not self.kinds:
            return 1.0
        return max(1.0, _SD_OF_MEDIAN * float(np.median(np.abs(self._regression.surprises))))

    @cached_property
    def _regression(self) -> Regression:
        kinds = list(self.kinds)
        values = np.array([cost.log_ratio for cost in self.kinds.values()])
        return Regression(self._covariance(kinds, kinds), values, self._errors)

    def _covariance(self, one: Sequence[str], other: Sequence[str]) -> Array:
        """Prior covariance of the log costs of kinds, (len(one), len(other))."""
        features = [_features(self.registry, kind) for kind in (*one, *other)]
        alike: dict[str, Array] = {}
        for method in {name for row in features for name in row}:
            names = sorted({name for row in features for name in row.get(method, ())})
            columns = dict(zip(names, range(len(names)), strict=True))
            table = np.zeros((len(features), len(columns)))
            for values, row in zip(table, features, strict=True):
                for name, value in row.get(method, {}).items():
                    values[columns[name]] = value
            alike[method] = table[: len(one)] @ table[len(one) :].T
        covariance: Array = _OWN_SD**2 * (np.array(one)[:, None] == np.array(other)[None, :])
        for both in alike.values():
            covariance = covariance + _FEATURE_SD**2 * both
        for left, right in combinations(alike.values(), 2):
            covariance = covariance + _TOGETHER_SD**2 * left * right
        return covariance

    def _log_costs(self, kinds: Sequence[str]) -> tuple[Array, Array]:
        """Mean and covariance of the log costs of kinds; nothing timed yet: as dear as a plain step, or anything."""
        own = self._covariance(kinds, kinds)
        if not self.kinds:
            return np.zeros(len(kinds)), own
        return self._regression.predict(self._covariance(kinds, list(self.kinds)), own)

    def _speedups(self, candidates: Sequence[Candidate]) -> list[Interval]:
        calls = [self.counts.of(candidate) for candidate in candidates]
        kinds = sorted({kind for row in calls for kind in row.by_kind})
        counts = np.array([[row.by_kind.get(kind, 0) for kind in kinds] for row in calls], dtype=float)
        log_costs, covariance = self._log_costs(kinds)
        costs = dict(zip(kinds, np.exp(log_costs).tolist(), strict=True))
        parts = counts * np.exp(log_costs)
        baseline_fixed = self.fixed.get(BASELINE, Cost(0.0, _UNKNOWN_FIXED_SD**2, 0))
        found = []
        for candidate, steps, own in zip(candidates, parts, calls, strict=True):
            fixed = self._fixed(candidate.accelerator)
            baseline_s = math.exp(baseline_fixed.log_ratio) + candidate.cell.steps
            total = float(steps.sum()) + math.exp(fixed.log_ratio)
            shares = steps / total
            # The logarithm of a sum varies as its terms' logarithms, weighted by their shares.
            variance = self._search_sd**2 + (
                float(shares @ covariance @ shares)
                + (math.exp(fixed.log_ratio) / total) ** 2 * fixed.variance
                + (math.exp(baseline_fixed.log_ratio) / baseline_s) ** 2 * baseline_fixed.variance
                # So much is at stake in each step of which it is not known whether it is reused.
                + (own.sd * own.steps * _saved(own, costs) / total) ** 2
            )
            half = _NORMAL_95 * self.widening * math.sqrt(max(0.0, variance))
            speedup = baseline_s / total
            found.append(Interval(speedup, speedup * math.exp(-half), speedup * math.exp(half)))
        return found

    def _fixed(self, accelerator: str) -> Cost:
        if accelerator in self.fixed:
            return self.fixed[accelerator]
        known = [cost.log_ratio for cost in self.fixed.values()]
        return Cost(max(known, default=0.0), _UNKNOWN_FIXED_SD**2, 0)


def _saved(counts: Counts, costs: Mapping[str, float]) -> float:
    """By how much the dearest of a candidate's kinds of steps costs more than the cheapest, in plain steps."""
    own = [costs[kind] for kind in counts.by_kind]
    return max(own) - min(own)


@lru_cache(maxsize=1 << 16)
def _features(registry: Registry, kind: str) -> dict[str, Mapping[str, float]]:
    return registry.features(kind)
