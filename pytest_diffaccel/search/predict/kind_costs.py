"""What each kind of step costs, from timed blocks.

A run's figure of a kind is the mean of its step times, as a multiple of what an unaccelerated step cost about then.
That is told by all runs near in time, of any candidate, as far as they go along with each other (:mod:`.additive`): a
full step of DeepCache costs nearly what a plain one does, wherever it is met. Means, not fast steps: on a machine whose
speed has two modes, short steps meet the fast one more often than long steps do. But a cost lies no farther above the
low quantile of its figures than noise explains that unaccelerated steps show, too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Block, RunTiming, SpeedClock
from pytest_diffaccel.measure.statistics import low_quantile_of, winsorised_mean
from pytest_diffaccel.search.predict.additive import Noise, Runs, Solution, fit
from pytest_diffaccel.search.predict.regression import Array

#: Name of the baseline among accelerators.
BASELINE = ""
# A figure from this many steps or fewer varies more than one from many.
_FEW_STEPS = 3
# How far a cost may lie above the low quantile of its figures before noise that also hits the baseline does not explain
# it: as multiples of the baseline's standard deviation, of many steps and of few. A normal variable's low quantile lies
# 1.28 standard deviations below its median.
_MOST_ABOVE_LOW = {True: 4.5, False: 3.0}
# Of what lies above that, the share by which the low quantile itself may still be too high (standard deviation).
_LEFT_IN_LOW = 0.25
# Unaccelerated runs before and after one that tell how much it varies; before so many are there, the clock does.
_WINDOW, _ENOUGH_RUNS = 8, 20
# What is expected of what lies outside the steps counts as so many runs; what is further off than three standard
# deviations counts as that far.
_FIXED_RUNS, _FIXED_MOST = 3, 3.0
# A standard deviation is this many times the median absolute deviation.
_SD_OF_MAD = 1.4826


@dataclass(frozen=True)
class Expected:
    """How much times vary by a clock, before any tell (standard deviations of their logarithms).

    Attributes:
        noise: of steps, runs and the machine.
        plain: of unaccelerated runs.
        fixed: of what lies outside the steps of one run.
        least: what no number of runs averages away: that a kind's cost is not the same under every load.
        search: how far two searches lie apart though nothing changed.
    """

    noise: Noise
    plain: float
    fixed: float
    least: float
    search: float


#: By clock. The wall clock's lies between a quiet machine and one that others use. Of two searches of one cell, one
#: after the other on two cores of a shared machine, a neighbour made all steps of the second a tenth slower, and the
#: same candidates' speed-ups were 1.9% apart (standard deviation; python -m benchmarks.repeatability); on a quiet
#: machine 0.2% to 1.2%. By a GPU's own time ratios of kinds varied by 0.1% to 0.4% from run to run, and sessions of the
#: gate lay 0.1% apart (an H100 of a shared host; docs/ci.md).
EXPECTED: Mapping[SpeedClock, Expected] = {
    "wall": Expected(Noise(step=0.04, run=0.03, drift=0.05), plain=0.025, fixed=0.04, least=0.005, search=0.013),
    "device": Expected(Noise(step=0.004, run=0.003, drift=0.005), plain=0.004, fixed=0.01, least=0.001, search=0.002),
}


@dataclass(frozen=True)
class Cost:
    """A cost relative to an unaccelerated step.

    Attributes:
        log_ratio: its logarithm.
        variance: of that.
        blocks: how many runs it is from.
    """

    log_ratio: float
    variance: float
    blocks: int


@dataclass(frozen=True)
class KindCosts:
    """Costs of all that was timed.

    Attributes:
        kinds: by kind of step.
        covariance: of the errors of their logarithms, in the order of ``kinds``, (kinds, kinds): all are relative to
            the same unaccelerated steps, and kinds of one run share what that run was off by.
        fixed: of what is not a step, by accelerator; :data:`BASELINE` for the unaccelerated pipeline's.
        search_sd: how far this search may lie from another though nothing changed (standard deviation of a speed-up's
            logarithm).
    """

    kinds: Mapping[str, Cost]
    covariance: Array
    fixed: Mapping[str, Cost]
    search_sd: float = 0.0

    @classmethod
    def from_blocks(cls, timed: Iterable[tuple[Candidate, Sequence[Block]]], clock: SpeedClock = "wall") -> KindCosts:
        """Learn from the blocks of one environment, of any of its candidates; those of one group share a baseline.

        Args:
            timed: the blocks.
            clock: that timed them.
        """
        expected = EXPECTED[clock]
        pairs = [(candidate.accelerator, block) for candidate, own in timed for block in own]
        if not pairs:
            return cls({}, np.zeros((0, 0)), {}, expected.search)
        pairs.sort(key=lambda pair: pair[1].started_at)
        groups = {block.baseline: 0 for _, block in pairs}
        groups = {baseline: place for place, baseline in enumerate(groups)}
        rows = [(BASELINE, baseline, group) for baseline, group in groups.items()]
        rows += [(name, run, groups[block.baseline]) for name, block in pairs for run in block.runs]
        plain = pairs[0][1].baseline.kinds[0]
        names = list(dict.fromkeys([plain, *(kind for _, run, _ in rows for kind in run.kinds)]))
        runs = _runs([run for _, run, _ in rows], [group for _, _, group in rows], names)
        found = fit(runs, expected.noise)
        plain_sd = _plain_sd(runs.logs[: len(groups), 0].tolist(), expected.plain)
        # The unaccelerated step's own cost is 1 by definition, and known of candidates that have such steps.
        timed_kinds = {kind for name, run, _ in rows if name != BASELINE for kind in run.kinds}
        places = [place for place, kind in enumerate(names) if kind in timed_kinds]
        costs = {names[place]: _cost(runs, found, place, plain_sd, expected.least) for place in places}
        covariance = found.covariance[np.ix_(places, places)]
        np.fill_diagonal(covariance, [cost.variance for cost in costs.values()])
        fixed = _fixed_costs([(name, run) for name, run, _ in rows], found, expected)
        # What lasts for a search shows in it, too: where all runs agree, no neighbour came and went.
        return cls(costs, covariance, fixed, min(expected.search, found.noise.run))


def _runs(runs: Sequence[RunTiming], groups: Sequence[int], names: Sequence[str]) -> Runs:
    columns = {kind: place for place, kind in enumerate(names)}
    logs, steps = np.zeros((2, len(runs), len(names)))
    for row, run in enumerate(runs):
        times: defaultdict[str, list[float]] = defaultdict(list)
        for kind, step_s in zip(run.kinds, run.step_s, strict=True):
            times[kind].append(step_s)
        for kind, values in times.items():
            logs[row, columns[kind]] = math.log(winsorised_mean(values))
            steps[row, columns[kind]] = len(values)
    return Runs(logs, steps, np.array(groups))


def _cost(runs: Runs, found: Solution, place: int, plain_sd: float, least_sd: float) -> Cost:
    shown = runs.steps[:, place] > 0
    cost = Cost(
        float(found.costs[place]), float(found.covariance[place, place]) + least_sd**2, int(np.count_nonzero(shown))
    )
    is_of_few = float(np.median(runs.steps[shown, place])) <= _FEW_STEPS
    return _undisturbed(found.figures[shown, place].tolist(), cost, _MOST_ABOVE_LOW[is_of_few] * plain_sd)


def _plain_sd(logs: Sequence[float], typical: float) -> float:
    """Standard deviation of unaccelerated runs about those around them, from their logarithms in the order of time."""
    around = [median(logs[max(0, place - _WINDOW) : place + _WINDOW + 1]) for place in range(len(logs))]
    apart = [abs(own - about) for own, about in zip(logs, around, strict=True)]
    return _SD_OF_MAD * median(apart) if len(apart) >= _ENOUGH_RUNS else typical


def _undisturbed(values: Sequence[float], cost: Cost, most: float) -> Cost:
    """The cost without what slows this kind of step alone, as waiting for the host does where the baseline never waits.

    Disturbance only adds time: so the low quantile of the figures tells where undisturbed ones lie, and they lie at
    most so far above it as the baseline's own noise explains. Where the cost lies farther, those in the middle may do,
    and the less is known.

    Args:
        values: logarithms, one per run.
        cost: from all of them.
        most: how far the cost lies above the low quantile by noise alone.
    """
    excess = cost.log_ratio - low_quantile_of(values) - most
    if excess <= 0:
        return cost
    lower = min(cost.log_ratio - excess, median(values))
    return Cost(lower, cost.variance + (_LEFT_IN_LOW * excess) ** 2, cost.blocks)


def _fixed_costs(rows: Sequence[tuple[str, RunTiming]], found: Solution, expected: Expected) -> dict[str, Cost]:
    logs: defaultdict[str, list[float]] = defaultdict(list)
    for (name, run), level in zip(rows, found.levels + found.deviations, strict=True):
        if run.whole:
            logs[name].append(math.log(run.fixed_s) - float(level))
    return {name: _fixed_cost(np.array(values), expected) for name, values in logs.items()}


def _fixed_cost(values: Array, expected: Expected) -> Cost:
    """Mean of runs, robust against the few in which something else ran."""
    middle, count = float(np.median(values)), len(values)
    seen_sd = _SD_OF_MAD * float(np.median(np.abs(values - middle)))
    variance = (_FIXED_RUNS * expected.fixed**2 + (count - 1) * seen_sd**2) / (_FIXED_RUNS + count - 1)
    most = _FIXED_MOST * math.sqrt(variance)
    return Cost(
        float(np.clip(values, middle - most, middle + most).mean()), variance / count + expected.least**2, count
    )
