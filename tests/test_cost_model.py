"""The cost model: pooling what candidates share gives each a better speed-up than it measured itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from timings import BASELINE, noisy_block, speedup_of

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Block, Interval, Measurement, Quality, Sampling
from pytest_diffaccel.measure.statistics import step_kind_speedup, wall_speedup
from pytest_diffaccel.search.cost_model import pooled_speedups

CELL = Cell("SD1.5", "DDIM", 20)
INTERVALS = (2, 3, 4, 5, 6, 8, 10)


def kinds_of(interval: int) -> tuple[str, ...]:
    return tuple("full" if step % interval == 0 else "shallow" for step in range(len(BASELINE)))


def measurement(interval: int, blocks: tuple[Block, ...]) -> Measurement:
    """What a candidate with this cache interval measured."""
    params = {"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}}
    return Measurement(
        candidate=Candidate(CELL, "DeepCache", params),
        environment="3f9c2ab01d7e",
        sampling=Sampling(8, 4, 0, "0" * 12, "search"),
        speedup=step_kind_speedup(blocks),
        wall_speedup=wall_speedup(blocks),
        estimates_agree=True,
        quality=Quality(Interval(0.1, 0.0, 0.2), 30.0, 0.9, (0.1,) * 8),
        blocks=blocks,
    )


def searched(seed: int, *, run_sd: float, step_sd: float, blocks: int = 1) -> list[Measurement]:
    """A search over the cache interval, each candidate with a few noisy blocks."""
    generator = np.random.default_rng(seed)
    return [
        measurement(
            interval,
            tuple(
                noisy_block(generator, kinds_of(interval), drift_sd=0.2, run_sd=run_sd, step_sd=step_sd)
                for _ in range(blocks)
            ),
        )
        for interval in INTERVALS
    ]


def root_mean_square(errors: list[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def test_without_noise_every_speedup_is_the_truth() -> None:
    for found in (searched(0, run_sd=0.0, step_sd=0.0), searched(0, run_sd=0.0, step_sd=0.0, blocks=3)):
        pooled = pooled_speedups(found)
        for part in found:
            kinds = part.blocks[0].runs[0].kinds
            assert pooled[part.candidate.key].value == pytest.approx(speedup_of(kinds))


def test_pooled_speedups_are_nearer_to_the_truth_than_each_candidates_own() -> None:
    own, pooled = [], []
    for seed in range(20):
        found = searched(seed, run_sd=0.02, step_sd=0.03)
        speedups = pooled_speedups(found)
        for part in found:
            truth = math.log(speedup_of(part.blocks[0].runs[0].kinds))
            own.append(math.log(part.speedup.value) - truth)
            pooled.append(math.log(speedups[part.candidate.key].value) - truth)
    assert root_mean_square(pooled) < root_mean_square(own) / 2


def test_pooled_intervals_hold_the_truth_and_are_narrower() -> None:
    hits, narrower = [], []
    for seed in range(30):
        found = searched(seed, run_sd=0.01, step_sd=0.02)
        speedups = pooled_speedups(found)
        for part in found:
            interval = speedups[part.candidate.key]
            truth = speedup_of(part.blocks[0].runs[0].kinds)
            hits.append(interval.low <= truth <= interval.high)
            narrower.append(interval.half_width_ratio < part.speedup.half_width_ratio)
    assert np.mean(hits) >= 0.9
    assert all(narrower)


@pytest.mark.parametrize("blocks", [1, 2])
def test_pooled_speedups_are_not_biased(blocks: int) -> None:
    """A kind with few steps in a run is not dearer for it: that would not average away."""
    errors = []
    for seed in range(40):
        found = searched(seed, run_sd=0.005, step_sd=0.05, blocks=blocks)
        speedups = pooled_speedups(found)
        truths = [speedup_of(part.blocks[0].runs[0].kinds) for part in found]
        errors += [
            math.log(speedups[part.candidate.key].value / truth) for part, truth in zip(found, truths, strict=True)
        ]
    assert abs(np.mean(errors)) < 0.005


def test_a_candidate_alone_has_its_own_estimate() -> None:
    (alone,) = searched(0, run_sd=0.0, step_sd=0.0)[:1]
    pooled = pooled_speedups([alone])
    assert list(pooled) == [alone.candidate.key]
    assert pooled[alone.candidate.key].value == pytest.approx(alone.speedup.value)


def test_a_slower_machine_in_between_changes_nothing() -> None:
    """Costs are relative to the block's own baseline: candidates measured on a throttled machine pool with others."""
    quick = searched(0, run_sd=0.0, step_sd=0.0)
    generator = np.random.default_rng(1)
    slow = [
        measurement(interval, (noisy_block(generator, kinds_of(interval), drift_sd=2.0, run_sd=0.0, step_sd=0.0),))
        for interval in INTERVALS[:3]
    ]
    truth = {key: interval.value for key, interval in pooled_speedups(quick).items()}
    mixed = pooled_speedups([*slow, *quick[3:]])
    assert {key: interval.value for key, interval in mixed.items()} == pytest.approx(truth)


def test_nothing_measured_gives_nothing() -> None:
    assert pooled_speedups([]) == {}
