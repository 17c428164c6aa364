"""The live line: how many cases are done, and about how long the others take."""

from __future__ import annotations

import pytest

from pytest_diffaccel.report.progress import EndedCase, Progress

RESULT = {"cell": "SD1.5-DDIM-20", "accelerator": "DeepCache", "speedup": 1.6, "lpips": 0.1234}


def ended(duration_s: float, worker: str = "") -> EndedCase:
    return EndedCase("benches/test_search.py::test_search[x]", "passed", duration_s, worker)


def test_a_workers_first_case_tells_only_while_there_is_no_other() -> None:
    progress = Progress(cases=60, workers=2)
    progress.case_ended(ended(45.0, "gw0"), RESULT)
    assert progress.line() == "SD1.5-DDIM-20 DeepCache 1/60, 22 min left; least LPIPS at 1.2x 0.123, 1.5x 0.123"
    progress.case_ended(ended(15.0, "gw1"), RESULT)
    assert "2/60, 14 min left" in progress.line()
    for worker in ("gw0", "gw1"):
        progress.case_ended(ended(10.0, worker), RESULT)
    assert "4/60, 5 min left" in progress.line()
    # A worker that replaces a dead one loads, too.
    progress.case_ended(ended(300.0, "gw2"), RESULT)
    assert "5/60, 5 min left" in progress.line()
    progress.case_ended(ended(100.0, "gw2"), RESULT)
    assert "6/60, 18 min left" in progress.line()


def test_what_was_stored_says_nothing_of_the_time() -> None:
    progress = Progress(cases=4, workers=1)
    progress.case_ended(ended(0.1), RESULT | {"stored": True})
    assert progress.line().startswith("SD1.5-DDIM-20 DeepCache 1/4; least")
    progress.case_ended(ended(30.0), RESULT)
    assert "2/4, 60 s left" in progress.line()
    progress.case_ended(ended(5.0), RESULT | {"stored": False})
    assert "3/4, 5 s left" in progress.line()


@pytest.mark.parametrize("workers", [1, 4])
def test_at_the_end_nothing_is_left(workers: int) -> None:
    progress = Progress(cases=1, workers=workers)
    progress.case_ended(ended(30.0), {"cell": "SD1.5-DDIM-20", "accelerator": "ToMe"})
    assert progress.line() == "SD1.5-DDIM-20 ToMe 1/1, 0 s left"
