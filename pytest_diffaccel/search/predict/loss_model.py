"""Losses of all candidates from those of some: which are worth generating, and which cannot win.

A method's loss is a smooth function of its parameters, and the losses of methods that act together add up like the
sides of a right angle: on 640 combinations of three embedded pipelines the root of the sum of the squares of the
methods' own losses told a combination's to within 10% (``python -m benchmarks.search_cost``). Both are Gaussian
processes on the logarithm of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np

from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Candidate, Cell, Params, Point
from pytest_diffaccel.search.predict.regression import Array, Regression, bells
from pytest_diffaccel.search.predict.step_counts import StepCounts

#: Losses that differ by less than this share cannot be told apart by anyone who looks.
EQUAL_LOSS = 0.02
#: Losses up to this are all rounding, as half precision on a GPU shows between equal pictures: there is none to be
#: saved.
NO_LOSS = 0.005
# Keeps shares of what several methods lose finite.
_LEAST_LOSS = 1e-6
# A method of which nothing is known: its losses are around this, times or divided by e.
_UNKNOWN_LOG_LOSS, _UNKNOWN_SD = math.log(0.05), 1.0
# Standard deviations of a method's log loss: its level, its trend along each coordinate, and what bends the trend.
_LEVEL_SD, _TREND_SD, _BEND_SD = 1.0, 1.4, 1.0
# Coordinates are scaled so that this is a difference (Method.coordinates).
_LENGTH = 0.3
# What the model cannot say of a method's loss.
_NOISE_SD = 0.12
# Of a combination's beside its methods' own, and what one sample is off by: on few samples candidates that lose alike
# differ by chance.
_TOGETHER_NOISE_SD, _SAMPLE_SD = 0.05, 0.27
# A combination against its right angle: this much above it, and how that varies, in general and from point to point.
_TOGETHER_LOG, _TOGETHER_LEVEL_SD, _TOGETHER_BEND_SD = 0.05, 0.15, 0.3


def equal_within(loss: float) -> float:
    """By how much another loss may differ from this one and nobody could tell the two apart."""
    return EQUAL_LOSS * max(loss, NO_LOSS)


def may_be_seen(difference: float, loss: float) -> bool:
    """Whether anybody could see that something loses less, by ``difference``, than what has this ``loss``."""
    return loss > NO_LOSS and difference > equal_within(loss)


def log_loss(loss: float) -> float:
    """Logarithm of an LPIPS and what is all rounding: finite at 0, and hardly different for losses that hardly are."""
    return math.log(max(0.0, loss) + NO_LOSS)


def loss_of(log: float) -> float:
    """The LPIPS of a :func:`log_loss`, at least 0."""
    return max(0.0, math.exp(log) - NO_LOSS)


class _MethodLoss:
    """Log loss of one method over its own points."""

    def __init__(
        self, method: Method, cell: Cell, points: Sequence[Point], losses: Sequence[float], counts: StepCounts
    ) -> None:
        self._method = method
        self._cell = cell
        self._counts = counts
        self._level = float(np.mean(losses)) if losses else _UNKNOWN_LOG_LOSS
        self._known = self._places(points)
        self._values = np.array(losses) - self._level
        if method.extremes and points:
            # What reuses nothing loses nothing: without this, nobody would look where little is reused.
            self._known = np.vstack([self._known, np.zeros((1, self._known.shape[1]))])
            self._values = np.append(self._values, log_loss(0.0) - self._level)

    @cached_property
    def _regression(self) -> Regression:
        noise = np.full(len(self._values), _NOISE_SD**2)
        return Regression(self._covariance(self._known, self._known), self._values, noise)

    def predict(self, points: Sequence[Point]) -> tuple[Array, Array]:
        """Mean and variance of the log loss at each point, (n,) each."""
        if not len(self._values):
            return np.full(len(points), _UNKNOWN_LOG_LOSS), np.full(len(points), _UNKNOWN_SD**2)
        places = self._places(points)
        own = _LEVEL_SD**2 + _TREND_SD**2 * np.square(places).sum(axis=1) + _BEND_SD**2
        mean, variance = self._regression.predict_each(self._covariance(places, self._known), own)
        return mean + self._level, variance

    def _places(self, points: Sequence[Point]) -> Array:
        return np.array([self._place(point) for point in points], dtype=float)

    def _place(self, point: Point) -> tuple[float, ...]:
        """Where pictures decide, by the share that is reused: a threshold that changes nothing is none."""
        share = self._counts.reused_share(Candidate(self._cell, self._method.name, {self._method.name: point}))
        if share is None:
            return _coordinates(self._method, self._cell, point)
        return self._method.decided_coordinates(point, self._cell, share)

    @staticmethod
    def _covariance(one: Array, other: Array) -> Array:
        covariance: Array = _LEVEL_SD**2 + _TREND_SD**2 * one @ other.T + _BEND_SD**2 * bells(one, other, _LENGTH)
        return covariance


class LossModel:
    """Losses of a cell's candidates, on the samples that all of them share.

    Args:
        registry: the methods known.
        cell: the cell.
        evaluated: mean losses seen on those samples, by candidate, of any accelerator of the cell.
        samples: how many samples that is, at least 1.
        counts: how many steps of a candidate are of which kind; None: what its parameters say.
    """

    def __init__(
        self,
        registry: Registry,
        cell: Cell,
        evaluated: Mapping[Candidate, float],
        samples: int,
        counts: StepCounts | None = None,
    ) -> None:
        self._cell = cell
        self._evaluated = evaluated
        self._noise = _TOGETHER_NOISE_SD**2 + _SAMPLE_SD**2 / samples
        self._methods: dict[str, _MethodLoss] = {}
        self._together: dict[str, tuple[Array, Array, Regression] | None] = {}
        for accelerator in registry:
            if len(accelerator.methods) == 1:
                (method,) = accelerator.methods
                own = {
                    candidate: loss for candidate, loss in evaluated.items() if list(candidate.params) == [method.name]
                }
                points = [candidate.params[method.name] for candidate in own]
                self._methods[method.name] = _MethodLoss(
                    method,
                    cell,
                    points,
                    [log_loss(loss) for loss in own.values()],
                    counts or StepCounts(registry),
                )

    def predict(self, accelerator: Accelerator, rows: Sequence[Params]) -> tuple[Array, Array]:
        """Mean and standard deviation of the log loss (:func:`log_loss`) of each of ``rows``, (n,) each."""
        if len(accelerator.methods) == 1:
            (method,) = accelerator.methods
            mean, variance = self._methods[method.name].predict([params[method.name] for params in rows])
            return mean, np.sqrt(variance)
        return self._predict_together(accelerator, rows)

    def _predict_together(self, accelerator: Accelerator, rows: Sequence[Params]) -> tuple[Array, Array]:
        mean, variance = self._right_angle(accelerator, rows)
        own = _TOGETHER_LEVEL_SD**2 + _TOGETHER_BEND_SD**2 + variance
        if accelerator.name not in self._together:
            self._together[accelerator.name] = self._shift(accelerator)
        known = self._together[accelerator.name]
        if known is None:
            return mean, np.sqrt(own)
        known_places, known_variance, regression = known
        between = self._covariance(self._places(accelerator, rows), known_places, variance, known_variance)
        shift, left = regression.predict_each(between, own)
        return mean + shift, np.sqrt(left)

    def _shift(self, accelerator: Accelerator) -> tuple[Array, Array, Regression] | None:
        """Where the evaluated combinations lie, the variance of their right angles, and how far they are from those."""
        known = [candidate for candidate in self._evaluated if candidate.accelerator == accelerator.name]
        if not known:
            return None
        rows = [candidate.params for candidate in known]
        mean, variance = self._right_angle(accelerator, rows)
        places = self._places(accelerator, rows)
        values = np.array([log_loss(self._evaluated[candidate]) for candidate in known]) - mean
        prior = self._covariance(places, places, variance, variance)
        return places, variance, Regression(prior, values, np.full(len(known), self._noise))

    def _right_angle(self, accelerator: Accelerator, rows: Sequence[Params]) -> tuple[Array, Array]:
        """Log of the root of the sum of the squares of the methods' own losses, and its variance."""
        parts = [
            self._methods[method.name].predict([params[method.name] for params in rows])
            for method in accelerator.methods
        ]
        squares = np.square(np.maximum(np.exp([mean for mean, _ in parts]) - NO_LOSS, _LEAST_LOSS))
        shares = squares / squares.sum(axis=0)
        variances = np.array([variance for _, variance in parts])
        together = np.sqrt(squares.sum(axis=0)) * math.exp(_TOGETHER_LOG)
        return np.log(together + NO_LOSS), (shares**2 * variances).sum(axis=0)

    def _places(self, accelerator: Accelerator, rows: Sequence[Params]) -> Array:
        return np.array(
            [
                [
                    place
                    for method in accelerator.methods
                    for place in _coordinates(method, self._cell, params[method.name])
                ]
                for params in rows
            ]
        )

    @staticmethod
    def _covariance(one: Array, other: Array, variance: Array, other_variance: Array) -> Array:
        # Near points err alike, also in what their methods' own losses say of them.
        bend = _TOGETHER_BEND_SD**2 + np.sqrt(variance[:, None] * other_variance[None, :])
        covariance: Array = _TOGETHER_LEVEL_SD**2 + bend * bells(one, other, _LENGTH)
        return covariance


def _coordinates(method: Method, cell: Cell, point: Point) -> tuple[float, ...]:
    return _known_coordinates(method, cell, tuple(point.items()))


@lru_cache(maxsize=1 << 16)
def _known_coordinates(method: Method, cell: Cell, point: tuple[tuple[str, float], ...]) -> tuple[float, ...]:
    return method.coordinates(dict(point), cell)
