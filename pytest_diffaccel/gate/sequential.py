"""The gate's sequential test: figures of paired blocks until a case is certain, its error rates kept over all looks.

What is tested is the change of a case, the logarithm of its speed-up now less that of its reference:

- *regressed* refutes "not slower" (change of at least 0), with at most the family's error rate over all cases;
- *ok* refutes "slower by what matters" (change of at most ``-smallest``);
- *improved* refutes "not faster by what matters" (change of at most ``+smallest``).

Error is spent over looks that are fixed beforehand (Lan and DeMets, Biometrika 70, 1983), along the power family
of Kim and DeMets (Biometrika 74, 1987), in fixed portions a look (Slud and Wei, JASA 77, 1982). The portions are added
up by the union bound, so that no joint distribution of the looks has to be assumed, and the statistic of a look may be
Student's: figures are few, their variance is estimated, and normal boundaries would cry wolf. The
family's rate is shared out equally: cases end at different times, and a verdict is not taken back.

Everything here works on arrays whose last axis is the figures (:mod:`.figures`), so that a simulation of many thousand
cases runs the very code that judges one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

#: Chance that a run of the gate fails although nothing became slower or worse: over all cases, looks, speed and
#: quality.
FALSE_ALARM_RATE = 0.01
#: Chance that a case which did become slower by what matters is called ok, or one that did not is called improved.
MISS_RATE = 0.02
#: Numbers of figures after which a case is looked at; fewer leave too little to estimate a variance from.
LOOKS = (5, 6, 8, 12, 16, 24, 32, 48, 64)
_SPENDING_POWER = 2.0
# Share of figures winsorised at each end: disturbance hits few, and hits them hard.
_TRIM = 0.125
# More than this is not noise that figures share with their neighbours, but a drift that no inflation mends.
_MOST_AUTOCORRELATION = 0.9
_CONFIDENCE = 0.95
# Figures of runs of 1% that the device alone decides vary by 1.4%, and a sample of few of them by up to this
# (standard deviation of the logarithm).
_QUIET_FIGURE_SD = 0.02
# Equal figures have no spread, by which nothing can be divided.
_LEAST_ERROR = 1e-12

OPEN, OK, REGRESSED, IMPROVED = range(4)


@dataclass(frozen=True)
class Estimate:
    """Means with their standard errors; arrays of one shape.

    Attributes:
        mean: of logarithms.
        error: standard error of that, above or equal 0.
        df: degrees of freedom of the standard error.
    """

    mean: Array
    error: Array
    df: Array

    def less(self, other: Estimate, extra_sd: float = 0.0) -> Estimate:
        """The difference from an independent estimate.

        Degrees of freedom by Welch (Biometrika 34, 1947), at most twice the fewer: as far out in the tails as a family
        of cases needs, a small error that was estimated from few figures is trusted too much otherwise.

        Args:
            other: what is subtracted.
            extra_sd: known standard deviation that both errors lack.
        """
        own, others = self.error**2, other.error**2
        variance = own + others + extra_sd**2
        spread = own**2 / self.df + others**2 / other.df
        welch = np.where(spread > 0, variance**2 / np.maximum(spread, 1e-300), np.inf)
        return Estimate(self.mean - other.mean, np.sqrt(variance), np.minimum(welch, 2 * np.minimum(self.df, other.df)))


def robust_mean(values: Array, lasting_share: float = 0.0) -> Estimate:
    """Trimmed mean over the last axis, with the standard error of Yuen (Biometrika 61, 1974), inflated by
    autocorrelation.

    Figures follow each other: what disturbs one often disturbs the next. The error is widened by what a first-order
    autoregression of the estimated correlation adds, (1 + r) / (1 - r) in the variance, and has the degrees of freedom
    of that many fewer figures; never narrowed.

    Args:
        values: logarithms, (..., n) with n at least 2, in the order in which they were measured.
        lasting_share: of what they scatter, how much lasts for a whole session (:func:`lasting_sd`): part of the error,
            since it is as uncertain as their spread.
    """
    count = values.shape[-1]
    cut = int(_TRIM * count)
    ordered = np.sort(values, axis=-1)
    low, high = ordered[..., cut, None], ordered[..., count - cut - 1, None]
    kept = count - 2 * cut
    mean = ordered[..., cut : count - cut].mean(axis=-1)
    winsorised = np.clip(values, low, high)
    centred = winsorised - winsorised.mean(axis=-1, keepdims=True)
    squares = (centred**2).sum(axis=-1)
    # Yuen's: the winsorised sum of squares over kept (kept - 1).
    variance = squares / (kept * (kept - 1))
    products = (centred[..., 1:] * centred[..., :-1]).sum(axis=-1)
    # A sample's autocorrelation lies about 1 / n below the truth.
    correlation = products / np.maximum(squares, 1e-300) + 1 / count
    correlation = np.clip(np.where(squares > 0, correlation, 0.0), 0.0, _MOST_AUTOCORRELATION)
    inflation = (1 + correlation) / (1 - correlation)
    lasting = lasting_sd(np.sqrt(squares / (count - 1)), lasting_share)
    return Estimate(mean, np.hypot(np.sqrt(variance * inflation), lasting), np.maximum(kept / inflation - 1, 1.0))


def lasting_sd(figure_sd: Array | float, share: float) -> Any:
    """What figures that scatter so much have in common for a whole session, as a standard deviation.

    Where the host decides how long a step takes, it does so for seconds and for minutes: figures of one session
    scatter, and those of another do so about another mean.

    Args:
        figure_sd: standard deviation of figures, at least 0; an array or a number.
        share: of what they scatter beyond those of a quiet device, how much lasts.
    """
    return share * np.sqrt(np.maximum(0.0, np.square(figure_sd) - _QUIET_FIGURE_SD**2))


def portion(looks: Sequence[int], figures: int, error_rate: float) -> float:
    """What one look may spend of an error rate; all looks together spend the whole.

    Args:
        looks: numbers of figures after which there is a look, rising.
        figures: which of them.
        error_rate: of all looks, 0 to 1.
    """
    place = looks.index(figures)
    before = looks[place - 1] if place else 0
    return float(error_rate * ((figures / looks[-1]) ** _SPENDING_POWER - (before / looks[-1]) ** _SPENDING_POWER))


@dataclass(frozen=True)
class Design:
    """When a case is looked at, and what each look may spend.

    Attributes:
        most: figures at the last look, at least the first of :data:`LOOKS`.
        smallest: the smallest change that matters, as a logarithm, above 0.
        false_alarm_rate: this case's share.
        session_sd: by how much the speed-ups of two sessions differ though nothing changed: standard deviation of a
            session's logarithm.
        lasting_share: how much of what figures scatter beyond those of a quiet device lasts for a whole session
            (:func:`lasting_sd`).
    """

    most: int
    smallest: float
    false_alarm_rate: float
    session_sd: float = 0.0
    lasting_share: float = 0.0

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Numbers of figures, the last is :attr:`most`."""
        return (*(look for look in LOOKS if look < self.most), self.most)

    def portion(self, figures: int, error_rate: float) -> float:
        """What the look after ``figures`` figures may spend of an error rate; all looks together spend the whole."""
        return portion(self.looks, figures, error_rate)

    def change(self, values: Array, reference: Estimate) -> Estimate:
        """The change from a reference.

        Args:
            values: logarithms of speed-ups so far, (..., n).
            reference: of equal or broadcastable shape; its error includes that it was another session.
        """
        return robust_mean(values, self.lasting_share).less(reference, self.session_sd)

    def decide(self, values: Array, reference: Estimate) -> NDArray[np.int64]:
        """:data:`OK`, :data:`REGRESSED`, :data:`IMPROVED` or :data:`OPEN`, for each case.

        A slowdown that is certain, and certainly smaller than what matters, is ok. One that is faster goes on until it
        is surely improved or the looks are over.
        """
        figures = values.shape[-1]
        change = self.change(values, reference)
        error = np.maximum(change.error, _LEAST_ERROR)

        def surely(above: float, rate: float, sign: float = 1.0) -> NDArray[np.bool_]:
            quantile = (sign * change.mean - above) / error
            return np.asarray(stats.t.sf(quantile, change.df) <= self.portion(figures, rate))

        ok = surely(-self.smallest, MISS_RATE)
        regressed = surely(0.0, self.false_alarm_rate, sign=-1.0) & ~ok
        improved = surely(self.smallest, MISS_RATE)
        if figures < self.most:
            ok &= change.mean <= self.smallest
        verdicts = np.select([improved, ok, regressed], [IMPROVED, OK, REGRESSED], OPEN)
        return np.asarray(verdicts, dtype=np.int64)

    def interval(self, values: Array, reference: Estimate) -> tuple[Array, Array]:
        """Ends of the 95% interval of the change, right at whichever look it is read (repeated confidence intervals:
        Jennison and Turnbull, JRSS B 51, 1989).
        """
        change = self.change(values, reference)
        rate = self.portion(values.shape[-1], 1 - _CONFIDENCE) / 2
        half = stats.t.isf(rate, change.df) * change.error
        return change.mean - half, change.mean + half

    def power(self, figure_sd: float, reference_error: float) -> float:
        """Chance of showing a slowdown of the smallest size that matters, by the last look, before anything is timed.

        Args:
            figure_sd: standard deviation of a figure.
            reference_error: standard error of the reference.
        """
        df = 2 * (self.most - 2 * int(_TRIM * self.most) - 1)
        lasting = float(lasting_sd(figure_sd, self.lasting_share))
        error = math.sqrt(figure_sd**2 / self.most + reference_error**2 + self.session_sd**2 + lasting**2)
        return self.power_at(error, df)

    def power_at(self, error: float, df: float) -> float:
        """The same at the noise that was met.

        Args:
            error: standard error of the change at the last look, at least 0.
            df: its degrees of freedom.
        """
        boundary = stats.t.isf(self.portion(self.most, self.false_alarm_rate), df)
        return float(stats.t.cdf(self.smallest / max(error, _LEAST_ERROR) - boundary, df))
