"""How much work a search's parts are, in runs of the unaccelerated pipeline; pure Python, before anything is measured.

What is the same for all machines is a number of runs: the calibration tells how long one takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.pipes import described

if TYPE_CHECKING:
    from pytest_diffaccel.settings.search_settings import Settings

# What follows is from README's start (SD1.5 DDIM 20, coarse grid, 8 samples in batches of 4, 2 cores), and from replays
# of searches of whole grids on recorded tables (benchmarks/search_replay.py, SD1.5 and SD2.1 at 20 steps).
#: An accelerated run takes this share of the unaccelerated one, as long as no calibration says otherwise.
ACCELERATED_SHARE = 0.55
# A group of n candidates evaluates n * 70 / (n + 70) of them: 47 of 52 on a coarse grid, about half on a whole one.
_EVALUATED_AT_MOST = 70
# So many of a group contend in each batch beyond the first: 22 batches in 6 groups with 1 more, 130 to 170 with 7.
_CONTENDERS = 4
# Distinct winners of a group of n candidates are 4 * n / (n + 3): 3 on the coarse grid, 4 on the whole one.
_WINNERS_AT_MOST, _WINNERS_HALF_AT = 4, 3
# Winners in a block beside an unaccelerated run, and runs of each at the least, as in .evaluation; short runs then take
# this share of the blocks' time, as in .verify.
_TOGETHER, _LEAST_TIMED, _NARROWING_SHARE = 8, 2, 0.3
#: Fewer pictures than this never show that a rival loses more than a winner. So many show it of most: of 23 of 25 in a
#: cell of full-size SD1.5.
RIVAL_SAMPLES = 8
# Rivals of a cell that are made: step counts that are as fast as its winners, and what a batch of each takes.
_RIVALS, _RIVAL_SHARE = 9, 0.45
# Where each of several workers verifies its own groups, choices move by what all of them show, which the last one
# verifies: this share of verifying them all, by four searches of README's start on two workers.
_AGAIN = 0.8


@dataclass(frozen=True)
class SearchCase:
    """A case as far as its work goes.

    Attributes:
        cell: where it measures.
        accelerator: the accelerator's name.
        is_winners: whether it looks for its group's winners; else it is a candidate's.
        in_group: points of the group's grid, whether or not they are all in the session.
    """

    cell: Cell
    accelerator: str
    is_winners: bool
    in_group: int


@dataclass(frozen=True)
class Effort:
    """Work of a search's parts, all in runs of their cell's unaccelerated pipeline, of one batch.

    Attributes:
        batches: of a whole evaluation.
        first_batches: of a first evaluation; part of one where small calls are worth it.
        blocks: timed blocks that a candidate gets in an exhaustive search; None in any other.
        rival_batches: of a rival's evaluation.
        accelerated_share: mean time of an accelerated run, as a share of the unaccelerated one's.
    """

    batches: int
    first_batches: float
    blocks: int | None
    rival_batches: int
    accelerated_share: float = ACCELERATED_SHARE

    @classmethod
    def of(cls, settings: Settings) -> Effort:
        """What the settings ask for."""
        batches = math.ceil(settings.num_samples / settings.batch_size)
        # At least 2 samples, in whole batches as long as no calibration says otherwise (Workbench.first_samples).
        first = min(batches, math.ceil(2 / settings.batch_size))
        of_rival = batches if settings.metrics else min(batches, math.ceil(RIVAL_SAMPLES / settings.batch_size))
        return cls(batches, first, settings.blocks if settings.exhaustive else None, of_rival)

    def evaluation(self, share: float | None = None) -> float:
        """Of one candidate, whose run takes ``share`` of an unaccelerated one, if that is known."""
        share = self.accelerated_share if share is None else share
        if self.blocks is None:
            return self.first_batches * share
        return self.blocks + share * max(self.batches, 1 + self.blocks)

    def evaluated(self, in_group: int) -> float:
        """How many candidates of a group are evaluated, by their cases or the winners' case."""
        if self.blocks is not None:
            return in_group
        return in_group * _EVALUATED_AT_MOST / (in_group + _EVALUATED_AT_MOST)

    def settling(self, in_group: int) -> float:
        """Of telling a group's contenders apart by more samples."""
        if self.blocks is not None:
            return 0.0
        return min(_CONTENDERS, in_group) * (self.batches - self.first_batches) * self.accelerated_share

    def group(self, in_group: int) -> float:
        """Of a whole group."""
        return self.evaluated(in_group) * self.evaluation() + self.settling(in_group)

    def verification(self, winners: float) -> float:
        """Of verifying all of a cell's distinct winners, with their rivals."""
        together = winners * self.accelerated_share + math.ceil(winners / _TOGETHER)
        timed = max(_LEAST_TIMED, self.batches) * together
        return timed * (1 + _NARROWING_SHARE) + min(_RIVALS, winners) * _RIVAL_SHARE * self.rival_batches

    def again(self, winners: float) -> float:
        """Of verifying what moved, at the end of a cell whose groups were each verified by themselves."""
        return 0.0 if self.blocks is not None else _AGAIN * self.verification(winners)


def winners(in_group: int) -> float:
    """How many distinct winners a group has."""
    return _WINNERS_AT_MOST * in_group / (in_group + _WINNERS_HALF_AT)


def step_weight(pipe: str, *, embedded: bool) -> float:
    """Cost of a step of a pipe; comparable between pipes of one model source, whatever the device."""
    spec = described(pipe)
    return spec.embedded_step_s if embedded else spec.full_size_step_s
