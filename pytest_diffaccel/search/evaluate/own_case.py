"""A user's own case: any parameters, scheduler and number of steps, measured as a search measures its winners."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.measure.time_limit import time_limit
from pytest_diffaccel.search.evaluate.evaluation import measure, measure_together

if TYPE_CHECKING:
    from pytest_diffaccel.search.workbench import Workbench


def measure_own(bench: Workbench, cell: Cell, params: Params, blocks: int) -> Measurement:
    """Measure parameters against the unaccelerated pipeline, now: nothing stored is taken, and nothing is stored.

    A stored figure would let a test pass that no longer holds, and points outside the grids would enter the models
    that a search learns from its measurements.

    Args:
        bench: gives pipeline, prompts, number of samples and batch size.
        cell: pipe, scheduler (also a diffusers class name) and steps, at least 1.
        params: parameters by method, at least one method.
        blocks: timed blocks, at least 1.

    Raises:
        InvalidParams: for unknown methods or parameters, or values out of range.
        ValueError: for no method or block, an unknown pipe or scheduler, or one that the accelerators cannot follow.
        MethodDidNotAct: when a method had no effect.
        DegeneratePictures: when its pictures say nothing.
        CaseTimeout: after ``--case-timeout``.
    """
    candidate = _candidate(bench, cell, params, blocks)
    with time_limit(bench.settings.case_timeout_s):
        return measure(bench, candidate, blocks)


def measure_on_held_out(bench: Workbench, cell: Cell, params: Params, blocks: int) -> Measurement:
    """The same on the winners' samples, which golden's losses are of, with all metrics that were asked for.

    Args:
        bench: gives pipeline, prompts, number of samples, batch size and metrics.
        cell: as of :func:`measure_own`.
        params: as of :func:`measure_own`.
        blocks: timed blocks at the least; there are as many as full batches, if those are more.

    Raises:
        MetricFault: when a metric cannot be computed; the rest as :func:`measure_own`, less its limit, which is on a
            block here.
    """
    candidate = _candidate(bench, cell, params, blocks)
    (made,) = measure_together(bench, [candidate], blocks)
    images = bench.pictures.winner(candidate)
    return made if images is None else replace(made, metrics=bench.secondary.of(cell, images))


def _candidate(bench: Workbench, cell: Cell, params: Params, blocks: int) -> Candidate:
    if not params:
        raise ValueError('params is empty; name a method, such as {"ToMe": {"ratio": 0.5, "max_downsample": 1}}')
    if blocks < 1:
        raise ValueError(f"blocks={blocks}; time at least 1")
    bench.source.spec(cell.pipe)
    accelerator = bench.registry.for_params(params)
    accelerator.check(params, cell.steps)
    return Candidate(cell, accelerator.name, params)
