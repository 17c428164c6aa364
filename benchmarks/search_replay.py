"""Our search on a recorded table: the plan and the race that run on pipelines, fed with what was recorded.

Everything it generates and times is charged: samples at their speed-up, timed runs at the batch that was timed, the
baseline runs beside them, and warm runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.record_exhaustive import TIMED_BATCH
from benchmarks.recorded import Point
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.calibrate.calibration import is_predicted
from pytest_diffaccel.search.decide.contenders import Contenders
from pytest_diffaccel.search.decide.plan import Plan
from pytest_diffaccel.search.decide.racing import explore, settle
from pytest_diffaccel.search.decide.select import Option, choose
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.loss_model import EQUAL_LOSS

REGISTRY = default_registry()
MAX_LOSS = 0.25
#: Samples of a first evaluation where calls of a few are cheap, as in pytest_diffaccel.search.workbench.
FIRST = 2
# Blocks that tell a borderline speed-up, as in pytest_diffaccel.search.group.
_BLOCKS_ENOUGH = 4
# A calibration's share of the exhaustive search's time, and accelerated runs in one of its rounds, as in
# pytest_diffaccel.search.calibrate (calibration.py, timer.py).
_CALIBRATION_SHARE, _ROUND = 0.01, 4
#: One group's target: the accelerator and the speed-up.
Goal = tuple[str, float]


class Table:
    """A recorded cell, and the truth that all of its blocks and samples tell."""

    def __init__(self, cell: Cell, points: Sequence[Point]) -> None:
        self.cell = cell
        self.points = {point.candidate: point for point in points if point.losses}
        self.samples = len(next(iter(self.points.values())).losses)
        self.batch = TIMED_BATCH[cell.pipe]
        model = CostModel.fit(REGISTRY, [(one, point.blocks) for one, point in self.points.items()])
        self.speedups: dict[Candidate, Interval] = dict(
            zip(self.points, model.speedups(list(self.points)), strict=True)
        )

    @cached_property
    def winners(self) -> dict[Goal, Candidate | None]:
        """The exhaustive search's; None where no candidate is fast and good enough."""
        return named(self, list(self.points))

    @cached_property
    def exhaustive_time(self) -> float:
        """Denoiser time of all samples of all candidates, in baseline generations of one sample.

        One of its runs is timed, as recorded, for which a baseline run stands beside it.
        """
        return sum(self.samples / self.speedups[one].value + self.batch for one in self.points)

    def loss(self, candidate: Candidate) -> float:
        """Its LPIPS on all samples."""
        return float(np.mean(self.points[candidate].losses))

    def group(self, accelerator: Accelerator) -> list[Candidate]:
        """The group's candidates, its grid first."""
        return [one for one in self.points if one.accelerator == accelerator.name]


def named(table: Table, evaluated: Sequence[Candidate]) -> dict[Goal, Candidate | None]:
    """The winners among candidates evaluated in full, with all speed-ups known."""
    winners: dict[Goal, Candidate | None] = {}
    for accelerator in REGISTRY.suiting(table.cell.pipe):
        own = [one for one in evaluated if one.accelerator == accelerator.name]
        winners |= chosen(accelerator, [Option(one, table.speedups[one], table.points[one].losses) for one in own])
    return winners


def chosen(accelerator: Accelerator, options: Sequence[Option]) -> dict[Goal, Candidate | None]:
    """A group's winners among what was evaluated of it."""
    choices = [choose(options, target, MAX_LOSS) for target in TARGETS]
    return {
        (accelerator.name, choice.target): choice.option.candidate if choice.option and not choice.reason else None
        for choice in choices
    }


class Told(CostModel):
    """A cost model that is told some candidates' speed-ups: those that were timed in many blocks.

    Attributes:
        told: their speed-ups.
    """

    told: Mapping[Candidate, Interval]

    def speedups(self, candidates: Sequence[Candidate]) -> list[Interval]:
        """As told, else as predicted."""
        predicted = super().speedups(candidates)
        return [self.told.get(one, speedup) for one, speedup in zip(candidates, predicted, strict=True)]


@dataclass
class Replay:
    """Our search on a table; a :class:`pytest_diffaccel.search.decide.racing.Track` of one group after the other.

    Attributes:
        table: what is replayed.
        order: the samples' places, shuffled by the seed.
        accelerator: the group that is searched now.
        images: generated so far.
        spent: denoiser time so far, in baseline generations of one sample.
        first: samples of a first evaluation; more are given in multiples of it.
        calls: that drew samples so far.
    """

    table: Table
    order: Sequence[int]
    accelerator: Accelerator = field(default_factory=lambda: next(iter(REGISTRY)))
    images: int = 0
    spent: float = 0.0
    first: int = FIRST
    calls: int = 0
    _evaluated: dict[Candidate, tuple[float, ...]] = field(default_factory=dict)
    _timed: set[Candidate] = field(default_factory=set)
    _told: dict[Candidate, Interval] = field(default_factory=dict)
    _costs: Told | None = None
    _plan: Plan | None = None

    def plan(self) -> Plan:
        """The group as far as it is known now."""
        if self._plan is None:
            known = self._fitted, dict(self._evaluated)
            self._plan = Plan(REGISTRY, self.accelerator, self.table.cell, *known, MAX_LOSS, self.first)
        return self._plan

    @property
    def _fitted(self) -> Told:
        if self._costs is None:
            timed = [(one, self.table.points[one].blocks[:1]) for one in self._timed]
            self._costs = Told.fit(REGISTRY, timed)
            self._costs.told = self._told
        return self._costs

    def calibrate(self) -> None:
        """Time what is known least, until all of it is known or a share of the time is spent.

        The table has whole runs only, so those stand for short ones, and are charged whole.
        """
        grid = [
            Candidate(self.table.cell, accelerator.name, params)
            for accelerator in REGISTRY.suiting(self.table.cell.pipe)
            for params in accelerator.grid(self.table.cell, coarse=False)
        ]
        open_ones = [one for one in grid if one in self.table.points]
        while open_ones and self.spent < _CALIBRATION_SHARE * self.table.exhaustive_time:
            widths = [one.half_width_ratio for one in self._fitted.speedups(open_ones)]
            order = np.argsort(widths, kind="stable")[::-1][:_ROUND]
            if all(is_predicted(one) for one in self._fitted.speedups(open_ones)):
                return
            for place in sorted(order.tolist(), reverse=True):
                one = open_ones.pop(place)
                self._timed.add(one)
                self._generate(self.table.speedups[one].value, self.table.batch)
            self._generate(1.0, self.table.batch)
            self._costs = None

    def evaluate(self, candidate: Candidate) -> None:
        """The first samples."""
        self.extend(candidate, self.first)

    def extend(self, candidate: Candidate, num_samples: int) -> None:
        """More samples."""
        losses = self.table.points[candidate].losses
        count = num_samples - len(self._evaluated.get(candidate, ()))
        self.calls += 1
        self._generate(self.table.speedups[candidate].value, count)
        self._evaluated[candidate] = tuple(losses[place] for place in self.order[:num_samples])
        self._plan = None

    def _tell_borderline(self) -> None:
        """Blocks enough to know what may or may not be fast enough: the table's truth, as many blocks would tell it."""
        known = self.plan()
        candidates = Contenders(known.options, known.max_loss, known.first, self.table.samples).borderline()
        untold = [one for one in candidates if one not in self._told]
        for candidate in untold:
            self._told[candidate] = self.table.speedups[candidate]
            self._generate(self.table.speedups[candidate].value, self.table.batch * (1 + _BLOCKS_ENOUGH))
        if untold:
            self._generate(1.0, self.table.batch * _BLOCKS_ENOUGH)
            self._plan = None

    def _generate(self, speedup: float, count: int) -> None:
        self.images += count
        self.spent += count / speedup

    def search(self) -> dict[Goal, Candidate | None]:
        """All groups, as the cases and the winners' cases of a search go about them."""
        winners: dict[Goal, Candidate | None] = {}
        self.calibrate()
        for accelerator in REGISTRY.suiting(self.table.cell.pipe):
            self.accelerator, self._plan = accelerator, None
            group = self.table.group(self.accelerator)
            points = self.accelerator.grid(self.table.cell, coarse=False)
            grid = [one for one in group if one.params in points]
            for candidate in grid:
                if self.plan().advice(candidate, grid).evaluate:
                    self.evaluate(candidate)
            explore(self, group, len(group), len(grid))
            self._tell_borderline()
            settle(self, self.table.samples)
            winners |= chosen(self.accelerator, self.plan().options)
        return winners


def judge(table: Table, winners: dict[Goal, Candidate | None]) -> tuple[float, list[float]]:
    """Share of targets that are right, and the regret of each target that has a winner."""
    right, regrets = [], []
    for goal, best in table.winners.items():
        found = winners[goal]
        if best is None or found is None:
            right.append(best is found)
        else:
            regret = max(0.0, table.loss(found) / max(table.loss(best), 1e-6) - 1)
            fast = table.speedups[found].high >= goal[1]
            right.append(fast and regret <= EQUAL_LOSS)
            regrets.append(regret)
    return float(np.mean(right)), regrets
