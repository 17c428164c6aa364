"""How far a search is, and what it has found so far."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pytest_diffaccel.matrix import TARGETS
from pytest_diffaccel.measure.deciding import BY_LPIPS, LPIPS, QualityRule
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.report.time_left import TimeLeft, distinct
from pytest_diffaccel.search.effort import SearchCase
from pytest_diffaccel.search.results import Figures, Measured, Winners
from pytest_diffaccel.words import counted

_NO_CASES: Mapping[str, SearchCase] = MappingProxyType({})
# What takes a while in any case, and what does in a winners' case, as :class:`.Spent` names it, in words.
_LONG: Mapping[str, str] = MappingProxyType(
    {
        "loading": "loading the model",
        "learning": "learning what methods need",
        "foreseeing": "foreseeing what methods decide",
        "scale of losses": "finding out what a loss means here",
        "compiling": "compiling, or finding what was compiled before",
        "stack over eager": "timing the stack beside the eager pipeline",
        "short runs": "timing short runs",
        "verification": "timing winners",
        "fewer steps": "trying fewer steps",
    }
)
_IN_WINNERS: Mapping[str, str] = MappingProxyType({"pictures": "making pictures", "scoring": "scoring pictures"})
# So many times as long as calibrated is worth a word.
_SLOW = 1.5


def duration(seconds: float) -> str:
    """``"45 s"``, ``"12 min"``, ``"3.5 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class EndedCase:
    """How a case ended.

    Attributes:
        name: its node id.
        outcome: ``"passed"``, ``"failed"`` or ``"skipped"``.
        duration_s: how long it took, seconds.
        worker: xdist's name of the worker that ran it; empty in a session without workers.
        reason: why it failed or was skipped, in a line; empty where it passed.
    """

    name: str
    outcome: str
    duration_s: float
    worker: str
    reason: str = ""


class Progress:
    """State of the live line.

    Args:
        cases: how many cases the session has.
        time_left: what tells how long they take.
        winners: those of the cases that look for winners, by node id.
        quality: what decides.
        clock: seconds.
    """

    def __init__(
        self,
        cases: int,
        time_left: TimeLeft,
        winners: Mapping[str, SearchCase] = _NO_CASES,
        quality: QualityRule = BY_LPIPS.rule,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cases = cases
        self._time_left = time_left
        self._winners = winners
        self._quality = quality
        self._begun: list[str] = []
        self._chosen: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._is_slow = False
        self._place = ""
        self._best: dict[tuple[str, float], float] = {}
        self._cell = ""
        self._waits = ""
        self._works = ""
        self._clock = clock
        self._moved_at = clock()

    def waits(self, said: str) -> None:
        """Take in for whom the session waits, in words; until another case begins or ends."""
        self._waits = said

    def works_on(self, phase: str) -> bool:
        """Take in what goes on in a case, until it ends; whether the line says so: what a short one does it does not.

        Args:
            phase: as :class:`.Spent` names it.
        """
        self._works = _LONG.get(phase, "") or (_IN_WINNERS.get(phase, "") if self._begun else "")
        return bool(self._works)

    def case_began(self, name: str) -> bool:
        """Take in that a case begins, by its node id; whether the line says so: winners' cases take minutes."""
        if name not in self._winners:
            return False
        case = self._winners[name]
        self._waits = ""
        if name not in self._begun:  # once more after its worker died
            self._begun.append(name)
        self._place = self._place or f"{case.cell} {case.accelerator}"
        return True

    def case_ended(self, case: EndedCase, result: CaseResult) -> None:
        """Take in one case."""
        self._waits = self._works = ""
        self._moved_at = self._clock()
        self._ended.add(case.name)
        self._time_left.case_ended(case.name, result, duration_s=case.duration_s, worker=case.worker)
        if case.name in self._begun:
            self._begun.remove(case.name)
        self._cell = str(result.cell)
        self._place = f"{result.cell} {result.accelerator}"
        if isinstance(result, Winners):
            self._chosen[self._cell] += distinct(result.provisional)
            # Also what no case of its own has measured.
            for chosen in result.provisional:
                self._reached(chosen.speedup, chosen.decided_by[1] if chosen.decided_by else chosen.lpips)
        if isinstance(result, Measured):
            self._reached(result.figures.speedup, _value(result.figures, self._quality))

    def _reached(self, speedup: Interval, value: float) -> None:
        if self._quality.cost_of(value) > self._quality.cost_of(self._quality.worst):
            return  # it cannot win
        for target in TARGETS:
            if speedup.value >= target:
                key = (self._cell, target)
                self._best[key] = self._quality.better(value, self._best.get(key))

    def line(self) -> str:
        """``"SD1.5-DDIM-20 DeepCache 12/54, 3 min left; to be verified: LPIPS 0.004 at 1.2x, 0.010 at 1.5x"``."""
        reached = {target: self._best[self._cell, target] for target in TARGETS if (self._cell, target) in self._best}
        losses = ", ".join(f"{self._quality.figure(value, 3)} at {target:g}x" for target, value in reached.items())
        # Once all cases have ended, winners are shown, which may be others.
        best = f"to be verified: {self._quality.shown} {losses}" if losses and len(self._ended) < self._cases else ""
        left = self.left()
        doing = self._works
        if self._begun:
            works = self._works and f" ({self._works})"
            doing = f"choosing winners of {' and of '.join(map(self._doing, self._begun))}{works}"
        place = self._place and f"{self._place} "
        far = f"{place}{len(self._ended)}/{self._cases}{f', {left} left' if left else ''}"
        return "; ".join(filter(None, (far, self._waits, doing, best)))

    def _doing(self, name: str) -> str:
        """What a winners' case does: the cell's last verifies those of all, and takes the longest."""
        case = self._winners[name]
        of_cell = {other for other, winners in self._winners.items() if winners.cell == case.cell}
        if of_cell - self._ended != {name}:
            return case.accelerator
        chosen = self._chosen[str(case.cell)]
        others = counted(chosen, "other") if chosen else ""
        return f"{case.accelerator}, then verifying them{others and f' and {others}'}"

    @property
    def ended(self) -> int:
        """Cases that have ended."""
        return len(self._ended)

    def left(self) -> str | None:
        """How long the other cases take, in words; None while nothing tells."""
        if len(self._ended) == self._cases:
            return duration(0.0)
        left_s = self._time_left.seconds()
        if left_s is None:
            return None
        # What the case under way has taken is not left any more; one that takes longer than all was to says nothing.
        left_s -= self._clock() - self._moved_at
        return duration(left_s) if left_s > 0 else None

    def slowdown(self) -> float | None:
        """How many times as long as calibrated the search takes, told once, when that is much and cases are left."""
        pace = self._time_left.pace if self._time_left.is_calibrated else None
        if self._is_slow or pace is None or pace <= _SLOW or len(self._ended) == self._cases:
            return None
        self._is_slow = True
        return pace


def _value(figures: Figures, quality: QualityRule) -> float:
    """The mean of the metric that decides."""
    return figures.lpips.value if quality.metric == LPIPS else figures.metrics[quality.metric].value
