"""What a search knows: all that was measured in one environment, and what follows for speeds and losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_diffaccel.accelerators.composition import Registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Measurement, Round
from pytest_diffaccel.search.models.cost_model import CostModel


class Knowledge:
    """Measurements of one environment, and its calibration; of the search, each candidate's with the most samples."""

    def __init__(
        self, registry: Registry, measurements: Iterable[Measurement] = (), rounds: Iterable[Round] = ()
    ) -> None:
        self._registry = registry
        self._measurements: dict[tuple[str, str], Measurement] = {}
        self._rounds = list(rounds)
        self._costs: CostModel | None = None
        for measurement in measurements:
            self.add(measurement)

    def add_round(self, made: Round) -> None:
        """Take in a round of the calibration."""
        self._rounds.append(made)
        self._costs = None

    @property
    def rounds(self) -> Sequence[Round]:
        """The calibration's rounds, in their order."""
        return self._rounds

    @rounds.setter
    def rounds(self, rounds: Sequence[Round]) -> None:
        if len(rounds) != len(self._rounds):
            self._rounds = list(rounds)
            self._costs = None

    def add(self, measurement: Measurement) -> None:
        """Take in a measurement, in place of an older one of the same candidate and purpose."""
        key = measurement.candidate.key, measurement.sampling.purpose
        old = self._measurements.get(key)
        if old is None or old.blocks != measurement.blocks:
            self._costs = None
        self._measurements[key] = measurement

    def drop(self, candidate: Candidate) -> None:
        """Forget the search's measurement of ``candidate``: it does not work any more."""
        self._measurements.pop((candidate.key, "search"), None)
        self._costs = None

    def find(self, candidate: Candidate) -> Measurement | None:
        """The search's measurement of ``candidate``."""
        return self._measurements.get((candidate.key, "search"))

    @property
    def costs(self) -> CostModel:
        """The cost model of all that was timed: the calibration's rounds, and blocks of any cell and purpose.

        Winners that were timed before the calibration tell of a machine that was another one: the calibration was made
        anew (:func:`.calibrate`).
        """
        if self._costs is None:
            began = self._rounds[0].started_at if self._rounds else 0.0
            timed = [
                (one.candidate, [block for block in one.blocks if block.started_at >= began])
                if one.sampling.purpose == "winner"
                else (one.candidate, one.blocks)
                for one in self._measurements.values()
            ]
            short = [(candidate, (block,)) for made in self._rounds for candidate, block in made.blocks]
            self._costs = CostModel.fit(self._registry, [*timed, *short])
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
