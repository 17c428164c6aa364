"""The block design: baseline and candidates interleaved in random order, so that drift hits all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.watch import Watch

#: Makes and times one run of batch number ``index`` (0, 1, 2, ...).
TimedRun: TypeAlias = Callable[[int], RunTiming]


# A disturbed block is made again this often; then it is kept, and marked.
_REPEATS = 2


def order_seed(seed: int, names: Iterable[str], made: int) -> str:
    """A seed of the blocks' order, of its own for these candidates after so many blocks.

    With the session's seed alone every call would begin with the same order: measurements of one or two blocks would
    always run their baseline at the same place.

    Args:
        seed: the session's.
        names: of the candidates.
        made: blocks made of them before.
    """
    return f"{seed} {' '.join(names)} {made}"


def run_blocks(
    baseline: TimedRun,
    candidates: Sequence[TimedRun],
    count: int,
    *,
    seed: str,
    watch: Watch,
    repeats: int | None = None,
) -> Iterator[tuple[Block, ...]]:
    """Measure blocks, one at a time: each is one run of the baseline and one of every candidate, in random order.

    Every kind of step must have run before (its first run is a warm-up and never counts). A disturbed block
    is measured again, at most ``repeats`` times; after that it is kept as it is and names the disturbance, and
    later blocks are not measured again.

    Args:
        baseline: the unaccelerated run.
        candidates: at least one.
        count: blocks, at least 1.
        seed: of the order (:func:`order_seed`).
        watch: sees what disturbs a block.
        repeats: how often a disturbed block is made again; None for twice.

    Yields:
        One :class:`Block` per candidate, all of them with the same baseline run.
    """
    order = random.Random(seed)
    runs = [baseline, *candidates]
    again = _REPEATS if repeats is None else repeats
    for index in range(count):
        started_at = time.time()
        for _ in range(1 + again):
            timings, disturbance = _run_once(runs, index, order, watch)
            if not disturbance:
                break
        else:
            # It does not pass: making the blocks to come again would cost time and mend nothing.
            again = 0
        yield tuple(Block(timings[0], (timing,), disturbance, started_at) for timing in timings[1:])


def _run_once(runs: Sequence[TimedRun], index: int, order: random.Random, watch: Watch) -> tuple[list[RunTiming], str]:
    """Every run once, in random order; their times in the order given, and what disturbed them."""
    places = list(range(len(runs)))
    order.shuffle(places)
    end_watch = watch.begin()
    timings = {place: runs[place](index) for place in places}
    return [timings[place] for place in range(len(runs))], end_watch()
