"""What is said of where an accelerated generation's time goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from recorded import CELL, RecordedSearch, deepcache_grid, environment

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.bottleneck import bottleneck
from pytest_diffaccel.measure.measurement import Block, Measurement, Round, RunTiming, SpeedClock
from pytest_diffaccel.records.contents import Contents, Recorded
from pytest_diffaccel.records.export_rows import export_rows
from pytest_diffaccel.search.knowledge import Knowledge


def blocks(full_s: float, shallow_s: float, fixed_s: float) -> list[Block]:
    """Two blocks of four steps, half of them shallow."""
    baseline = RunTiming(4 * full_s + fixed_s, (full_s,) * 4, ("plain",) * 4)
    steps = (full_s, shallow_s) * 2
    return [Block(baseline, (RunTiming(sum(steps) + fixed_s, steps, ("full", "shallow") * 2),))] * 2


@pytest.mark.parametrize(
    ("busy_share", "fixed_s", "bound", "words"),
    [
        (0.95, 0.1, "compute", "compute-bound: the GPU works for 95% of a run"),
        (0.66, 0.1, "launch", "launch-bound: the GPU works for 66% of a run"),
        (0.66, 6.0, "fixed", "capped by the fixed part: 73% of the time, at most 1.7x"),
    ],
)
def test_what_bounds_a_generation(busy_share: float, fixed_s: float, bound: str, words: str) -> None:
    found = bottleneck(blocks(1.0, 0.1, fixed_s), busy_share)
    assert found is not None
    assert (found.bound, found.in_words()) == (bound, words)
    assert found.ceiling == pytest.approx((4 + fixed_s) / fixed_s)


def test_nothing_is_said_without_times_or_what_the_gpu_did() -> None:
    assert bottleneck([], 0.5) is None
    assert bottleneck(blocks(1.0, 0.1, 0.1), None) is None


def winner(tmp_path: Path) -> Measurement:
    return RecordedSearch(tmp_path).measurement(
        Candidate(CELL, "DeepCache", deepcache_grid()[0]), environment(), "winner"
    )


def test_an_export_tells_what_bounds_a_winner_of_which_it_is_known(tmp_path: Path) -> None:
    made = winner(tmp_path)
    known = replace(made, busy_share=0.66)
    rows = export_rows(Contents((Recorded(made, "1"), Recorded(known, "2")), (), (), {}))
    assert [row["bottleneck"] for row in rows] == [None, "launch-bound: the GPU works for 66% of a run"]


def test_it_is_kept_with_a_measurement_and_older_ones_are_read(tmp_path: Path) -> None:
    made = winner(tmp_path)
    for share in (None, 0.66):
        known = replace(made, busy_share=share)
        assert Measurement.from_json(known.to_json()) == known
    assert Measurement.from_json({**made.to_json(), "flops": {"plain": 1000}}) == made


def test_the_gpus_share_of_a_run_is_what_its_own_time_says() -> None:
    """Here a plain step takes the GPU 0.1 s and a shallow one 0.02 s, in runs that last half as long again."""
    point = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
    short = Candidate(Cell("SD1.5", "DDIM", 8), "DeepCache", point)
    registry = default_registry()
    kinds = registry.for_params(point).kinds(point, 8)
    steps = tuple(0.1 if kind == "DeepCache:full" else 0.02 for kind in kinds)
    plain, run = RunTiming(0.9, (0.1,) * 8, ("plain",) * 8), RunTiming(sum(steps) + 0.1, steps, kinds)

    def knowing(clock: SpeedClock) -> Knowledge:
        return Knowledge(registry, rounds=[Round(plain, (short,), (run,), "", 0.0, clock)] * 6)

    whole = Candidate(Cell("SD1.5", "DDIM", 20), "DeepCache", point)
    gpu_s = 10 * 0.1 + 10 * 0.02 + 0.1
    assert knowing("device").busy_share(whole, 1.5 * gpu_s) == pytest.approx(1 / 1.5, rel=0.02)
    assert knowing("device").busy_share(whole, 0.9 * gpu_s) == 1.0
    assert knowing("wall").busy_share(whole, 1.5 * gpu_s) is None
    unknown = Candidate(whole.cell, "ToMe", {"ToMe": {"ratio": 0.5, "max_downsample": 1}})
    assert knowing("device").busy_share(unknown, 1.0) is None
