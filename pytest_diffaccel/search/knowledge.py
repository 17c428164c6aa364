"""What a search knows: all that was measured in one environment, and what follows for speeds and losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from pytest_diffaccel.accelerators.base import Foresight
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Candidate, Cell, Group
from pytest_diffaccel.measure.deciding import BY_LPIPS, Deciding
from pytest_diffaccel.measure.measurement import Block, Measurement, Round, SpeedClock
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.kind_costs import KindCosts
from pytest_diffaccel.search.predict.reach import VAGUE_SPEEDUP
from pytest_diffaccel.search.predict.step_counts import StepCounts, decided_in


class Knowledge:
    """Measurements of one environment, and its calibration; of the search, each candidate's with the most samples.

    Args:
        registry: the methods known.
        measurements: what was measured.
        rounds: of the calibration, by either clock, in their order.
        decide_by: the clock whose speed-ups decide.
        quality: the metric that decides, which all measurements of the search have.
        foresights: of methods that decide by the picture, by group.

    Attributes:
        derived: what others derive from all this, by group, until something is known anew.
    """

    def __init__(
        self,
        registry: Registry,
        measurements: Iterable[Measurement] = (),
        rounds: Iterable[Round] = (),
        decide_by: SpeedClock = "wall",
        quality: Deciding = BY_LPIPS,
        foresights: Mapping[Group, Sequence[Foresight]] | None = None,
    ) -> None:
        self._registry = registry
        self._decide_by = decide_by
        self._quality = quality
        self._measurements: dict[tuple[str, str], Measurement] = {}
        self._rounds = list(rounds)
        self._foresights = {} if foresights is None else foresights
        self._kinds: dict[SpeedClock, KindCosts] = {}
        self._costs: dict[SpeedClock, CostModel] = {}
        self.derived: dict[Group, Any] = {}
        for measurement in measurements:
            self.add(measurement)

    def add_round(self, made: Round) -> None:
        """Take in a round of the calibration."""
        self._rounds.append(made)
        self._kinds.pop(made.clock, None)
        self.forget_costs()

    def rounds(self, clock: SpeedClock = "wall") -> list[Round]:
        """The calibration's rounds by a clock, in their order."""
        return [made for made in self._rounds if made.clock == clock]

    def forget_costs(self) -> None:
        """Something that speed-ups or losses are predicted from is known anew, beside what kinds of steps cost."""
        self._costs.clear()
        self.derived.clear()

    def replace_rounds(self, rounds: Sequence[Round]) -> None:
        """Know these rounds, of either clock, in place of those known."""
        if len(rounds) != len(self._rounds):
            self._rounds = list(rounds)
            self._kinds.clear()
            self.forget_costs()

    def add(self, measurement: Measurement) -> None:
        """Take in a measurement, in place of an older one of the same candidate and purpose."""
        key = measurement.candidate.key, measurement.sampling.purpose
        old = self._measurements.get(key)
        self._measurements[key] = measurement
        blocks, decided = (old.blocks, old.decided) if old else ((), ())
        if measurement.blocks != blocks:
            self._kinds.pop("wall", None)
        if (measurement.blocks, measurement.decided) != (blocks, decided):
            self.forget_costs()
        # Pictures alone say nothing of speed-ups, which take a while to predict.
        self.derived.clear()

    def drop(self, candidate: Candidate) -> None:
        """Forget the search's measurement of ``candidate``: it does not work any more."""
        self._measurements.pop((candidate.key, "search"), None)
        self._kinds.pop("wall", None)
        self.forget_costs()

    def find(self, candidate: Candidate) -> Measurement | None:
        """The search's measurement of ``candidate``."""
        return self._measurements.get((candidate.key, "search"))

    def verified(self, cell: Cell, accelerator: str) -> list[Measurement]:
        """Measurements of a group's winners, also of those that are none any more."""
        return [
            measurement
            for measurement in self._measurements.values()
            if measurement.sampling.purpose == "winner" and measurement.candidate.group == (cell, accelerator)
        ]

    @property
    def costs(self) -> CostModel:
        """The cost model by the clock that decides."""
        return self.costs_by(self._decide_by)

    def costs_by(self, clock: SpeedClock) -> CostModel:
        """The cost model of all that was timed by a clock.

        By the wall clock these are the calibration's rounds, and blocks of any cell and purpose; the GPU's own time is
        read of rounds only.
        """
        if clock not in self._kinds:
            short = [(candidate, (block,)) for made in self.rounds(clock) for candidate, block in made.blocks]
            timed = self._timed() if clock == "wall" else []
            self._kinds[clock] = KindCosts.from_blocks([*timed, *short], clock)
        if clock not in self._costs:
            self._costs[clock] = CostModel(self._registry, self._kinds[clock], self.step_counts)
        return self._costs[clock]

    @property
    def step_counts(self) -> StepCounts:
        """How many steps of a candidate are of which kind, by what its runs decided, else by what was foreseen."""
        decided: defaultdict[Candidate, list[Sequence[str]]] = defaultdict(list)
        for measurement in self._measurements.values():
            decided[measurement.candidate] += measurement.decided or decided_in(measurement.blocks)
        return StepCounts(self._registry, self._foresights, decided)

    def _timed(self) -> list[tuple[Candidate, Sequence[Block]]]:
        """The measurements' blocks.

        Winners that were timed before the calibration tell of a machine that was another one: the calibration was made
        anew (:func:`.calibrate`).
        """
        began = next((made.started_at for made in self.rounds("wall")), 0.0)
        return [
            (measurement.candidate, [block for block in measurement.blocks if block.started_at >= began])
            if measurement.sampling.purpose == "winner"
            else (measurement.candidate, measurement.blocks)
            for measurement in self._measurements.values()
        ]

    def baseline_s(self, steps: int, clock: SpeedClock = "wall") -> float:
        """A whole run of the unaccelerated pipeline, seconds, by a clock's rounds, of which there is one at least."""
        runs = [made.baseline for made in self.rounds(clock)]
        step_s = median(sum(run.step_s) / len(run.step_s) for run in runs)
        # Of rounds that other sessions go on with, none may have drawn its pictures.
        fixed_s = [run.fixed_s for run in runs if run.whole] or [run.fixed_s for run in runs]
        return steps * step_s + median(fixed_s)

    def busy_share(self, candidate: Candidate, run_s: float) -> float | None:
        """For which share of a run the GPU works, 0 to 1; None where too little is known of its own time.

        Args:
            candidate: whose run it is.
            run_s: what it took by the wall clock, seconds.
        """
        if not self.rounds("device"):
            return None
        (speedup,) = self.costs_by("device").speedups([candidate])
        if speedup.half_width_ratio > VAGUE_SPEEDUP:
            return None
        return min(1.0, self.baseline_s(candidate.cell.steps, "device") / speedup.value / run_s)

    def losses(self, cell: Cell) -> dict[Candidate, tuple[float, ...]]:
        """The loss of each sample of each candidate of ``cell`` that the search evaluated."""
        return {
            measurement.candidate: self._quality.losses(measurement)
            for measurement in self._measurements.values()
            if measurement.candidate.cell == cell and measurement.sampling.purpose == "search"
        }
