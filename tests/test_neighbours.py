"""The benchmark of neighbours, with stand-ins for GPUs that compute on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import sys

import pytest
from standins import THREE, StandIns

pytest.importorskip("benchmarks.neighbours", reason="the benchmarks are not part of the source distribution")

from benchmarks import neighbours


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["neighbours", *arguments])
    neighbours.main()


@pytest.mark.slow
def test_turns_alone_and_beside_the_others_are_timed(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_ins.list_gpus(THREE[:2])
    run(monkeypatch, "--side", "64", "--seconds", "0.2", "--rounds", "2", "--json")
    printed = json.loads(capfd.readouterr().out)
    rows = printed["rows"]
    assert [(row["round"], row["company"]) for row in rows] == [
        (1, "alone"),
        (1, "beside the others"),
        (2, "alone"),
        (2, "beside the others"),
    ]
    for row in rows:
        assert row["steps"] >= 10  # of one picture
        assert 0 < row["median_ms"] <= row["p90_ms"]
    assert printed["gpus"] == 2
    low, high = printed["slowdown_ci95"]
    assert low <= printed["slowdown"] <= high
    assert printed["scatter_alone"] >= 1


def test_slowdown_and_scatter_come_from_the_turns_medians() -> None:
    """Beside the others a step takes 1.1 and 1.3 times as long; alone, 10 and 12 ms."""
    turns = [
        (1, "alone", [9.0, 10.0, 30.0]),
        (1, "beside the others", [11.0] * 3),
        (2, "alone", [12.0] * 4),
        (2, "beside the others", [15.6] * 2),
    ]
    rows, summary = neighbours.report(turns)
    assert [row["median_ms"] for row in rows] == [10.0, 11.0, 12.0, 15.6]
    assert summary["slowdown"] == pytest.approx((1.1 * 1.3) ** 0.5)
    assert summary["scatter_alone"] == pytest.approx(1.2)
    low, high = summary["slowdown_ci95"]
    assert low < 1.1 < 1.3 < high


def test_a_process_that_fails_ends_it(
    stand_ins: StandIns,
    everything_imported: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Forked here: processes that are begun anew, as in the test above, import for seconds before they can fail."""
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(neighbours.multiprocessing, "get_context", lambda _: forked)
    stand_ins.list_gpus(THREE[:2])
    with pytest.raises(SystemExit, match="one of the processes failed; see above"):
        run(monkeypatch, "--side", "63", "--seconds", "0.2")
    assert "63" in capfd.readouterr().err


def test_one_gpu_has_no_neighbours(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.list_gpus(THREE[:1])
    with pytest.raises(SystemExit, match="is the only GPU that can be used here; neighbours need two"):
        run(monkeypatch)
    with pytest.raises(SystemExit):
        run(monkeypatch, "--rounds", "1")
