"""The golden file of the H200 from what was recorded there; it is nothing but what its script makes of the records."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.gpu_golden", reason="the benchmarks are not part of the source distribution")
pytest.importorskip("pyarrow", reason="recorded losses are Parquet files")

from benchmarks.gpu_golden import Chooser
from benchmarks.gpu_records import BUSY, REGISTRY, GpuRecords, accelerators_of, scored
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.golden_key import GoldenKey

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "nvidia-h200.search_params.json"
FLUX = Cell("FLUX.1", "FlowMatchEulerDiscreteScheduler", 50)


@pytest.fixture(scope="module")
def chooser() -> Chooser:
    return Chooser(GpuRecords.from_file())


@pytest.mark.parametrize("cell", [Cell("SD1.5", "DPM-Solver++", 20), FLUX], ids=str)
def test_the_file_is_what_the_records_say(cell: Cell, chooser: Chooser) -> None:
    written = {key: entry for key, entry in read_golden(GOLDEN).items() if key.cell == cell}
    made = dict(pair for name in accelerators_of(cell.pipe) for pair in chooser.entries(cell, name))
    assert {key: entry.to_json() for key, entry in written.items()} == {
        key: entry.to_json() for key, entry in made.items()
    }


def test_what_no_scored_point_reaches_and_others_may_is_undecided(chooser: Chooser) -> None:
    """Not all of a method's points have recorded losses."""
    (accelerator,) = REGISTRY.select(["MagCache"])
    (method,) = accelerator.methods
    known = [point.candidate for point in scored(FLUX, "MagCache")]
    space = [Candidate(FLUX, "MagCache", {"MagCache": point}) for point in method.space(FLUX)]
    fastest = {
        name: max(one.value for one in chooser.predicted("FLUX.1", BUSY, points))
        for name, points in (("scored", known), ("all", space))
    }
    assert fastest["scored"] < 4 < fastest["all"]
    targets = {key.target for key, _ in chooser.entries(FLUX, "MagCache")}
    assert 4.0 not in targets
    assert 3.0 in targets


def test_caches_that_decide_by_the_picture_are_left_out() -> None:
    assert accelerators_of("FLUX.1") == ["TaylorSeer", "MagCache"]
    keys = read_golden(GOLDEN)
    assert not [key for key, name in product(keys, ("FirstBlockCache", "DBCache")) if key.accelerator == name]
    assert GoldenKey(FLUX, "MagCache", 3.0) in keys
