"""The live line: how many cases are done, and about how long the others take."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.report.progress import EndedCase, Progress
from pytest_diffaccel.search.effort import case_effort

CELL = Cell("SD1.5", "DDIM", 20)
RESULT = {"cell": "SD1.5-DDIM-20", "accelerator": "DeepCache", "speedup": 1.6, "lpips": 0.1234}


def alike(cases: int) -> dict[str, float]:
    return {str(name): 1.0 for name in range(cases)}


class Told:
    """A progress that is told of cases in turn, and the line it then shows."""

    def __init__(self, efforts: Mapping[str, float], workers: int = 1) -> None:
        self.progress = Progress(efforts, workers)
        self._names = iter(efforts)

    def after(self, duration_s: float, worker: str = "", **found: object) -> str:
        ended = EndedCase(next(self._names), "passed", duration_s, worker)
        self.progress.case_ended(ended, RESULT | found)
        return self.progress.line()


def test_a_workers_first_case_tells_nothing_of_the_time() -> None:
    told = Told(alike(60), workers=2)
    assert told.after(45.0, "gw0") == "SD1.5-DDIM-20 DeepCache 1/60; least LPIPS at 1.2x 0.123, 1.5x 0.123"
    assert told.after(15.0, "gw1").startswith("SD1.5-DDIM-20 DeepCache 2/60; least")
    assert "3/60, 5 min left" in told.after(10.0, "gw0")
    assert "4/60, 5 min left" in told.after(10.0, "gw1")
    # A worker that replaces a dead one loads, too.
    assert "5/60, 5 min left" in told.after(300.0, "gw2")
    assert "6/60, 18 min left" in told.after(100.0, "gw2")


def test_what_was_stored_says_nothing_of_the_time() -> None:
    told = Told(alike(5))
    assert "1/5; least" in told.after(0.1, stored=True)
    assert "2/5; least" in told.after(30.0)
    assert "3/5; least" in told.after(0.1, stored=True)
    assert "4/5, 5 s left" in told.after(5.0, stored=False)
    assert "5/5, 0 s left" in told.after(5.0)


def test_winners_take_longer_than_candidates_of_which_most_are_skipped() -> None:
    """Twelve candidates, of which one in four takes 8 s: then the winners' case takes as long as 20 of these."""
    candidate, winners = (case_effort(CELL, is_winners=one, exhaustive=False, embedded=True) for one in (False, True))
    told = Told({**{str(name): candidate for name in range(13)}, "winners": winners})
    told.after(20.0)
    for _ in range(3):
        for duration_s in (8.0, 0.0, 0.0, 0.0):
            line = told.after(duration_s)
    assert "13/14, 3 min left" in line  # 160 s


@pytest.mark.parametrize("workers", [1, 4])
def test_at_the_end_nothing_is_left(workers: int) -> None:
    assert "1/1, 0 s left" in Told(alike(1), workers).after(30.0)
