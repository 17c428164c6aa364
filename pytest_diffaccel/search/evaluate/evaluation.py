"""Measuring candidates: images, quality, and speed in blocks with the baseline."""

from __future__ import annotations

import math
import platform
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.blocks import TimedRun, order_seed, run_blocks
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.degenerate import check_candidate
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.measurement import Block, Interval, Measurement, RunTiming
from pytest_diffaccel.measure.memory import peak_memory_mb, reset_peak_memory
from pytest_diffaccel.measure.prompts import Purpose
from pytest_diffaccel.measure.quality import References, pooled_quality
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.measure.time_limit import time_limit
from pytest_diffaccel.search.workbench import Batch, Workbench

if TYPE_CHECKING:
    from PIL.Image import Image


# Winners in one block beside its unaccelerated run, and timed runs of each at the least.
_TOGETHER, _LEAST_TIMED = 8, 2


@dataclass
class _Subject:
    """A candidate under measurement: its generator, the images made so far by batch, and its blocks."""

    candidate: Candidate
    generate: Generate
    images: dict[int, list[Image]] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    fired: dict[str, int] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    decided: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def keep(self, place: int, images: list[Image]) -> None:
        """Of a batch, with what the pictures decided."""
        self.images[place] = images
        if self.generate.decided:
            self.decided[place] = self.generate.decided


def measure(
    bench: Workbench,
    candidate: Candidate,
    blocks: int,
    num_samples: int | None = None,
    predicted: Interval | None = None,
) -> Measurement:
    """Measure a candidate on the search's samples.

    Its first generation is counted, checks that its methods act, warms its kinds of steps up, and makes its first
    pictures; those use the same prompts, seeds and start noise as the baseline's.

    Args:
        bench: the search's workbench.
        candidate: what to measure.
        blocks: timed blocks, each with an unaccelerated run; none where the speed-up is known.
        num_samples: how many of the samples; None for all.
        predicted: the speed-up, where no blocks are timed.

    Returns:
        The measurement. Nothing is stored.

    Raises:
        DegeneratePictures: when the candidate's pictures say nothing; so do the functions below.
    """
    cell = candidate.cell
    bench.pictures.begin_baseline(cell, "search")
    batches = bench.batches(cell, "search", num_samples)
    with ExitStack() as stack:
        baseline, (subject,) = _generators(stack, bench, [candidate])
        with bench.pipelines.lock.generating():
            _count(bench, subject, batches[0])
        if blocks:
            with bench.pipelines.timing(), bench.spent.on("timing"):
                _warm_up(bench, cell, baseline)
                _time(bench, baseline, subject, batches, blocks)
        _make_missing_images(bench, subject, batches)
    references = bench.pictures.references(cell, "search")
    with bench.pipelines.lock.generating(), bench.spent.on("scoring"):
        return _measurement(bench, subject, references, "search", predicted)


def extend(bench: Workbench, measurement: Measurement, num_samples: int) -> Measurement:
    """The measurement with more of its samples: only those it lacks are made.

    Args:
        bench: the search's workbench.
        measurement: of the search, with fewer samples.
        num_samples: how many it gets.

    Returns:
        What a measurement of ``num_samples`` from the start would be. Nothing is stored.
    """
    candidate, had = measurement.candidate, measurement.sampling.num_samples
    cell = candidate.cell
    references = bench.pictures.references(cell, "search")
    images: list[Image] = []
    decided = list(measurement.decided)
    with bench.pipelines.lock.generating(), bench.pipelines.generating(cell, candidate.params) as generate:
        for batch in bench.batches(cell, "search", num_samples, had):
            with bench.spent.on("pictures"):
                images += generate.observed(*_arguments(batch), None)
            decided += [generate.decided] if generate.decided else []
        check_candidate(images)
        with bench.spent.on("scoring"):
            added, more = references.score(images, had), bench.secondary.deciding(cell, images, had)
    return replace(
        measurement,
        sampling=bench.sampling(cell, "search", num_samples),
        quality=pooled_quality(measurement.quality, added),
        metrics={name: measurement.metrics[name].and_more(metric) for name, metric in more.items()},
        decided=tuple(decided),
    )


def measure_together(
    bench: Workbench, candidates: Sequence[Candidate], least_blocks: int = _LEAST_TIMED
) -> list[Measurement]:
    """Measure the winners of one cell in shared blocks, on the winners' samples, which the timed runs make.

    Each block holds an unaccelerated run and a few candidates, drawn anew for every block: one that held all of them
    would last so long that the machine is another one at its end.

    Args:
        bench: the search's workbench.
        candidates: at least one, all of the same cell.
        least_blocks: timed runs of each at the least; there are as many as full batches, if those are more.

    Returns:
        One measurement per candidate, in their order. Nothing is stored.
    """
    cell = candidates[0].cell
    batches = bench.batches(cell, "winner")
    with ExitStack() as stack:
        baseline, subjects = _generators(stack, bench, candidates)
        for subject in subjects:
            known = bench.known(cell).find(subject.candidate)
            if known is not None:
                # Where it drew fewer pictures than a batch, its memory is not known: a timed run shows it.
                subject.fired, subject.peak_memory_mb = dict(known.fired), known.peak_memory_mb
            if not (subject.fired and set(subject.generate.kinds) <= bench.pipelines.warm_kinds):
                with bench.pipelines.lock.generating():
                    _count(bench, subject, batches[0])
        with bench.pipelines.timing(), bench.spent.on("verification"):
            _warm_up(bench, cell, baseline)
            _time_together(bench, baseline, subjects, batches, least_blocks)
        for subject in subjects:
            _make_missing_images(bench, subject, batches)
    references = bench.pictures.references(cell, "winner")
    with bench.pipelines.lock.generating(), bench.spent.on("scoring"):
        return [_measurement(bench, subject, references, "winner", None) for subject in subjects]


def _time_together(
    bench: Workbench, baseline: Generate, subjects: Sequence[_Subject], batches: Sequence[Batch], least_blocks: int
) -> None:
    """Blocks until every subject has made all full batches in timed runs, and at least so many of them."""
    unaccelerated = _Subject(Candidate(subjects[0].candidate.cell, "", {}), baseline)
    device = baseline.pipeline.device
    watch = watch_machine(device, computing_threads(device))
    keys = [subject.candidate.key for subject in subjects]
    rounds, most_s = max(least_blocks, _full_batches(batches)), bench.settings.case_timeout_s
    for turn in range(rounds):
        waiting = list(subjects)
        random.Random(order_seed(bench.settings.seed, keys, turn)).shuffle(waiting)
        parts = math.ceil(len(waiting) / _TOGETHER)
        for part in (waiting[start::parts] for start in range(parts)):
            runs = [_runs(subject, batches) for subject in (unaccelerated, *part)]
            seed = order_seed(bench.settings.seed, [subject.candidate.key for subject in part], turn)
            bench.spent.on_begin("verification")
            with time_limit(most_s and most_s * len(runs)):  # what a case may take is about one run
                (rows,) = run_blocks(runs[0], runs[1:], 1, seed=seed, watch=watch, repeats=0)
            for subject, block in zip(part, rows, strict=True):
                subject.blocks.append(block)
    if len(unaccelerated.images) == len(batches):
        images = [image for place in sorted(unaccelerated.images) for image in unaccelerated.images[place]]
        bench.pictures.keep_baseline(subjects[0].candidate.cell, "winner", images)


def _generators(stack: ExitStack, bench: Workbench, candidates: Sequence[Candidate]) -> tuple[Generate, list[_Subject]]:
    """The baseline of the candidates' cell and the candidates themselves, ready to generate."""
    baseline = stack.enter_context(bench.pipelines.generating(candidates[0].cell, {}))
    generators = [
        stack.enter_context(bench.pipelines.generating(candidate.cell, candidate.params)) for candidate in candidates
    ]
    return baseline, [_Subject(*pair) for pair in zip(candidates, generators, strict=True)]


def _warm_up(bench: Workbench, cell: Cell, baseline: Generate) -> None:
    """Run the baseline once in this process, so that no timed run is its first."""
    if not set(baseline.kinds) <= bench.pipelines.warm_kinds:
        baseline(*_arguments(bench.batches(cell, "search")[0]))
        bench.pipelines.warm_kinds |= set(baseline.kinds)


def _count(bench: Workbench, subject: _Subject, batch: Batch) -> None:
    """The first generation: shows that the methods act; of a whole batch also how much memory it takes.

    That also warms up the kinds of its steps: in batches of another size other kernels run.
    """
    device = subject.generate.pipeline.device
    peaks_mb: list[float] = []
    reset_peak_memory(device)
    with bench.spent.on("pictures"):
        images = subject.generate.counted(*_arguments(batch), made=lambda: peaks_mb.append(peak_memory_mb(device)))
    subject.keep(0, images)
    subject.fired = dict(subject.generate.fired)
    if len(images) == bench.settings.batch_size:
        (subject.peak_memory_mb,) = peaks_mb
        bench.pipelines.warm_kinds |= set(subject.generate.kinds)


def _arguments(batch: Batch) -> tuple[Sequence[str], Sequence[int]]:
    return batch.prompts, batch.seeds


def _full_batches(batches: Sequence[Batch]) -> int:
    """How many batches are as large as the first; only those are timed."""
    return sum(len(batch.seeds) == len(batches[0].seeds) for batch in batches)


def _time(bench: Workbench, baseline: Generate, subject: _Subject, batches: Sequence[Batch], blocks: int) -> None:
    unaccelerated = _Subject(Candidate(subject.candidate.cell, "", {}), baseline)
    plain, run = _runs(unaccelerated, batches), _runs(subject, batches)
    device = baseline.pipeline.device
    watch = watch_machine(device, computing_threads(device))
    seed = order_seed(bench.settings.seed, [subject.candidate.key], 0)
    for (block,) in run_blocks(plain, [run], blocks, seed=seed, watch=watch):
        subject.blocks.append(block)


def _runs(subject: _Subject, batches: Sequence[Batch]) -> TimedRun:
    """Timed runs of a subject: first of the full batches whose images it lacks, then of all again."""
    full = _full_batches(batches)

    def one(_index: int) -> RunTiming:
        again = len(subject.blocks) % full
        place = next((place for place in range(full) if place not in subject.images), again)
        device = subject.generate.pipeline.device
        if subject.peak_memory_mb is None:
            reset_peak_memory(device)
        images, timing = timed(subject.generate, *_arguments(batches[place]))
        if subject.peak_memory_mb is None:
            subject.peak_memory_mb = peak_memory_mb(device)
        subject.keep(place, images)
        return timing

    return one


def _make_missing_images(bench: Workbench, subject: _Subject, batches: Sequence[Batch]) -> None:
    for place, batch in enumerate(batches):
        if place not in subject.images:
            with bench.pipelines.lock.generating(), bench.spent.on("pictures"):
                subject.keep(place, subject.generate.observed(*_arguments(batch), None))


def _measurement(
    bench: Workbench, subject: _Subject, references: References, purpose: Purpose, predicted: Interval | None
) -> Measurement:
    images = [image for place in sorted(subject.images) for image in subject.images[place]]
    check_candidate(images)
    if purpose == "winner":
        bench.pictures.save_winner(subject.candidate, images)
    cell = subject.candidate.cell
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
        quality=references.score(images),
        metrics=bench.secondary.deciding(cell, images) if purpose == "search" else {},
        blocks=tuple(subject.blocks),
        fired=subject.fired,
        peak_memory_mb=subject.peak_memory_mb,
        busy_share=_busy_share(bench, subject) if purpose == "winner" else None,
        decided=tuple(subject.decided[place] for place in sorted(subject.decided)),
        host=platform.node(),
    )


def _busy_share(bench: Workbench, subject: _Subject) -> float | None:
    """For which share of a winner's runs the GPU works; None where nothing tells."""
    runs_s = [run.total_s for block in subject.blocks for run in block.runs]
    return bench.known(subject.candidate.cell).busy_share(subject.candidate, median(runs_s)) if runs_s else None
