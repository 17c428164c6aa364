"""How far a search is, what it has found so far, and how long it will take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_diffaccel.matrix import TARGETS
from pytest_diffaccel.search.effort import EMBEDDED_STEP_S, EVALUATED_SHARE, RUNS_A_GROUP
from pytest_diffaccel.settings import Settings

# An accelerated generation takes, on average over a grid, this share of the baseline's time.
_ACCELERATED_SHARE = 0.6


def estimate_s(settings: Settings, cases: int) -> str:
    """About how long ``cases`` cases take, in words."""
    if settings.models != "embedded" or settings.gpus is not None:
        return "the time left is shown once the first cases are measured"
    if settings.exhaustive:
        pictures = math.ceil(settings.num_samples / settings.batch_size)
        runs = cases * (settings.blocks + _ACCELERATED_SHARE * max(pictures, 1 + settings.blocks))
    else:
        groups = len(settings.cells) * len(settings.accelerators)
        runs = cases * EVALUATED_SHARE * (1 + 2 * _ACCELERATED_SHARE) + RUNS_A_GROUP * groups
    cells = settings.cells
    run_s = settings.batch_size * sum(EMBEDDED_STEP_S[cell.pipe] * cell.steps for cell in cells) / len(cells)
    # A core of a shared machine takes twice as long as the one that the steps' times are from.
    return f"about {duration(runs * run_s)} to {duration(2 * runs * run_s)}, by how fast the CPU is"


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
    """

    name: str
    outcome: str
    duration_s: float
    worker: str


class Progress:
    """State of the live line.

    Args:
        efforts: how much work each case of the session is, by its node id, in any unit.
        workers: processes that run them at once.
    """

    def __init__(self, efforts: Mapping[str, float], workers: int) -> None:
        self._left = dict(efforts)
        self._cases = len(efforts)
        self._workers = workers
        self._at_work: set[str] = set()
        self._took_s = self._effort = 0.0
        self._place = ""
        self._best: dict[tuple[str, float], float] = {}
        self._cell = ""

    def case_ended(self, case: EndedCase, result: Mapping[str, Any]) -> None:
        """Take in one case; a failed one has a cell and an accelerator only."""
        effort = self._left.pop(case.name, 0.0)
        self._cell = result["cell"]
        self._place = f"{result['cell']} {result['accelerator']}"
        if not result.get("stored"):  # those take no time and say nothing
            if case.worker in self._at_work:
                self._took_s += case.duration_s
                self._effort += effort
            self._at_work.add(case.worker)
        if "speedup" in result:
            for target in TARGETS:
                if result["speedup"] >= target:
                    key = (self._cell, target)
                    self._best[key] = min(result["lpips"], self._best.get(key, math.inf))

    def line(self) -> str:
        """``"SD1.5-DDIM-20 DeepCache 12/54, 3 min left; least LPIPS at 1.2x 0.004, 1.5x 0.010"``."""
        reached = {target: self._best[self._cell, target] for target in TARGETS if (self._cell, target) in self._best}
        losses = ", ".join(f"{target:g}x {loss:.3f}" for target, loss in reached.items())
        best = f"; least LPIPS at {losses}" if losses else ""
        left_s = self._left_s()
        left = "" if left_s is None else f", {duration(left_s)} left"
        return f"{self._place} {self._cases - len(self._left)}/{self._cases}{left}{best}"

    def _left_s(self) -> float | None:
        """From what measured cases took for their work, and how many run at once; None while nothing tells.

        A worker's first case does not: in it the worker imports and loads.
        """
        if not self._left:
            return 0.0
        if not self._took_s or not self._effort:
            return None
        return self._took_s / self._effort * sum(self._left.values()) / self._workers
