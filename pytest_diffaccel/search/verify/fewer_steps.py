"""The rival of every accelerator: the unaccelerated pipeline with fewer steps, which costs nothing to set up.

An accelerator that loses more than fewer steps at the same speed-up is pointless; DeepCache's own paper compares
itself so (Ma, Fang and Wang, CVPR 2024, section 4.2).
"""

from __future__ import annotations

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.records.leases import IN_COMMON
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.workbench import Workbench


def steps_as_fast(costs: CostModel, steps: int, speedup: float) -> int | None:
    """The most steps that are at least ``speedup`` times as fast as ``steps``; None when not even one is."""
    return next((fewer for fewer in range(steps, 0, -1) if costs.of_fewer_steps(steps, fewer).value >= speedup), None)


def rival(bench: Workbench, cell: Cell, costs: CostModel, speedup: float) -> Measurement | None:
    """The unaccelerated pipeline at the step count that reaches ``speedup``, scored on the winners' samples.

    What was scored before is found in the store.

    Returns:
        A measurement whose candidate has no accelerator and whose cell has fewer steps; its loss is against the
        images of ``cell``. None when no number of steps is as fast.
    """
    steps = steps_as_fast(costs, cell.steps, speedup)
    if steps is None:
        return None
    with bench.shared.together(cell, [IN_COMMON]):
        return _scored(bench, cell, costs, steps)


def _scored(bench: Workbench, cell: Cell, costs: CostModel, steps: int) -> Measurement:
    candidate = Candidate(Cell(cell.pipe, cell.scheduler, steps), "", {})
    environment = bench.environment(cell).id
    sampling = bench.sampling(cell, "winner").instead_of(cell.steps)
    stored = bench.store.find(candidate.key, environment, sampling, bench.since)
    if stored is not None and not bench.secondary.lacks(stored):
        return stored
    images = []
    with bench.generating(candidate.cell, {}, "fewer steps") as generate:
        for batch in bench.batches(cell, "winner"):
            images += generate(batch.prompts, batch.seeds)
        quality = bench.pictures.references(cell, "winner").score(images)
    predicted: Interval = costs.of_fewer_steps(cell.steps, steps)
    measurement = Measurement(
        *(candidate, environment, sampling, predicted, predicted, True, quality, ()),
        metrics=bench.secondary.of(cell, images),
    )
    bench.store.save(measurement)
    return measurement
