"""Which evaluated candidates still contend for a target, and what would decide between them.

What is to be found is what all of a whole evaluation's samples would show: a candidate contends as long as those may
show that it loses noticeably less than the leader. So the race narrows as samples come in, and it ends with the last
of them (Maron and Moore 1994, on paired samples of a finite set).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from pytest_diffaccel.matrix import TARGETS, Candidate
from pytest_diffaccel.search.decide.select import Option, leader, one_sided_quantile
from pytest_diffaccel.search.predict.loss_model import NO_LOSS, may_be_seen
from pytest_diffaccel.search.predict.regression import Array

# A contender drops out when with this confidence it is not noticeably better than the leader.
_CONFIDENCE = 0.91
# Standard deviations of one candidate's losses and, where a group does not say, of the differences of two on the same
# samples, as shares of the loss: medians of the recorded tables. They weigh as much as so many further samples.
_TYPICAL_SPREAD, _TYPICAL_DIFFERENCE, _TYPICAL_DF = 0.5, 0.3, 4
# A group says it itself from this many pairs whose losses differ by less than a quarter; within these bounds.
_PAIRS_ENOUGH, _ALIKE, _LEAST_DIFFERENCE, _MOST_DIFFERENCE = 6, 0.25, 0.1, 0.6
_GROWTH = 1.3


@dataclass(frozen=True)
class Contenders:
    """The evaluated candidates of a group, some of which are still in the race.

    Attributes:
        options: those candidates; the samples of all begin with the same ones.
        max_loss: largest mean loss a winner may have.
        first: samples of a first evaluation; more are given in multiples of it.
        whole: samples of a whole evaluation; nobody gets more.
    """

    options: Sequence[Option]
    max_loss: float
    first: int
    whole: int

    def borderline(self) -> list[Candidate]:
        """Those that may win a target if they surely reach it, which more timing may show."""
        found: dict[str, Candidate] = {}
        for target in TARGETS:
            reaching = [option for option in self.options if option.reaches(target)]
            best = leader(reaching) if reaching else None
            found |= {
                option.candidate.key: option.candidate
                for option in self.options
                if option.timing_may_show(target)
                and option.loss <= self.max_loss
                and (best is None or self.may_beat(option, best))
            }
        return list(found.values())

    def undecided(self) -> dict[Candidate, int]:
        """Candidates that need more samples before the targets' winners can be told, and how many in all."""
        needed: dict[Candidate, int] = {}
        for target in TARGETS:
            reaching = [option for option in self.options if option.reaches(target)]
            if not reaching:
                continue
            first = leader(reaching)
            contending = [option for option in reaching if option is not first and self.may_beat(option, first)]
            if not contending and not self._may_cross_limit(first):
                continue
            contending.append(first)
            fewest = min(len(option.losses) for option in contending)
            if fewest < self.whole:
                needed |= {
                    option.candidate: self._more(fewest) for option in contending if len(option.losses) == fewest
                }
        return needed

    def may_beat(self, option: Option, other: Option) -> bool:
        """Whether a whole evaluation may show that ``option`` loses noticeably less than ``other``."""
        differences = option.differences(other)
        common = len(differences)
        level = (fmean(option.losses[:common]) + fmean(other.losses[:common])) / 2
        margin = self._margin(differences, self._typical_difference * level)
        return may_be_seen(margin - float(np.mean(differences)), other.loss)

    def _may_cross_limit(self, option: Option) -> bool:
        """Whether a whole evaluation may show that its loss is on the other side of what is allowed."""
        margin = self._margin(np.array(option.losses), _TYPICAL_SPREAD * option.loss)
        return abs(option.loss - self.max_loss) < margin

    def _margin(self, values: Array, typical: float) -> float:
        """How far the mean of some samples may lie to one side of that of all.

        The standard deviation of few values says little: it is taken together with a typical one (Smyth 2004, section
        4). What is left of a mean's error falls with the share of the whole that is seen (Cochran 1977, section 2.6).
        """
        df = len(values) - 1
        squares = float(np.square(values - np.mean(values)).sum())
        variance = (_TYPICAL_DF * typical**2 + squares) / (_TYPICAL_DF + df)
        left = max(0.0, 1 - len(values) / self.whole)
        return one_sided_quantile(_CONFIDENCE, _TYPICAL_DF + df) * math.sqrt(left * variance / len(values))

    @cached_property
    def _typical_difference(self) -> float:
        """Standard deviation of the differences of two candidates that lose about the same, as a share of the loss."""
        common = min((len(option.losses) for option in self.options), default=0)
        # Ratios of losses that are none say nothing, and of 0 cannot be had.
        firsts = [option.losses[:common] for option in self.options if common]
        losses = np.array([first for first in firsts if fmean(first) > NO_LOSS])
        if common < 2 or len(losses) < 2:
            return _TYPICAL_DIFFERENCE
        means = losses.mean(axis=1)
        one, other = np.triu_indices(len(losses), 1)
        alike = np.abs(np.log(means[one] / means[other])) < _ALIKE
        if alike.sum() < _PAIRS_ENOUGH:
            return _TYPICAL_DIFFERENCE
        one, other = one[alike], other[alike]
        ratios = (losses[one] - losses[other]).std(axis=1, ddof=1) / ((means[one] + means[other]) / 2)
        return float(np.clip(math.sqrt(np.square(ratios).mean()), _LEAST_DIFFERENCE, _MOST_DIFFERENCE))

    def _more(self, samples: int) -> int:
        """The next number of samples."""
        return min(self.whole, self.first * math.ceil(_GROWTH * samples / self.first))
