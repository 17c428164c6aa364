"""The block design: baseline and candidates interleaved in random order, so that drift hits all alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from pytest_diffaccel.measure.disturbance import LoadReading
from pytest_diffaccel.measure.measurement import Block, RunTiming

#: Makes and times one run of batch number ``index`` (0, 1, 2, ...).
TimedRun: TypeAlias = Callable[[int], RunTiming]


def run_blocks(
    baseline: TimedRun, candidates: Sequence[TimedRun], count: int, *, seed: int
) -> Iterator[tuple[Block, ...]]:
    """Measure blocks, one at a time: each is one run of the baseline and one of every candidate, in random order.

    Every kind of step must have run before (its first run is a warm-up and never counts).

    Args:
        baseline: the unaccelerated run.
        candidates: at least one.
        count: blocks, at least 1.
        seed: of the order.

    Yields:
        One :class:`Block` a candidate, all of them with the same baseline run.
    """
    order = random.Random(seed)
    for index in range(count):
        runs = [baseline, *candidates]
        places = list(range(len(runs)))
        order.shuffle(places)
        before = LoadReading.now()
        timings = {place: runs[place](index) for place in places}
        disturbance = before.disturbance_until(LoadReading.now())
        yield tuple(Block(timings[0], (timings[place],), disturbance) for place in range(1, len(runs)))
