"""Secondary metrics of a search's winners and rivals, and which candidates bounds on them bar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.bounds import Barring, barring
from pytest_diffaccel.measure.measurement import Measurement, MetricFigures, MetricValues
from pytest_diffaccel.measure.metrics.base import Metric, scores_of
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.search.news import METRIC

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.search.workbench import Workbench


class SecondaryMetrics:
    """The metrics that a search was asked for beside the one that decides.

    They are computed of pictures that are made anyway: the winners', which are kept, and the rivals'.

    Args:
        bench: the search's workbench.
        registry: the metrics known.

    Raises:
        MetricFault: when one cannot be computed here, naming what is missing and the fix.
    """

    def __init__(self, bench: Workbench, registry: MetricRegistry) -> None:
        self._bench = bench
        self._wanted = [registry[name] for name in bench.settings.metrics]
        for metric in self._wanted:
            # Not on the GPU: what lay in its memory would count as that of the candidates measured next.
            metric.prepare("cpu")
        self._baselines: dict[tuple[Cell, str], tuple[float, ...]] = {}

    @cached_property
    def _identities(self) -> dict[str, str]:
        """Of each metric that is wanted: finding it may take reading weights."""
        return {metric.name: metric.identity for metric in self._wanted}

    def lacks(self, measurement: Measurement) -> bool:
        """Whether a winner's or rival's measurement lacks a metric that is wanted, or has that of other weights."""
        known = {name: metric.identity for name, metric in measurement.metrics.items()}
        return any(known.get(metric.name) != self._identities[metric.name] for metric in self._wanted)

    def completed(self, measurement: Measurement) -> Measurement | None:
        """A winner's measurement with all that is wanted, which is stored; None where that takes pictures that are
        gone.
        """
        if not self.lacks(measurement):
            return measurement
        images = self._bench.pictures.winner(measurement.candidate)
        if images is None:
            return None
        found = {**measurement.metrics, **self.of(measurement.candidate.cell, images)}
        made = replace(measurement, metrics=found)
        self._bench.keep(made)
        return made

    def of(self, cell: Cell, images: Sequence[Image]) -> dict[str, MetricValues]:
        """What is wanted, of pictures of the winners' samples of ``cell``, by metric.

        Raises:
            MetricFault: when a metric fails, or gives what is no value for each picture.
        """
        if not self._wanted:
            return {}
        baseline = self._bench.pictures.baseline(cell, "winner")
        prompts = [prompt for batch in self._bench.batches(cell, "winner") for prompt in batch.prompts]
        device = str(self._bench.pipelines.of(cell).device)
        found = {}
        with self._bench.pipelines.lock.generating():
            for metric in self._wanted:
                began = time.monotonic()
                with self._bench.spent.on(f"{METRIC}{metric.name}"):
                    before = None
                    if not metric.needs_references:
                        before = self._of_baseline(metric, cell, baseline, prompts, device)
                    values = scores_of(metric, images, baseline, prompts, device)
                found[metric.name] = MetricValues(
                    *(self._identities[metric.name], values, before),
                    higher_is_better=metric.higher_is_better,
                    unit=metric.unit,
                    seconds=round(time.monotonic() - began, 3),
                )
        return found

    def _of_baseline(
        self, metric: Metric, cell: Cell, baseline: Sequence[Image], prompts: Sequence[str], device: str
    ) -> tuple[float, ...]:
        key = cell, metric.name
        if key not in self._baselines:
            self._baselines[key] = scores_of(metric, baseline, prompts=prompts, device=device)
        return self._baselines[key]

    def figures(self, measurement: Measurement) -> dict[str, MetricFigures]:
        """What is wanted of a measurement, as far as it has it, by metric."""
        known = measurement.metrics
        return {metric.name: metric_figures(known[metric.name]) for metric in self._wanted if metric.name in known}

    def bars(self, cell: Cell, accelerator: str) -> dict[str, Barring]:
        """Why candidates of a group cannot win within the bounds, by key, as far as they are verified."""
        bounds = self._bench.settings.bounds
        if not bounds:
            return {}
        sampling = self._bench.sampling(cell, "winner")
        judged = {
            measurement.candidate.key: barring(bounds, self.figures(measurement))
            for measurement in self._bench.known(cell).verified(cell, accelerator)
            if measurement.sampling == sampling and not self.lacks(measurement)
        }
        return {key: bar for key, bar in judged.items() if bar is not None}
