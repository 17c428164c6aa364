"""How long a search still takes: a model of its work, the calibration's seconds, and the pace of what has ended."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_diffaccel.matrix import Cell, Group
from pytest_diffaccel.measure.threads import cores
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.search.effort import Effort, SearchCase, step_weight, winners
from pytest_diffaccel.search.news import Calibration, News
from pytest_diffaccel.search.results import Chosen, Measured, Winners
from pytest_diffaccel.settings.search_settings import Settings

# The pace begins at the calibration's, as if so many unaccelerated runs had been made at it: one case says little.
_PRIOR_RUNS = 10


@dataclass(frozen=True)
class Lanes:
    """How a search's work goes on side by side.

    Attributes:
        workers: processes that generate at once.
        alone: whether a verification holds up all others: it is timed on processors that all of them use.
        divisible: whether several workers may work on a group.
    """

    workers: int = 1
    alone: bool = True
    divisible: bool = False

    @classmethod
    def of(cls, settings: Settings, workers: int) -> Lanes:
        """Those of a session with ``workers`` processes."""
        own_cores = settings.models == "embedded" and workers <= cores()
        on_cpu = settings.gpus is None
        # With several threads per process, generations on one CPU take turns (TimingLock.shareable).
        shared = not on_cpu or settings.models == "embedded"
        return cls(workers if shared else 1, on_cpu and not own_cores, settings.exhaustive)

    def seconds(
        self, groups: Sequence[tuple[Cell, float]], verifications: Mapping[Cell, float], again_s: float = 0.0
    ) -> float:
        """How long groups and the verification of their winners take.

        Args:
            groups: each group's cell and seconds of work.
            verifications: seconds of work by cell; of several workers, each verifies the groups that it has decided.
            again_s: what one of several workers does at the end, while the others have nothing left to do: it verifies
                what the winners of all groups of the last cell have moved.
        """
        if self.alone:
            return self._until_idle([seconds for _, seconds in groups]) + sum(verifications.values())
        of_cell = Counter(cell for cell, _ in groups)
        shared = [seconds + verifications.get(cell, 0.0) / of_cell[cell] for cell, seconds in groups]
        return self._until_idle(shared) + (again_s if self.workers > 1 else 0.0)

    def _until_idle(self, groups: Sequence[float]) -> float:
        """When the last worker is done, if each takes the longest group that none has."""
        if self.divisible:
            groups = [seconds / self.workers for seconds in groups for _ in range(self.workers)]
        ends = [0.0] * self.workers
        for seconds in sorted(groups, reverse=True):
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)


@dataclass
class _Open:
    """What is open of a group.

    Attributes:
        in_group: points of its grid.
        candidates: open cases of candidates.
        winners: open winners' cases.
        evaluated: candidates that their cases evaluated.
    """

    in_group: int
    candidates: int = 0
    winners: int = 0
    evaluated: int = 0

    def count(self, case: SearchCase, number: int) -> None:
        """Count a case in, or out."""
        if case.is_winners:
            self.winners += number
        else:
            self.candidates += number

    def runs_left(self, effort: Effort) -> float:
        """Unaccelerated runs that the open cases are worth, without verification."""
        if effort.blocks is not None:
            return self.candidates * effort.evaluation()
        evaluations = effort.evaluated(self.in_group)
        if not self.winners:  # then nobody evaluates what the candidates' cases skip
            return evaluations * self.candidates / self.in_group * effort.evaluation()
        return max(0.0, evaluations - self.evaluated) * effort.evaluation() + effort.settling(self.in_group)


class TimeLeft:
    """What is left of a search, in seconds.

    Args:
        cases: the session's, by node id.
        effort: how much work each part is.
        lanes: how it goes on side by side.
        embedded: whether the pipelines are the embedded ones.
        budget_s: ``--search-budget``, seconds; None for no limit.
    """

    def __init__(
        self,
        cases: Mapping[str, SearchCase],
        effort: Effort,
        lanes: Lanes,
        *,
        embedded: bool,
        budget_s: float | None = None,
    ) -> None:
        self._cases = dict(cases)
        # Open cases of each group, candidates' and winners'.
        self._groups: dict[Group, _Open] = {}
        for case in cases.values():
            self._groups.setdefault(Group(case.cell, case.accelerator), _Open(case.in_group)).count(case, 1)
        self._effort = effort
        self._lanes = lanes
        self._embedded = embedded
        self._budget_s = budget_s
        self._budgeted_s: defaultdict[str, float] = defaultdict(float)
        # By pipe: seconds of an unaccelerated step of one batch, and the efforts by what is known of its candidates.
        self._step_s: dict[str, float] = {}
        self._efforts: dict[str, Effort] = {}
        self._run_s = 0.0
        # What ended cases took, and what they were expected to: steps of unaccelerated runs, by pipe.
        self._took_s = 0.0
        self._done: defaultdict[str, float] = defaultdict(float)
        self._begun: set[Cell] = set()
        self._winners: defaultdict[Cell, dict[str, float]] = defaultdict(dict)
        # Winners that were verified ahead of their cell's end.
        self._verified: defaultdict[Cell, float] = defaultdict(float)
        for (cell, accelerator), group in self._groups.items():
            if group.winners:
                self._winners[cell][accelerator] = winners(group.in_group)

    def case_ended(self, name: str, result: CaseResult, *, duration_s: float, worker: str = "") -> None:
        """Take in a case.

        Args:
            name: its node id.
            result: what it found.
            duration_s: how long it took, with all that its process waited for and loaded.
            worker: the name of its process.
        """
        news = result.news if isinstance(result, Measured | Winners) else News()
        for pipe, calibration in news.calibrated.items():
            self._calibrate(pipe, calibration)
        case = self._cases.pop(name, None)
        if case is None:
            return
        self._groups[Group(case.cell, case.accelerator)].count(case, -1)
        if case.is_winners:
            self._budgeted_s[worker] += duration_s
        worked_s, runs = _worked_s(news), self._runs(case, result)
        if worked_s:  # what was stored says nothing
            self._took_s += worked_s
            self._done[case.cell.pipe] += runs * case.cell.steps

    def _calibrate(self, pipe: str, calibration: Calibration) -> None:
        if pipe in self._step_s:
            return  # another worker's
        self._step_s[pipe] = calibration.baseline_s / calibration.steps
        self._efforts[pipe] = replace(
            self._effort,
            accelerated_share=calibration.accelerated_share,
            first_batches=calibration.first_batches,
        )
        self._run_s = self._run_s or calibration.baseline_s

    def _runs(self, case: SearchCase, result: CaseResult) -> float:
        """Unaccelerated runs that an ended case is worth by the model, for what it turned out to do."""
        effort, runs = self._effort_of(case.cell), 0.0
        if isinstance(result, Winners):
            self._winners[case.cell][case.accelerator] = distinct(result.provisional)
            runs = result.explored * effort.evaluation() + effort.settling(case.in_group)
            if result.of_cell:
                runs += self._verification(case.cell)
            elif "verification" in result.news.phases_s:  # its own winners, ahead of the cell's end
                verified = self._winners[case.cell][case.accelerator]
                runs += effort.verification(verified)
                self._verified[case.cell] += verified
                self._winners[case.cell][case.accelerator] = 0.0
        elif isinstance(result, Measured):
            self._groups[Group(case.cell, case.accelerator)].evaluated += 1
            runs = effort.evaluation(1 / result.figures.speedup.value)
        is_stored = isinstance(result, Measured) and result.stored
        if runs and case.cell not in self._begun and not is_stored:
            self._begun.add(case.cell)
            runs += effort.batches  # its own pictures
        return runs

    def _effort_of(self, cell: Cell) -> Effort:
        return self._efforts.get(cell.pipe, self._effort)

    def _verification(self, cell: Cell) -> float:
        """Unaccelerated runs that verifying a cell takes."""
        return self._effort_of(cell).verification(sum(self._winners[cell].values()))

    @property
    def pace(self) -> float | None:
        """How many times as long as expected things take; None while nothing tells.

        Expected is what the calibration says; in a search without one, so many seconds as the steps' weights are.
        """
        expected_s = sum(steps * self._step_s_of(pipe) for pipe, steps in self._done.items())
        prior_s = _PRIOR_RUNS * self._run_s
        if not expected_s + prior_s:
            return None
        return (self._took_s + prior_s) / (expected_s + prior_s)

    @property
    def is_calibrated(self) -> bool:
        """Whether a calibration says what is expected."""
        return bool(self._step_s)

    def _step_s_of(self, pipe: str) -> float:
        """Seconds of an unaccelerated step: as calibrated, else as the pipes' weights make it of the others'."""
        if pipe in self._step_s:
            return self._step_s[pipe]
        weight = step_weight(pipe, embedded=self._embedded)
        known = {other: step_weight(other, embedded=self._embedded) for other in self._step_s}
        return weight * (sum(self._step_s.values()) / sum(known.values()) if known else 1.0)

    def seconds(self) -> float | None:
        """What is left; None while nothing tells."""
        if not self._cases:
            return 0.0
        pace = self.pace
        if pace is None:
            return None
        verifications, again_s = self._verifications_s(), self._again_s()
        left_s = pace * self._lanes.seconds(self._groups_s(), verifications, again_s)
        if self._budget_s is None:
            return left_s
        # What begins within the budget is verified, however long that takes.
        budget_left_s = self._budget_s - max(self._budgeted_s.values(), default=0.0)
        verifying_s = pace * self._lanes.seconds([(cell, 0.0) for cell in verifications], verifications, again_s)
        return min(left_s, max(budget_left_s, verifying_s))

    def _groups_s(self) -> list[tuple[Cell, float]]:
        """Each open group's cell, and the seconds that are left of it at the calibration's pace."""
        left, begun = [], set(self._begun)
        for (cell, _), group in self._groups.items():
            if not group.candidates and not group.winners:
                continue
            runs = group.runs_left(self._effort_of(cell))
            if cell not in begun:
                begun.add(cell)
                runs += self._effort.batches
            left.append((cell, self._calibrated_s(cell, runs)))
        return left

    def _verifications_s(self) -> dict[Cell, float]:
        """Seconds that verifying takes at the calibration's pace, by cell: of those with open winners' cases."""
        return {cell: self._calibrated_s(cell, self._verification(cell)) for cell in self._unverified()}

    def _again_s(self) -> float:
        """Seconds that verifying what has moved takes at the end, at the calibration's pace: of the longest cell."""

        def seconds(cell: Cell) -> float:
            of_all = sum(self._winners[cell].values()) + self._verified[cell]
            return self._calibrated_s(cell, self._effort_of(cell).again(of_all))

        return max(map(seconds, self._unverified()), default=0.0)

    def _unverified(self) -> list[Cell]:
        """Cells with open winners' cases."""
        return list(dict.fromkeys(cell for (cell, _), group in self._groups.items() if group.winners))

    def _calibrated_s(self, cell: Cell, runs: float) -> float:
        """Seconds that unaccelerated runs of a cell take at the calibration's pace."""
        return runs * cell.steps * self._step_s_of(cell.pipe)


def distinct(provisional: Sequence[Chosen]) -> int:
    """How many candidates of a group will be verified."""
    params = [chosen.params for chosen in provisional]
    return sum(point not in params[:place] for place, point in enumerate(params))


def _worked_s(news: News) -> float:
    """Seconds that a process worked since its last result: no imports, waiting, loading, compiling or calibrating."""
    phases = dict(news.phases_s)
    for name in ("loading", "compiling", "scale of losses", "stack over eager"):
        phases.pop(name, None)
    calibrated_s = sum(calibration.seconds for calibration in news.calibrated.values())
    phases["short runs"] = max(0.0, phases.get("short runs", 0.0) - calibrated_s)
    return float(sum(phases.values()))
