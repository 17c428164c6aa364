"""Choosing winners: of the candidates that are fast enough and good enough, the one that loses least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.bounds import Barring
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.predict.loss_model import equal_within, may_be_seen
from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE, may_reach, reaches, timing_may_show
from pytest_diffaccel.search.predict.regression import Array

#: No candidate may be fast enough; those that may be lose too much; or it is not known well enough if one is.
Reason: TypeAlias = Literal["speed", "quality", "undecided"]

# Losses differ when the difference is known with this confidence.
_CONFIDENCE = 0.90


@dataclass(frozen=True)
class Option:
    """An evaluated candidate as the choice sees it.

    Attributes:
        candidate: what it is.
        speedup: with its interval, from all that is known.
        losses: of each sample, by the metric that decides, at least one; the samples of all options begin with the same
            ones.
        by_mean: whether the speed-up itself must reach a target, whatever its interval says.
    """

    candidate: Candidate
    speedup: Interval
    losses: tuple[float, ...]
    by_mean: bool = False

    @cached_property
    def loss(self) -> float:
        """Mean loss."""
        return fmean(self.losses)

    def reaches(self, target: float) -> bool:
        """Whether it is fast enough: the lower end of its interval, less the tolerance."""
        return self.speedup.value >= target if self.by_mean else reaches(self.speedup, target)

    def may_reach(self, target: float) -> bool:
        """Whether it may be fast enough; a mean is, or is not."""
        return self.reaches(target) if self.by_mean else may_reach(self.speedup, target)

    def timing_may_show(self, target: float) -> bool:
        """Whether it is open if it is fast enough, and timing has some chance to show that it is."""
        return not self.by_mean and timing_may_show(self.speedup, target)

    def differences(self, other: Option) -> Array:
        """How much more it loses than ``other`` on each of the samples that both have, (common samples,)."""
        common = min(len(self.losses), len(other.losses))
        return np.subtract(self.losses[:common], other.losses[:common])

    def is_visibly_better(self, than: Option) -> bool:
        """Whether it loses less than another one on the samples that both have, by what somebody could see."""
        common = min(len(self.losses), len(than.losses))
        return may_be_seen(-float(np.mean(self.differences(than))), fmean(than.losses[:common]))

    def _paired(self, other: Option) -> tuple[float, float]:
        """Mean difference of losses on common samples, and how far off it may be to one side.

        One sample each says nothing of chance: then the difference decides.
        """
        differences = self.differences(other)
        common = len(differences)
        if common == 1:
            return float(differences[0]), 0.0
        error = float(np.std(differences, ddof=1)) / math.sqrt(common)
        return float(np.mean(differences)), one_sided_quantile(_CONFIDENCE, common - 1) * error


@cache
def one_sided_quantile(confidence: float, df: int) -> float:
    """Student's, with ``df`` degrees of freedom."""
    return float(stats.t.ppf(confidence, df))


@dataclass(frozen=True)
class Choice:
    """What was chosen for a target.

    Attributes:
        target: the required speed-up.
        option: the winner; when ``reason`` is given, the best reached; None when nothing was measured.
        reason: why the target is not met; None when it is.
    """

    target: float
    option: Option | None
    reason: Reason | None


def choose(options: Sequence[Option], target: float, max_loss: float) -> Choice:
    """The winner for a target.

    Of the options that reach it with a loss of at most ``max_loss``, the one with the least loss; what ties with it,
    within the paired interval and :func:`.loss_model.equal_within`, goes to the faster, then to the simpler, then to
    the first by key.

    Args:
        options: evaluated candidates of one cell and accelerator.
        target: required speed-up.
        max_loss: largest mean loss allowed.
    """
    fast = [option for option in options if option.reaches(target)]
    good = [option for option in fast if option.loss <= max_loss]
    if good:
        best = leader(good)
        ties = [option for option in good if option is best or _ties(option, best)]
        return Choice(target, min(ties, key=_faster_then_simpler), None)
    return Choice(target, _best_reached(options, max_loss), _reason(options, target, max_loss))


def choose_within(options: Sequence[Option], target: float, max_loss: float, barred: Mapping[str, Barring]) -> Choice:
    """The winner for a target of those that no bound bars.

    Where none of them reaches it, and some do that are barred, the target is out of reach for their quality if each of
    them surely breaks a bound; else it is undecided.

    Args:
        options: evaluated candidates of one cell and accelerator.
        target: required speed-up.
        max_loss: largest mean loss allowed.
        barred: why options cannot win, by candidate key.
    """
    left = [option for option in options if option.candidate.key not in barred]
    choice = choose(left, target, max_loss)
    out = [
        option
        for option in options
        if option.candidate.key in barred and option.loss <= max_loss and option.may_reach(target)
    ]
    if choice.reason in (None, "undecided") or not out:
        return choice if left else choose(options, target, max_loss)
    unsure = [option for option in out if not barred[option.candidate.key].is_broken]
    if unsure:
        return Choice(target, leader(unsure), "undecided")
    return replace(choice, option=choice.option or _best_reached(options, max_loss), reason="quality")


def _reason(options: Sequence[Option], target: float, max_loss: float) -> Reason:
    """Why no option is surely fast enough with an allowed loss: what the evidence shows, else that it is undecided."""
    maybe = [option for option in options if option.may_reach(target)]
    if any(option.loss <= max_loss for option in maybe):
        return "undecided"
    return "quality" if maybe else "speed"


def _best_reached(options: Sequence[Option], max_loss: float) -> Option | None:
    """Of those of allowed loss (or of all) that are as fast as the fastest, as far as a search can tell, the leader."""
    allowed = [option for option in options if option.loss <= max_loss] or list(options)
    fastest = max((option.speedup.value for option in allowed), default=0.0)
    as_fast = [option for option in allowed if option.speedup.value >= fastest * (1 - SPEED_TOLERANCE)]
    return leader(as_fast) if as_fast else None


def leader(options: Sequence[Option]) -> Option:
    """The one of least loss, where some have more samples than others.

    The mean of a few samples depends on which they are; so each is scaled by how the option with the most samples did
    on all of its samples against those few.

    Raises:
        ValueError: without options.
    """
    most = min(options, key=lambda option: (-len(option.losses), option.loss, option.candidate.key))

    on_as_many = {count: fmean(most.losses[:count]) for count in {len(option.losses) for option in options}}

    def scaled(option: Option) -> float:
        seen = on_as_many[len(option.losses)]
        return option.loss * (most.loss / seen if seen > 0 else 1.0)

    return min(options, key=lambda option: (scaled(option), option.candidate.key))


def _ties(option: Option, best: Option) -> bool:
    difference, margin = option._paired(best)
    return difference <= min(margin, equal_within(best.loss))


def _faster_then_simpler(option: Option) -> tuple[float, int, str]:
    key = option.candidate.key
    return -option.speedup.value, len(key), key
