"""One case timed by one clock: whole runs by wall time, or the first steps of runs by the GPU's and the host's own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.clocks import DEVICE, HOST, Clock
from pytest_diffaccel.gate.figures import Figure, steps_that_tell
from pytest_diffaccel.gate.plan import GateCase
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import Design
from pytest_diffaccel.gate.speed import Timed, time_until_certain
from pytest_diffaccel.measure.blocks import TimedRun, order_seed, run_blocks
from pytest_diffaccel.measure.busy_clock import busy, busy_steps
from pytest_diffaccel.measure.clock import launched_steps
from pytest_diffaccel.measure.clock import timed as timed_run
from pytest_diffaccel.measure.disturbance import watch_device, watch_machine
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.search.workbench import Batch, Workbench


@dataclass(frozen=True)
class GpuUse:
    """What a whole accelerated run does with a GPU.

    Attributes:
        busy_share: of its wall time, during which the GPU works.
        fixed_s: for which the GPU works on what surrounds the steps, seconds.
    """

    busy_share: float
    fixed_s: float


@dataclass(frozen=True)
class CaseTimer:
    """Times a case beside its cell's unaccelerated pipeline.

    Attributes:
        bench: the search's workbench.
        case: the case.
        baseline: generates without methods.
        generate: generates as the case does.
    """

    bench: Workbench
    case: GateCase
    baseline: Generate
    generate: Generate

    @property
    def device_type(self) -> str:
        """``"cpu"``, ``"cuda"``, ..."""
        return str(self.baseline.pipeline.device.type)

    def gpu_use(self) -> GpuUse:
        """Of one run by wall time and another that is profiled.

        Raises:
            ValueError: when the profiler did not see every step.
        """
        batch = self._batches()[0]
        with self.bench.pipelines.lock.timing():
            _, wall = timed_run(self.generate, batch.prompts, batch.seeds)
            _, device = busy(self.generate, batch.prompts, batch.seeds)
        return GpuUse(device.total_s / wall.total_s, max(0.0, device.fixed_s))

    def block_s(self, clock: Clock) -> float:
        """What a block takes, seconds, by making one; it warms up what the blocks to come need."""
        began = time.monotonic()
        with self.bench.pipelines.lock.timing():
            for run in self._runs(clock):
                run(0)
        return time.monotonic() - began

    def until_certain(
        self, clock: Clock, plan: Design, reference: Reference | None, fixed_s: float, *, to_the_end: bool
    ) -> Timed:
        """Time it (:func:`.time_until_certain`).

        Args:
            clock: to time it by.
            plan: when to look.
            reference: to compare with; None where there is nothing yet.
            fixed_s: what surrounds the steps, by that clock; not used for whole runs.
            to_the_end: whether to look only once, at the end.
        """

        def figure_of(blocks: Sequence[Block]) -> Figure:
            if clock not in (DEVICE, HOST):
                return Figure.from_blocks(blocks)
            return Figure.from_first_steps(blocks, self.baseline.kinds, self.generate.kinds, fixed_s)

        with self.bench.pipelines.lock.timing():
            blocks = self._blocks(clock, plan.most * clock.blocks)
            return time_until_certain(blocks, clock.blocks, plan, reference, figure_of=figure_of, to_the_end=to_the_end)

    def _blocks(self, clock: Clock, count: int) -> Iterator[Block]:
        device = self.baseline.pipeline.device
        baseline, own = self._runs(clock)
        watch = watch_device(device) if clock == DEVICE else watch_machine(device, computing_threads(device))
        seed = order_seed(self.bench.settings.seed, [self.case.key], 0)
        return (row[0] for row in run_blocks(baseline, [own], count, seed=seed, watch=watch))

    def _runs(self, clock: Clock) -> tuple[TimedRun, TimedRun]:
        return self._run(self.baseline, clock), self._run(self.generate, clock)

    def _run(self, generate: Generate, clock: Clock) -> TimedRun:
        batches = self._batches()

        def one(index: int) -> RunTiming:
            batch, steps = batches[index % len(batches)], steps_that_tell(generate.kinds)
            if clock == DEVICE:
                return busy_steps(generate, batch.prompts, batch.seeds, steps)
            if clock == HOST:
                # As many launches as with all, and little for the GPU to do, which the host must not wait for.
                return launched_steps(generate, batch.prompts[:1], batch.seeds[:1], steps)
            return timed_run(generate, batch.prompts, batch.seeds)[1]

        return one

    def _batches(self) -> list[Batch]:
        """Those that are full."""
        batches = self.bench.batches(self.case.cell, "winner", self.case.entry.num_samples)
        return [batch for batch in batches if len(batch.seeds) == len(batches[0].seeds)]
