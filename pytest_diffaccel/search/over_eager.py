"""Faster than what? How many times as fast the unaccelerated pipeline is on its stack as it is eager."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.blocks import TimedRun, order_seed, run_blocks
from pytest_diffaccel.measure.busy_clock import KernelTimes, busy, why_no_device_time
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.disturbance import watch_device, watch_machine
from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import ratio_interval, trimmed_mean
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.measure.watch import Watch
from pytest_diffaccel.records.found_out import OverEager
from pytest_diffaccel.search.workbench import Workbench

# Blocks of an eager run and one on the stack: as many as make the ratio known so well, as a share of it.
_LEAST_BLOCKS, _MOST_BLOCKS, _KNOWN_HALF_WIDTH = 4, 12, 0.01
# Runs of either before those: the first eager ones of a process are slower by a tenth and more.
_WARM_UPS = 5
# What the logarithm of one block's ratio varies by, before any is seen.
_WALL_SD, _DEVICE_SD = 0.04, 0.005

_Timing: TypeAlias = Callable[[Generate], RunTiming]


def measure_over_eager(bench: Workbench, cell: Cell) -> OverEager:
    """Time the cell's unaccelerated pipeline, eager and on its stack, in interleaved blocks."""
    batch = bench.batches(cell, "search")[0]
    arguments = batch.prompts, batch.seeds

    def by_wall(subject: Generate) -> RunTiming:
        return timed(subject, *arguments)[1]

    with (
        bench.pipelines.timing(),
        bench.spent.on("stack over eager"),
        bench.pipelines.generating(cell, {}) as generate,
    ):
        device = generate.pipeline.device
        watch = watch_machine(device, computing_threads(device))
        wall = _ratio(bench, cell, generate, (by_wall, by_wall), watch, _WALL_SD)
        if bench.settings.gpus is None or why_no_device_time():
            return OverEager(cell.scheduler, cell.steps, time.time(), wall)
        clocks = _by_device(arguments), _by_device(arguments)
        by_device = _ratio(bench, cell, generate, clocks, watch_device(device), _DEVICE_SD)
    return OverEager(cell.scheduler, cell.steps, time.time(), wall, by_device)


def _by_device(arguments: tuple[Any, Any]) -> _Timing:
    """Times by the GPU's own time, of one kind of runs: each has kernels of its own."""
    kernels = KernelTimes()
    return lambda subject: busy(subject, *arguments, kernels)[1]


def _ratio(
    bench: Workbench, cell: Cell, generate: Generate, clocks: tuple[_Timing, _Timing], watch: Watch, prior_sd: float
) -> Interval:
    """Time of eager runs over that of runs on the stack, with its 95% interval.

    Args:
        bench: the search's workbench.
        cell: the cell.
        generate: makes both.
        clocks: that time eager runs, and those on the stack.
        watch: sees what disturbs a block.
        prior_sd: of the logarithm of a block's ratio.
    """
    prepared = bench.pipelines.prepared(cell)

    def run_of(clock: _Timing, *, eager: bool) -> TimedRun:
        def run(_index: int) -> RunTiming:
            with prepared.eager() if eager else nullcontext():
                return clock(generate)

        return run

    eager, on_stack = run_of(clocks[0], eager=True), run_of(clocks[1], eager=False)
    for run in (eager, on_stack) * _WARM_UPS:
        run(0)
    seed, blocks = order_seed(bench.settings.seed, ["eager", str(cell)], 0), list[Block]()
    found = Interval(1.0, 0.0, math.inf)
    for (block,) in run_blocks(eager, [on_stack], _MOST_BLOCKS, seed=seed, watch=watch):
        blocks.append(block)
        logs = [math.log(made.baseline.total_s / made.runs[0].total_s) for made in blocks]
        found = ratio_interval(*trimmed_mean(logs, prior_sd))
        if len(blocks) >= _LEAST_BLOCKS and found.half_width_ratio <= _KNOWN_HALF_WIDTH:
            break
    return found
