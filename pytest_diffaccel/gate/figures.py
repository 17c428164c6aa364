"""A figure: the logarithm of a speed-up from a few neighbouring blocks, by the cost of each kind of step.

Figures are what the sequential test counts. On a CPU whole runs are disturbed by whatever else the machine does; a low
quantile over the steps of a few runs sees past it (:func:`fast_seconds`), one run's alone does not. What fast steps are
off by is in the reference's figures too, so nothing is added to correct it. On a GPU of one's own a block is a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_diffaccel.measure.measurement import Block
from pytest_diffaccel.measure.statistics import low_quantile
from pytest_diffaccel.measure.step_kinds import Array, RunTimes

#: Blocks of a figure, by the type of device.
_BLOCKS_A_FIGURE = {"cuda": 1}
_BLOCKS_A_FIGURE_OTHERWISE = 4
# Disturbance only ever adds time, so the faster share of the runs tells what a kind costs; its mean rather than a
# quantile of all, which would hang on one or two runs.
_FASTER = 0.5


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
        baseline_s = float(fast_seconds(RunTimes.of([(block.baseline,) for block in blocks])))
        candidate_s = float(fast_seconds(RunTimes.of([block.runs for block in blocks])))
        return cls(math.log(baseline_s / candidate_s), baseline_s)


def fast_seconds(times: RunTimes) -> Array:
    """What a run costs by its fast steps and fast runs, seconds, (...): its fixed part and its steps' kinds.

    A kind's cost is the mean over the faster half of the runs of the low quantile of its step times there.
    """
    seconds = faster_mean(times.fixed_s.mean(axis=-1))
    for kind, steps in times.step_s.items():
        seconds = seconds + times.counts[kind] * faster_mean(low_quantile(steps).mean(axis=-1))
    return seconds


def faster_mean(values: Array) -> Array:
    """Mean of the faster half along the last axis, (..., n) to (...); a value on the border counts in part."""
    count = values.shape[-1]
    ends = np.arange(1, count + 1) / count
    weights = np.clip(_FASTER - (ends - 1 / count), 0, 1 / count)
    mean: Array = np.sort(values, axis=-1) @ (weights / weights.sum())
    return mean
