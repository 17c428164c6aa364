"""Measuring candidates: images, quality, and speed in blocks with the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.blocks import TimedRun, run_blocks
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.flops import flops_by_kind
from pytest_diffaccel.measure.measurement import Block, Interval, Measurement, RunTiming
from pytest_diffaccel.measure.memory import peak_memory_mb, reset_peak_memory
from pytest_diffaccel.measure.quality import pooled_quality, score
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.search.workbench import Batch, Purpose, Workbench

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class BlockBudget:
    """How many blocks to time.

    Attributes:
        least: blocks timed in any case.
        most: blocks timed at the most; 0 where the speed-up is known well enough.
        half_width_ratio: between the two, timing ends when every candidate's 95% interval of its speed-up is at most
            this fraction of it to each side.
    """

    least: int
    most: int
    half_width_ratio: float

    def is_met(self, subjects: Sequence[_Subject]) -> bool:
        """Whether no more blocks are needed."""
        return self.most == 0 or all(
            len(subject.blocks) >= self.least
            and step_kind_speedup(subject.blocks).half_width_ratio <= self.half_width_ratio
            for subject in subjects
        )


@dataclass
class _Subject:
    """A candidate under measurement: its generator, the images made so far by batch, and its blocks."""

    candidate: Candidate
    generate: Generate
    images: dict[int, list[Image]] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    fired: dict[str, int] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    flops: dict[str, int] = field(default_factory=dict)


def measure(
    bench: Workbench,
    candidates: Sequence[Candidate],
    purpose: Purpose,
    budget: BlockBudget,
    num_samples: int | None = None,
    predicted: Interval | None = None,
) -> list[Measurement]:
    """Measure candidates of one cell together, each block with one baseline run for all of them.

    Each candidate's first generation is counted, checks that its methods act, and warms its kinds up; timed runs and
    quality use the same prompts, seeds and start noise as the baseline.

    Args:
        bench: the search's workbench.
        candidates: at least one, all of the same cell.
        purpose: which samples.
        budget: how many blocks to time.
        num_samples: how many of the samples; None for all.
        predicted: the speed-up, where no blocks are timed.

    Returns:
        One measurement a candidate, in their order. Nothing is stored.
    """
    cell = candidates[0].cell
    bench.begin_baseline_images(cell, purpose)
    batches = bench.batches(cell, purpose, num_samples)
    with ExitStack() as stack:
        baseline, subjects = _generators(stack, bench, candidates)
        for subject in subjects:
            with bench.lock.generating():
                _count(subject, batches[0])
        if purpose == "winner":
            _count_flops(bench, baseline, subjects, batches[0])
        if not budget.is_met(subjects):
            with bench.lock.timing():
                bench.warm_up(cell, baseline)
                _time(bench, baseline, subjects, batches, budget)
        for subject in subjects:
            _make_missing_images(bench, subject, batches)
    references = bench.baseline_images(cell, purpose)
    with bench.lock.generating():
        return [_measurement(bench, subject, references, purpose, predicted) for subject in subjects]


def extend(bench: Workbench, measurement: Measurement, num_samples: int) -> Measurement:
    """The measurement with more of its samples: only those it lacks are made.

    Args:
        bench: the search's workbench.
        measurement: of the search, with fewer samples; whole batches of them.
        num_samples: how many it gets.

    Returns:
        What a measurement of ``num_samples`` from the start would be. Nothing is stored.
    """
    candidate, had = measurement.candidate, measurement.sampling.num_samples
    cell = candidate.cell
    references = bench.baseline_images(cell, "search")
    images: list[Image] = []
    with bench.lock.generating(), bench.generating(cell, candidate.params) as generate:
        for batch in bench.batches(cell, "search", num_samples)[had // bench.settings.batch_size :]:
            images += generate.observed(*_arguments(batch), None)
        added = score(images, references[had:num_samples], str(generate.pipeline.device))
    return replace(
        measurement,
        sampling=bench.sampling(cell, "search", num_samples),
        quality=pooled_quality(measurement.quality, added),
    )


def timed_again(bench: Workbench, measurements: Sequence[Measurement], blocks: int) -> list[Measurement]:
    """The measurements, all of one cell, each with ``blocks`` more timed blocks that share a baseline run.

    Nothing is stored.
    """
    candidates = [measurement.candidate for measurement in measurements]
    cell = candidates[0].cell
    batches = bench.batches(cell, "search", bench.first_samples)
    with ExitStack() as stack:
        baseline, subjects = _generators(stack, bench, candidates)
        with bench.lock.timing():
            bench.warm_up(cell, baseline)
            for subject in subjects:
                subject.generate(*_arguments(batches[0]))
            _time(bench, baseline, subjects, batches, BlockBudget(blocks, blocks, 0.0))
    return [_with_blocks(*pair) for pair in zip(measurements, subjects, strict=True)]


def _with_blocks(measurement: Measurement, subject: _Subject) -> Measurement:
    every = (*measurement.blocks, *subject.blocks)
    speedup, wall = step_kind_speedup(every), wall_speedup(every)
    agree = speedup.overlaps(wall)
    return replace(measurement, blocks=every, speedup=speedup, wall_speedup=wall, estimates_agree=agree)


def _generators(stack: ExitStack, bench: Workbench, candidates: Sequence[Candidate]) -> tuple[Generate, list[_Subject]]:
    """The baseline of the candidates' cell and the candidates themselves, ready to generate."""
    baseline = stack.enter_context(bench.generating(candidates[0].cell, {}))
    generators = [stack.enter_context(bench.generating(one.cell, one.params)) for one in candidates]
    return baseline, [_Subject(*pair) for pair in zip(candidates, generators, strict=True)]


def _count(subject: _Subject, batch: Batch) -> None:
    """The first generation: shows that the methods act, warms their kinds up, and how much memory they take."""
    device = subject.generate.pipeline.device
    reset_peak_memory(device)
    subject.images[0] = subject.generate.counted(*_arguments(batch))
    subject.fired = dict(subject.generate.fired)
    subject.peak_memory_mb = peak_memory_mb(device)


def _count_flops(bench: Workbench, baseline: Generate, subjects: Sequence[_Subject], batch: Batch) -> None:
    """Arithmetic of all kinds of steps, of which those counted before are not counted again."""
    candidate = subjects[0].candidate
    known = bench.knowledge(candidate.cell, candidate.accelerator).flops
    for generate in (baseline, *(subject.generate for subject in subjects)):
        if not known.keys() >= set(generate.kinds):
            with bench.lock.generating():
                known |= flops_by_kind(generate, batch.prompts[0], batch.seeds[0], known)
    for subject in subjects:
        subject.flops = {kind: known[kind] for kind in dict.fromkeys((*baseline.kinds, *subject.generate.kinds))}


def _arguments(batch: Batch) -> tuple[Sequence[str], Sequence[int]]:
    return batch.prompts, batch.seeds


def _full_batches(batches: Sequence[Batch]) -> int:
    """How many batches are as large as the first; only those are timed."""
    return sum(len(batch.seeds) == len(batches[0].seeds) for batch in batches)


def _time(
    bench: Workbench, baseline: Generate, subjects: Sequence[_Subject], batches: Sequence[Batch], budget: BlockBudget
) -> None:
    full = _full_batches(batches)

    def run(generate: Generate, images: dict[int, list[Image]] | None) -> TimedRun:
        def one(index: int) -> RunTiming:
            # From batch 1 on: the counted generation has made the images of batch 0 already.
            place = (index + 1) % full
            made, timing = timed(generate, *_arguments(batches[place]))
            if images is not None:
                images[place] = made
            return timing

        return one

    runs = [run(subject.generate, subject.images) for subject in subjects]
    device = baseline.pipeline.device
    watch = watch_machine(device, computing_threads(device))
    for rows in run_blocks(run(baseline, None), runs, budget.most, seed=bench.settings.seed, watch=watch):
        for subject, block in zip(subjects, rows, strict=True):
            subject.blocks.append(block)
        if budget.is_met(subjects):
            return


def _make_missing_images(bench: Workbench, subject: _Subject, batches: Sequence[Batch]) -> None:
    for place, batch in enumerate(batches):
        if place not in subject.images:
            with bench.lock.generating():
                subject.images[place] = subject.generate.observed(*_arguments(batch), None)


def _measurement(
    bench: Workbench, subject: _Subject, references: Sequence[Image], purpose: Purpose, predicted: Interval | None
) -> Measurement:
    images = [image for place in sorted(subject.images) for image in subject.images[place]]
    if purpose == "winner":
        bench.save_winner_images(subject.candidate, images)
    cell, device = subject.candidate.cell, str(subject.generate.pipeline.device)
    if predicted is not None and not subject.blocks:
        speedup = wall = predicted
    else:
        speedup, wall = step_kind_speedup(subject.blocks), wall_speedup(subject.blocks)
    return Measurement(
        candidate=subject.candidate,
        environment=bench.environment(cell).id,
        sampling=bench.sampling(cell, purpose, len(images)),
        speedup=speedup,
        wall_speedup=wall,
        estimates_agree=speedup.overlaps(wall),
        quality=score(images, references[: len(images)], device),
        blocks=tuple(subject.blocks),
        fired=subject.fired,
        peak_memory_mb=subject.peak_memory_mb,
        flops=subject.flops,
    )
