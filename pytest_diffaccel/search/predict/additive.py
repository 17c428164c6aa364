"""Step times as a sum of logarithms: the machine's level about then, the run's own deviation, and the kind's cost.

A linear mixed model (Henderson, Biometrics 31, 1975): the level wanders from each group of neighbouring runs to the
next, a run deviates from it as a whole, and each kind of step in it once more. How much each of the three varies is
learnt from the runs themselves: where the machine drifts, a group's own runs tell its level; where it is merely noisy,
those of the groups around it do, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded

from pytest_diffaccel.search.predict.regression import Array

# Groups that tell how much things vary: the latest. All of a long search would take a while.
_TELLING = 60
# What is further off than this many standard deviations counts as so much less certain.
_DOUBTED = 2.0
# A standard deviation is this many times the median absolute deviation.
_SD_OF_MAD = 1.4826
_PASSES = 2
# Factors on standard deviations that are tried, one after the other.
_STEPS = (2.0, 1.4)
_LEAST_SD, _MOST_SD = 1e-4, 2.0


@dataclass(frozen=True)
class Runs:
    """What runs showed of kinds of steps.

    Attributes:
        logs: logarithm of the mean time of a run's steps of a kind, (runs, kinds); the first kind costs nothing, the
            others' costs are relative to it.
        steps: how many steps that is from, (runs, kinds); 0 where the run has none of the kind.
        groups: numbers of the runs' groups, (runs,), from 0 in the order of time; each group has a run of the first
            kind.
    """

    logs: Array
    steps: Array
    groups: NDArray[np.intp]

    def latest(self, groups: int) -> NDArray[np.bool_]:
        """Which runs are of the latest groups, (runs,)."""
        latest: NDArray[np.bool_] = self.groups > self.groups.max() - groups
        return latest


@dataclass(frozen=True)
class Noise:
    """How much logarithms vary (standard deviations).

    Attributes:
        step: one step of a kind, beside its run.
        run: a run, beside its group's level.
        drift: a group's level, beside the level of the one before.
    """

    step: float
    run: float
    drift: float


# How sure it is what is typical of a clock: standard deviation of the logarithm.
_TYPICAL_SD = 1.0


@dataclass(frozen=True)
class Doubt:
    """Factors on variances, at least 1.

    Attributes:
        run: of a run's deviation, (runs,).
        figure: of what a run shows of a kind, (runs, kinds).
    """

    run: Array
    figure: Array


@dataclass(frozen=True)
class Solution:
    """The costs most likely, given how much things vary.

    Attributes:
        costs: logarithm of each kind's cost, (kinds,); the first is 0.
        covariance: of their errors, (kinds, kinds).
        levels: logarithm of the time of a step of the first kind about the time of each run, (runs,).
        deviations: of runs from their groups' level, (runs,).
        errors: of what runs show of kinds beside that, (runs, kinds); 0 where they show nothing.
        figures: logarithm of each kind's cost as each run shows it, relative to the level about then or, where the
            run's other kinds say that it was faster, to the run's, (runs, kinds). Not where they say that it was
            slower: one of them may have been held up.
        misfit: minus the logarithm of the likelihood (restricted to what costs do not explain), plus a constant.
        noise: how much things vary.
    """

    costs: Array
    covariance: Array
    levels: Array
    deviations: Array
    errors: Array
    figures: Array
    misfit: float
    noise: Noise


def fit(runs: Runs, typical: Noise) -> Solution:
    """Costs, where how much things vary is learnt; what is far from all the rest counts little for either.

    Args:
        runs: at least one.
        typical: how much things vary by the clock that timed them, about.
    """
    doubt, noise = Doubt(np.ones(len(runs.logs)), np.ones(runs.logs.shape)), typical
    found = solve(runs, noise, doubt)
    for _ in range(_PASSES):
        doubt = _doubt(runs, found, typical)
        noise = _learnt(runs, doubt, noise, typical)
        found = solve(runs, noise, doubt)
    return found


def solve(runs: Runs, noise: Noise, doubt: Doubt) -> Solution:
    """The costs most likely: runs' deviations and groups' levels are eliminated, then a kind is an unknown."""
    weights = runs.steps / (noise.step**2 * doubt.figure)
    weight, variance = weights.sum(axis=1), noise.run**2 * doubt.run
    kept = 1 / (1 + variance * weight)
    weighted = (weights * runs.logs).sum(axis=1)
    # Normal equations of the costs and, a row per group, of the levels.
    normal = np.diag(weights.sum(axis=0)) - (weights * (variance * kept)[:, None]).T @ weights
    right = (weights * runs.logs).sum(axis=0) - weights.T @ (variance * kept * weighted)
    count = int(runs.groups.max()) + 1
    between = np.zeros((count, weights.shape[1] + 1))
    np.add.at(between, runs.groups, np.column_stack([weights, weighted]) * kept[:, None])
    factor = cholesky_banded(_precision(np.bincount(runs.groups, weight * kept, count).astype(float), noise.drift))
    levels = cho_solve_banded((factor, False), between[:, 1:])
    inner = normal[1:, 1:] - between[:, 1:-1].T @ levels[:, :-1]
    # The inverse itself is asked for, as the covariance of the costs: solving with a factor would spare nothing.
    covariance = np.linalg.inv(inner)
    costs = covariance @ (right[1:] - between[:, 1:-1].T @ levels[:, -1])
    level = levels[:, -1] - levels[:, :-1] @ costs
    every = np.concatenate([[0.0], costs])
    rest = np.where(runs.steps > 0, runs.logs - every - level[runs.groups, None], 0.0)
    moved = weights * rest
    deviations = variance * kept * moved.sum(axis=1)
    by_others = variance[:, None] * (moved.sum(axis=1)[:, None] - moved)
    by_others /= 1 + variance[:, None] * (weight[:, None] - weights)
    explained = right[1:] @ costs + between[:, -1] @ level
    squares = (weights * runs.logs**2).sum() - (variance * kept * weighted**2).sum() - explained
    logarithms = -np.log(weights[runs.steps > 0]).sum() - np.log(kept).sum() + 2 * (count - 1) * math.log(noise.drift)
    logarithms += 2 * np.log(factor[1]).sum() + np.linalg.slogdet(inner)[1]
    return Solution(
        costs=every,
        covariance=np.pad(covariance, ((1, 0), (1, 0))),
        levels=level[runs.groups],
        deviations=deviations,
        errors=np.where(runs.steps > 0, rest - deviations[:, None], 0.0),
        figures=every + rest - np.minimum(by_others, 0.0),
        misfit=float(squares + logarithms) / 2,
        noise=noise,
    )


def _precision(weights: Array, drift: float) -> Array:
    """Precision of the levels of groups, a random walk seen with these weights, in scipy's upper banded form."""
    bands = np.zeros((2, len(weights)))
    bands[1] = weights
    bands[1, :-1] += drift**-2
    bands[1, 1:] += drift**-2
    bands[0, 1:] = -(drift**-2)
    return bands


def _doubt(runs: Runs, found: Solution, typical: Noise) -> Doubt:
    """How far each run, and each of its kinds, lies from the rest, beyond what most do; at least half of what is
    typical, since of a kind that was seen once nothing is left.
    """
    shown = runs.steps > 0
    several = shown & (shown.sum(axis=1) > 1)[:, None]
    weights = runs.steps / runs.steps.sum(axis=1, keepdims=True)
    of_runs = np.abs(found.deviations + (found.errors * weights).sum(axis=1))
    of_figures = np.abs(found.errors) * np.sqrt(runs.steps)
    return Doubt(
        _beyond(of_runs, of_runs, typical.run / 2),
        _beyond(of_figures, of_figures[several], typical.step / 2),
    )


def _beyond(distances: Array, usual: Array, least_sd: float) -> Array:
    sd = max(_SD_OF_MAD * float(np.median(usual)) if len(usual) else 0.0, least_sd)
    factors: Array = np.maximum(1.0, distances / (_DOUBTED * sd))
    return factors


def _learnt(runs: Runs, doubt: Doubt, start: Noise, typical: Noise) -> Noise:
    """The noise most likely, by the latest groups; few of them leave it near what is typical."""
    rows = runs.latest(_TELLING)
    columns = (runs.steps[rows] > 0).any(axis=0)
    groups = runs.groups[rows]
    some = Runs(runs.logs[rows][:, columns], runs.steps[rows][:, columns], groups - groups.min())
    doubt = Doubt(doubt.run[rows], doubt.figure[rows][:, columns])

    def misfit(noise: Noise) -> float:
        far = [math.log(getattr(noise, name) / getattr(typical, name)) / _TYPICAL_SD for name in vars(noise)]
        return solve(some, noise, doubt).misfit + sum(distance**2 for distance in far) / 2

    best, least = start, misfit(start)
    for step in _STEPS:
        for name in vars(start):
            for factor in (step, 1 / step):
                while _LEAST_SD < (value := getattr(best, name) * factor) < _MOST_SD:
                    tried = replace(best, **{name: value})
                    if (now := misfit(tried)) >= least:
                        break
                    best, least = tried, now
    return best
