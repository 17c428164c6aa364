"""What each kind of step costs, from timed blocks.

A kind's cost in a block is the low quantile of its step times there, since disturbance only ever adds time, as a
multiple of what an unaccelerated step cost about then; its cost is the median over blocks, but no farther above their
low quantile than noise explains that unaccelerated steps show, too. What "about then" means is learnt from the blocks
themselves: where the machine drifts, the block's own baseline tells it best; where it is merely noisy, the baselines of
several minutes do. So is how much a block's figure varies, and by how much the low quantile of few steps lies above
that of many.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.statistics import low_quantile_of
from pytest_diffaccel.search.regression import Array

#: Name of the baseline among accelerators.
BASELINE = ""
# Unaccelerated runs before and after a block that tell what a step cost about then: a few minutes of a search.
_WINDOW = 8
# A figure from this many steps or fewer varies more than one from many.
_FEW_STEPS = 3
# Before this many figures are there, a block's is taken to vary as on 2 cores, where searches of embedded pipelines
# showed 0.03 for few steps and 0.02 for many while the machine was quiet, and 0.07 and 0.045 beside other work
# (standard deviation of the logarithm).
_ENOUGH_FIGURES, _TYPICAL_SD = 20, {True: 0.04, False: 0.025}
# A median varies this much more than a mean; a standard deviation is this many times the median absolute deviation.
_MEDIAN_SPREAD, _SD_OF_MAD = 1.25, 1.4826
# What no number of blocks averages away: that a kind's cost is not the same under every load.
_LEAST_SD = 0.005
_BIAS_DRAWS = 20
# How far the median of figures may lie above their low quantile before noise that also hits the baseline does not
# explain it: as multiples of the baseline's standard deviation, of many steps and of few. A normal variable's low
# quantile lies 1.28 standard deviations below its median.
_MOST_ABOVE_LOW = {True: 4.5, False: 3.0}
# Of what lies above that, the share by which the low quantile itself may still be too high (standard deviation).
_LEFT_IN_LOW = 0.25


@dataclass(frozen=True)
class Cost:
    """A cost relative to an unaccelerated step.

    Attributes:
        log_ratio: its logarithm.
        variance: of that.
        blocks: how many blocks it is from.
    """

    log_ratio: float
    variance: float
    blocks: int


@dataclass(frozen=True)
class _Figure:
    """What one block shows of one kind: the logarithm of the low quantile of its step times, in seconds."""

    kind: str
    baseline: RunTiming
    log_s: float
    steps: int


@dataclass(frozen=True)
class KindCosts:
    """Costs of all that was timed.

    Attributes:
        kinds: by kind of step.
        fixed: of what is not a step, by accelerator; :data:`BASELINE` for the unaccelerated pipeline's.
    """

    kinds: Mapping[str, Cost]
    fixed: Mapping[str, Cost]

    @classmethod
    def from_blocks(cls, timed: Iterable[tuple[Candidate, Sequence[Block]]]) -> KindCosts:
        """Learn from the blocks of one environment, of any of its candidates."""
        pairs = [(candidate.accelerator, block) for candidate, own in timed for block in own]
        pairs.sort(key=lambda pair: pair[1].started_at)
        runs = list(dict.fromkeys(block.baseline for _, block in pairs))
        figures = list(_figures([block for _, block in pairs], _bias(runs)))
        own = {run: math.log(low_quantile_of(run.step_s)) for run in runs}
        around = _around(own)
        floors = _floors(own, around, figures)
        noise = _sd_of([abs(own[run] - around[run]) for run in runs], _TYPICAL_SD[False])
        return cls(_kind_costs(figures, floors, noise), _fixed_costs(pairs, floors))


def _bias(runs: Sequence[RunTiming]) -> dict[int, float]:
    """How far the low quantile of so many steps of a run lies above that of all its steps (log), on average."""
    generator = np.random.default_rng(0)
    all_steps = [(np.array(run.step_s), low_quantile_of(run.step_s)) for run in runs]
    longest = max((len(steps) for steps, _ in all_steps), default=0)
    bias = {}
    for count in range(1, longest + 1):
        # A few runs tell it; all of a long search would take a while.
        long_enough = [pair for pair in all_steps if len(pair[0]) >= count][-_BIAS_DRAWS:]
        above = [
            math.log(low_quantile_of(generator.choice(steps, count, replace=False).tolist()) / of_all)
            for steps, of_all in long_enough
        ]
        bias[count] = float(np.mean(above))
    return bias


def _figures(blocks: Iterable[Block], bias: Mapping[int, float]) -> Iterable[_Figure]:
    for block in blocks:
        times: defaultdict[str, list[float]] = defaultdict(list)
        for run in block.runs:
            for kind, step_s in zip(run.kinds, run.step_s, strict=True):
                times[kind].append(step_s)
        for kind, values in times.items():
            log_s = math.log(low_quantile_of(values)) - bias.get(len(values), 0.0)
            yield _Figure(kind, block.baseline, log_s, len(values))


def _around(own: Mapping[RunTiming, float]) -> dict[RunTiming, float]:
    """The level of the unaccelerated runs around each, from the levels of all in the order in which they were made."""
    levels = list(own.values())
    return {run: median(levels[max(0, place - _WINDOW) : place + _WINDOW + 1]) for place, run in enumerate(own)}


def _floors(
    own: Mapping[RunTiming, float], around: Mapping[RunTiming, float], figures: Sequence[_Figure]
) -> dict[RunTiming, float]:
    """Logarithm of what an unaccelerated step cost about the time of each unaccelerated run, in seconds.

    Between the run's own level and that of the runs around it, as far as the other runs of its block went along with
    it.
    """
    moved = went_along = 0.0
    for same in _by_kind(figures).values():
        moves = _centred([own[figure.baseline] - around[figure.baseline] for figure in same])
        others = _centred([figure.log_s - around[figure.baseline] for figure in same])
        steps = np.array([figure.steps for figure in same])
        moved += float(steps @ moves**2)
        went_along += float(steps @ (moves * others))
    share = min(1.0, max(0.0, went_along / moved)) if moved > 0 else 1.0
    return {run: around[run] + share * (own[run] - around[run]) for run in own}


def _centred(values: Sequence[float]) -> Array:
    centred: Array = np.array(values) - np.mean(values)
    return centred


def _kind_costs(figures: Sequence[_Figure], floors: Mapping[RunTiming, float], noise: float) -> dict[str, Cost]:
    """Cost of every kind; ``noise`` is the standard deviation of an unaccelerated run's level about those around it."""
    by_kind = _by_kind(figures)
    logs = {kind: [figure.log_s - floors[figure.baseline] for figure in same] for kind, same in by_kind.items()}
    is_of_few = {kind: median(figure.steps for figure in same) <= _FEW_STEPS for kind, same in by_kind.items()}
    apart: dict[bool, list[float]] = {True: [], False: []}
    for kind, values in logs.items():
        if len(values) > 2:
            scale = math.sqrt(len(values) / (len(values) - 1))
            apart[is_of_few[kind]] += [scale * abs(value - median(values)) for value in values]
    sds = {few: _sd_of(values, _TYPICAL_SD[few]) for few, values in apart.items()}
    return {
        kind: _undisturbed(values, _cost(values, sds[is_of_few[kind]]), _MOST_ABOVE_LOW[is_of_few[kind]] * noise)
        for kind, values in logs.items()
    }


def _sd_of(deviations: Sequence[float], typical: float) -> float:
    """Standard deviation of what is so far from its median; what is typical where there are few."""
    return _SD_OF_MAD * median(deviations) if len(deviations) >= _ENOUGH_FIGURES else typical


def _undisturbed(values: Sequence[float], cost: Cost, most: float) -> Cost:
    """The cost without what slows this kind of step alone, as waiting for the host does where the baseline never waits.

    Disturbance only adds time: so the low quantile of the figures tells where undisturbed ones lie, and they lie at
    most so far above it as the baseline's own noise explains. The farther the median does, the less is known.

    Args:
        values: logarithms, one a block.
        cost: from their median.
        most: how far the median lies above the low quantile by noise alone.
    """
    excess = cost.log_ratio - low_quantile_of(values) - most
    if excess <= 0:
        return cost
    return Cost(cost.log_ratio - excess, cost.variance + (_LEFT_IN_LOW * excess) ** 2, cost.blocks)


def _fixed_costs(pairs: Sequence[tuple[str, Block]], floors: Mapping[RunTiming, float]) -> dict[str, Cost]:
    logs = {BASELINE: [math.log(run.fixed_s) - floor for run, floor in floors.items()]} if floors else {}
    for accelerator, block in pairs:
        own = logs.setdefault(accelerator, [])
        own += [math.log(run.fixed_s) - floors[block.baseline] for run in block.runs]
    return {name: _cost(values, _TYPICAL_SD[True]) for name, values in logs.items()}


def _cost(values: Sequence[float], sd: float) -> Cost:
    spread = _MEDIAN_SPREAD if len(values) > 2 else 1.0
    return Cost(median(values), (spread * sd) ** 2 / len(values) + _LEAST_SD**2, len(values))


def _by_kind(figures: Sequence[_Figure]) -> dict[str, list[_Figure]]:
    same: defaultdict[str, list[_Figure]] = defaultdict(list)
    for figure in figures:
        same[figure.kind].append(figure)
    return same
