"""The order of runs in blocks: random, of its own for every candidate, and the same again from the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import PIPES, Cell, candidates
from pytest_diffaccel.measure.blocks import TimedRun, order_seed, run_blocks
from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.measure.watch import Watch

CELLS = [Cell(pipe, "DDIM", 20) for pipe in PIPES]
KEYS = [one.key for one in candidates(CELLS, list(default_registry()))]
# Chance alone is beyond this once in ten thousand times; the seeds are fixed, so it either is or is not.
LEAST_P = 1e-4


class Still(Watch):
    """Sees no disturbance, or a disturbance in so many first blocks."""

    def __init__(self, disturbed: int = 0) -> None:
        self._disturbed = disturbed

    def begin(self) -> Callable[[], str]:
        def end() -> str:
            self._disturbed -= 1
            return "a neighbour" if self._disturbed >= 0 else ""

        return end


def orders(names: Sequence[str], count: int, *, seed: int = 0, made: int = 0, disturbed: int = 0) -> list[list[int]]:
    """In which order the runs of each block are made; 0 is the baseline. One list a block that was begun."""
    made_runs: list[int] = []

    def run(place: int) -> TimedRun:
        def one(_index: int) -> RunTiming:
            made_runs.append(place)
            return RunTiming(1.0 + place, (1.0,), ("plain",))

        return one

    runs = [run(place) for place in range(len(names) + 1)]
    own_seed = order_seed(seed, names, made)
    blocks = list(run_blocks(runs[0], runs[1:], count, seed=own_seed, watch=Still(disturbed)))
    assert all(
        (block.baseline.total_s, block.runs[0].total_s) == (1.0, 2.0 + place)
        for row in blocks
        for place, block in enumerate(row)
    )
    size = len(runs)
    return [made_runs[start : start + size] for start in range(0, len(made_runs), size)]


@pytest.mark.parametrize("others", [1, 2, 5])
def test_over_many_candidates_the_baseline_runs_at_each_place_equally_often(others: int) -> None:
    parts = [KEYS[start : start + others] for start in range(0, len(KEYS) - others, others)]
    places = Counter(orders(part, 1)[0].index(0) for part in parts)
    assert len(parts) > 100
    assert stats.chisquare([places[place] for place in range(others + 1)]).pvalue > LEAST_P


def test_in_measurements_of_two_blocks_every_pair_of_orders_comes_equally_often() -> None:
    """Neither does the second block follow from the first: as often the same order as the other one."""
    pairs = Counter(tuple(block.index(0) for block in orders([key], 2)) for key in KEYS)
    assert stats.chisquare([pairs[first, second] for first in (0, 1) for second in (0, 1)]).pvalue > LEAST_P


@pytest.mark.parametrize("key", KEYS[::200])
def test_blocks_that_are_added_one_by_one_are_in_random_order_too(key: str) -> None:
    """As winners' blocks are made: each time another number of blocks is there already."""
    places = Counter(orders([key], 1, made=made)[0].index(0) for made in range(200))
    assert stats.binomtest(places[0], 200).pvalue > LEAST_P


def test_another_seed_of_the_session_gives_other_orders() -> None:
    same = sum(orders([key], 1, seed=0) == orders([key], 1, seed=1) for key in KEYS)
    assert stats.binomtest(same, len(KEYS)).pvalue > LEAST_P


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(1, 4), st.integers(), st.integers(0, 99))
def test_the_same_seed_and_names_give_the_same_order(names: list[str], count: int, seed: int, made: int) -> None:
    first = orders(names, count, seed=seed, made=made)
    assert first == orders(names, count, seed=seed, made=made)
    assert len(first) == count
    assert all(sorted(block) == list(range(len(names) + 1)) for block in first)


def test_a_block_that_is_made_again_gets_a_new_order() -> None:
    """Not the disturbed one's: what disturbs each third run would hit the same one again."""
    with_repeats = [orders([key], 1, disturbed=1) for key in KEYS]
    assert {len(blocks) for blocks in with_repeats} == {2}
    same = sum(first == second for first, second in with_repeats)
    assert stats.binomtest(same, len(KEYS)).pvalue > LEAST_P
