"""A figure: the logarithm of a speed-up from a few neighbouring blocks, by the cost of each kind of step.

Figures are what the sequential test counts. On a CPU whole runs are disturbed by whatever else the machine does; a low
quantile over the steps of a few runs sees past it (:mod:`.step_kinds`), one run's alone does not. What fast steps are
off by is in the reference's figures too, so nothing is added to correct it. On a GPU of one's own a block is a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_diffaccel.measure.measurement import Block
from pytest_diffaccel.measure.step_kinds import RunTimes

#: Blocks of a figure, by the type of device.
_BLOCKS_A_FIGURE = {"cuda": 1}
_BLOCKS_A_FIGURE_OTHERWISE = 4


def blocks_a_figure(device_type: str) -> int:
    """How many blocks make a figure on ``"cpu"``, ``"cuda"``, ..."""
    return _BLOCKS_A_FIGURE.get(device_type, _BLOCKS_A_FIGURE_OTHERWISE)


@dataclass(frozen=True)
class Figure:
    """What a few blocks show.

    Attributes:
        log_speedup: logarithm of baseline time over candidate time.
        baseline_s: time of an unaccelerated run, undisturbed.
    """

    log_speedup: float
    baseline_s: float

    @classmethod
    def from_blocks(cls, blocks: Sequence[Block]) -> Figure:
        """Of one candidate's blocks, at least one."""
        baseline_s = float(RunTimes.of([(block.baseline,) for block in blocks]).seconds())
        candidate_s = float(RunTimes.of([block.runs for block in blocks]).seconds())
        return cls(math.log(baseline_s / candidate_s), baseline_s)
