"""What a search knows: all that was measured in one environment, and what follows for speeds and losses."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_diffaccel.accelerators.composition import Registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.search.cost_model import CostModel


class Knowledge:
    """Measurements of one environment; of the search, each candidate's with the most samples."""

    def __init__(self, registry: Registry, measurements: Iterable[Measurement] = ()) -> None:
        self._registry = registry
        self._measurements: dict[tuple[str, str], Measurement] = {}
        self._costs: CostModel | None = None
        for measurement in measurements:
            self.add(measurement)

    def add(self, measurement: Measurement) -> None:
        """Take in a measurement, in place of an older one of the same candidate and purpose."""
        key = measurement.candidate.key, measurement.sampling.purpose
        old = self._measurements.get(key)
        if old is None or old.blocks != measurement.blocks:
            self._costs = None
        self._measurements[key] = measurement

    def find(self, candidate: Candidate) -> Measurement | None:
        """The search's measurement of ``candidate``."""
        return self._measurements.get((candidate.key, "search"))

    @property
    def costs(self) -> CostModel:
        """The cost model of all timed blocks, of any cell and purpose."""
        if self._costs is None:
            timed = ((one.candidate, one.blocks) for one in self._measurements.values())
            self._costs = CostModel.fit(self._registry, timed)
        return self._costs

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations of a step for one image, by every kind that was counted."""
        return {kind: count for one in self._measurements.values() for kind, count in one.flops.items()}

    def losses(self, cell: Cell) -> dict[Candidate, tuple[float, ...]]:
        """LPIPS of each sample of each candidate of ``cell`` that the search evaluated."""
        return {
            one.candidate: one.quality.lpips_per_sample
            for one in self._measurements.values()
            if one.candidate.cell == cell and one.sampling.purpose == "search"
        }
