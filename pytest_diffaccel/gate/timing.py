"""One case timed by one clock: whole runs by wall time, or the first steps of runs by the GPU's and the host's own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.case_plan import GateCase
from pytest_diffaccel.gate.clocks import DEVICE, HOST, Clock
from pytest_diffaccel.gate.figures import Figure, FirstSteps, later_steps, steps_that_tell
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import Design
from pytest_diffaccel.gate.speed import Timed, time_until_certain
from pytest_diffaccel.measure.blocks import TimedRun, order_seed, run_blocks
from pytest_diffaccel.measure.busy_clock import KernelTimes, busy, busy_steps, why_no_device_time
from pytest_diffaccel.measure.clock import launched_steps
from pytest_diffaccel.measure.clock import timed as timed_run
from pytest_diffaccel.measure.disturbance import watch_device, watch_machine
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.search.workbench import Batch, Workbench

# Whole runs of either pipeline that are profiled.
_WHOLE_RUNS = 2


@dataclass(frozen=True)
class GpuUse:
    """What whole runs do with a GPU.

    Attributes:
        busy_share: of an accelerated run's wall time, during which the GPU works; None where that is not known.
        baseline_fixed_s: for which the GPU works on what surrounds the steps of an unaccelerated run, seconds.
        fixed_s: the same of an accelerated run.
        later: what the steps of a whole accelerated run take, as a multiple of what its first steps let expect.
    """

    busy_share: float | None = None
    baseline_fixed_s: float = 0.0
    fixed_s: float = 0.0
    later: float = 1.0


@dataclass
class PlainRuns:
    """What is known of a cell's unaccelerated runs by device time: all of its cases time beside them.

    Attributes:
        kernels: of those so far.
        surrounding: how many of them surround the steps of a whole run; None until one is profiled.
    """

    kernels: KernelTimes = field(default_factory=KernelTimes)
    surrounding: int | None = None


@dataclass(frozen=True)
class CaseTimer:
    """Times a case beside its cell's unaccelerated pipeline.

    Attributes:
        bench: the search's workbench.
        case: the case.
        baseline: generates without methods.
        generate: generates as the case does.
        plain: what earlier cases of the cell told of its unaccelerated runs.
        own_kernels: of the case's runs so far, beside the unaccelerated ones.
    """

    bench: Workbench
    case: GateCase
    baseline: Generate
    generate: Generate
    plain: PlainRuns
    own_kernels: KernelTimes

    @property
    def device_type(self) -> str:
        """``"cpu"``, ``"cuda"``, ..."""
        return str(self.baseline.pipeline.device.type)

    @property
    def cut_share(self) -> float:
        """Time slices of other processes that were left out of the case's device times, as a share of what was kept."""
        return self.own_kernels.cut_share

    def why_no_device_time(self) -> str:
        """Why the GPU's own time cannot be read, in words; empty where it can."""
        with self.bench.pipelines.lock.timing():
            return why_no_device_time()

    def gpu_use(self) -> GpuUse:
        """Of a few whole runs that are profiled, and one by wall time.

        Other processes may hold a run up, and never speed it up: of what surrounds the steps each kernel's least
        counts, by either pipeline's runs; the later steps are those of the last run, which time slices are best known
        in.

        Raises:
            ValueError: when the profiler did not see every step.
        """
        batch, plain, kernels = self._batches()[0], self.plain, self.own_kernels
        with self.bench.pipelines.lock.timing():
            _, wall = timed_run(self.generate, batch.prompts, batch.seeds)
            own = self._whole(self.generate, kernels)
            surrounding = kernels.surrounding
            if plain.surrounding is None and self.case.candidate is not None:
                self._whole(self.baseline, plain.kernels)
                plain.surrounding = plain.kernels.surrounding
            elif plain.surrounding is None:
                plain.surrounding = surrounding
        return GpuUse(
            min(run.total_s for run in own) / wall.total_s,
            kernels.surrounds_s(plain.surrounding),
            kernels.surrounds_s(surrounding),
            # Of a baseline beside itself both sides would be the same multiple.
            later_steps(own[-1]) if self.case.candidate is not None else 1.0,
        )

    def _whole(self, generate: Generate, kernels: KernelTimes) -> list[RunTiming]:
        """A few whole runs by device time."""
        batch = self._batches()[0]
        return [busy(generate, batch.prompts, batch.seeds, kernels)[1] for _ in range(_WHOLE_RUNS)]

    def block_s(self, clock: Clock) -> float:
        """What a block takes, seconds, by making one; by host time after another that warms up: its batch is smaller
        than any before.
        """
        with self.bench.pipelines.lock.timing():
            for _ in range(2 if clock == HOST else 1):
                began = time.monotonic()
                for run in self._runs(clock):
                    run(0)
        return time.monotonic() - began

    def until_certain(
        self, clock: Clock, plan: Design, reference: Reference | None, use: GpuUse, *, to_the_end: bool
    ) -> tuple[Timed, float]:
        """Time it (:func:`.time_until_certain`).

        Args:
            clock: to time it by.
            plan: when to look.
            reference: to compare with; None where there is nothing yet.
            use: what whole runs do with the GPU; not used for whole runs by wall time.
            to_the_end: whether to look only once, at the end.

        Returns:
            What was timed, and the seconds that it took.
        """

        def figure_of(blocks: Sequence[Block]) -> Figure:
            if clock not in (DEVICE, HOST):
                return Figure.from_blocks(blocks)
            return Figure.from_first_steps(
                blocks,
                FirstSteps(self.baseline.kinds, use.baseline_fixed_s),
                FirstSteps(None if _decides(self.generate) else self.generate.kinds, use.fixed_s, use.later),
            )

        with self.bench.pipelines.lock.timing():
            began = time.monotonic()
            blocks = self._blocks(clock, plan.most * clock.blocks)
            timed = time_until_certain(
                blocks, clock.blocks, plan, reference, figure_of=figure_of, to_the_end=to_the_end
            )
            return timed, time.monotonic() - began

    def _blocks(self, clock: Clock, count: int) -> Iterator[Block]:
        device = self.baseline.pipeline.device
        baseline, own = self._runs(clock)
        watch = watch_device(device) if clock == DEVICE else watch_machine(device, computing_threads(device))
        seed = order_seed(self.bench.settings.seed, [self.case.key], 0)
        return (row[0] for row in run_blocks(baseline, [own], count, seed=seed, watch=watch))

    def _runs(self, clock: Clock) -> tuple[TimedRun, TimedRun]:
        return (
            self._run(self.baseline, clock, self.plain.kernels),
            self._run(self.generate, clock, self.own_kernels),
        )

    def _run(self, generate: Generate, clock: Clock, kernels: KernelTimes) -> TimedRun:
        batches = self._batches()

        def one(index: int) -> RunTiming:
            batch = batches[index % len(batches)]
            # What the first steps cost tells nothing of the later ones' kinds where the pictures decide these.
            steps = generate.steps if _decides(generate) else steps_that_tell(generate.kinds)
            if clock == DEVICE:
                return busy_steps(generate, batch.prompts, batch.seeds, steps, kernels)
            if clock == HOST:
                # As many launches as with all, and little for the GPU to do, which the host must not wait for.
                images = len(batch.seeds) if _decides(generate) else 1
                return launched_steps(generate, batch.prompts[:images], batch.seeds[:images], steps)
            return timed_run(generate, batch.prompts, batch.seeds)[1]

        return one

    def _batches(self) -> list[Batch]:
        """Those that are full."""
        batches = self.bench.batches(self.case.cell, "winner", self.case.entry.num_samples)
        return [batch for batch in batches if len(batch.seeds) == len(batches[0].seeds)]


def _decides(generate: Generate) -> bool:
    """Whether the pictures decide what a step reuses."""
    return generate.accelerator.deciding is not None
