"""The rival of every accelerator: the unaccelerated pipeline with fewer steps, which costs nothing to set up.

An accelerator that loses more than fewer steps at the same speed-up is pointless; DeepCache's own paper compares
itself so (Ma, Fang and Wang, CVPR 2024, section 4.2). A few pictures mostly show that it loses less: no more are drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Measurement, Quality, Sampling
from pytest_diffaccel.measure.quality import pooled_quality
from pytest_diffaccel.measure.statistics import mean_interval
from pytest_diffaccel.records.leases import IN_COMMON
from pytest_diffaccel.search.effort import RIVAL_SAMPLES
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.workbench import Workbench

if TYPE_CHECKING:
    from PIL.Image import Image


def steps_as_fast(costs: CostModel, steps: int, speedup: float) -> int | None:
    """The most steps that are at least ``speedup`` times as fast as ``steps``; None when not even one is."""
    return next((fewer for fewer in range(steps, 0, -1) if costs.of_fewer_steps(steps, fewer).value >= speedup), None)


def rival(bench: Workbench, cell: Cell, costs: CostModel, speedup: float, winner: Measurement) -> Measurement | None:
    """The unaccelerated pipeline at the step count that reaches ``speedup``, scored on the winners' samples.

    It is scored batch by batch until it clearly loses more than the winner, or on all samples; where other metrics than
    LPIPS are asked for, on all of them. What was scored before is found in the store.

    Returns:
        A measurement whose candidate has no accelerator and whose cell has fewer steps; its loss is against the
        images of ``cell``. None when no number of steps is as fast.
    """
    steps = steps_as_fast(costs, cell.steps, speedup)
    if steps is None:
        return None
    with bench.shared.together(cell, [IN_COMMON]):
        return _scored(bench, cell, costs, steps, winner)


def _scored(bench: Workbench, cell: Cell, costs: CostModel, steps: int, winner: Measurement) -> Measurement:
    candidate, most = Candidate(Cell(cell.pipe, cell.scheduler, steps), "", {}), bench.sampling(cell, "winner")
    known = _known(bench, candidate, most.instead_of(cell.steps))
    if known is not None and (known.sampling.num_samples == most.num_samples or _loses_more(known.quality, winner)):
        return known
    references, images = bench.pictures.references(cell, "winner"), list["Image"]()
    quality, had = (known.quality, known.sampling.num_samples) if known else (None, 0)
    with bench.generating(candidate.cell, {}, "fewer steps") as generate:
        for batch in bench.batches(cell, "winner", had=had):
            drawn = generate(batch.prompts, batch.seeds)
            added = references.score(drawn, had)
            quality = pooled_quality(quality, added) if quality else added
            images += drawn
            had += len(drawn)
            if not bench.settings.metrics and _loses_more(quality, winner):
                break
    assert quality is not None
    predicted = costs.of_fewer_steps(cell.steps, steps)
    sampling = bench.sampling(cell, "winner", had).instead_of(cell.steps)
    measurement = Measurement(
        *(candidate, bench.environment(cell).id, sampling, predicted, predicted, True, quality, ()),
        metrics=bench.secondary.of(cell, images),
    )
    bench.store.save(measurement)
    return measurement


def _known(bench: Workbench, candidate: Candidate, sampling: Sampling) -> Measurement | None:
    """What is stored of a rival that drawing can go on from: of whole batches, or of all samples.

    Where metrics are asked for, of all samples, with these metrics.
    """

    def is_usable(measurement: Measurement) -> bool:
        count = measurement.sampling.num_samples
        if count == sampling.num_samples:
            return not bench.secondary.lacks(measurement)
        return not bench.settings.metrics and count % sampling.batch_size == 0

    place = bench.environment(candidate.cell).id, sampling, candidate.cell, bench.since
    return next(iter(bench.store.evaluations(*place, is_usable)), None)


def _loses_more(quality: Quality, winner: Measurement) -> bool:
    """Whether a rival clearly loses more LPIPS than a winner, by the samples that it has been scored on.

    It is asked after every batch. In simulations, that stops 4% to 10% of rivals that lose as much as the winner, and
    what they say then differs from what all samples say in at most 1.2%.
    """
    own, others = quality.lpips_per_sample, winner.quality.lpips_per_sample
    if len(own) < RIVAL_SAMPLES or quality.lpips.value <= winner.quality.lpips.value:
        return False
    return mean_interval([mine - theirs for mine, theirs in zip(own, others, strict=False)]).low > 0
