"""A figure: the logarithm of a speed-up from a few neighbouring blocks, by the cost of each kind of step.

Figures are what the sequential test counts. On a CPU whole runs are disturbed by whatever else the machine does; a low
quantile over the steps of a few runs sees past it (:mod:`.step_kinds`),
one run's alone does not. On a GPU of one's own a block is a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_diffaccel.gate.sequential import Array
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.step_kinds import RunTimes

#: Blocks of a figure, by the type of device.
_BLOCKS_A_FIGURE = {"cuda": 1}
_BLOCKS_A_FIGURE_OTHERWISE = 4


def blocks_a_figure(device_type: str) -> int:
    """How many blocks make a figure on ``"cpu"``, ``"cuda"``, ..."""
    return _BLOCKS_A_FIGURE.get(device_type, _BLOCKS_A_FIGURE_OTHERWISE)


@dataclass(frozen=True)
class Runs:
    """Times of runs of one sort.

    Attributes:
        step_s: (..., runs, steps), seconds.
        fixed_s: what is not a step, (..., runs), seconds.
        kinds: the kind of each step.
    """

    step_s: Array
    fixed_s: Array
    kinds: tuple[str, ...]

    @classmethod
    def from_timings(cls, runs: Sequence[RunTiming]) -> Runs:
        """Of one case: (runs, steps)."""
        return cls(np.array([run.step_s for run in runs]), np.array([run.fixed_s for run in runs]), runs[0].kinds)

    def log_seconds(self) -> Array:
        """Logarithm of what a run costs undisturbed, (...): its fixed part and its steps' kinds."""
        names = np.array(self.kinds)
        kinds = sorted(set(self.kinds))
        steps = {kind: self.step_s[..., None, names == kind] for kind in kinds}
        counts = {kind: self.kinds.count(kind) for kind in kinds}
        return np.asarray(np.log(RunTimes(self.fixed_s[..., None], steps, counts).seconds()))


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
        baseline = Runs.from_timings([block.baseline for block in blocks]).log_seconds()
        candidate = Runs.from_timings([run for block in blocks for run in block.runs]).log_seconds()
        return cls(float(baseline - candidate), float(np.exp(baseline)))
