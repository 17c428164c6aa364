"""Harsher points rule themselves out, as long as nothing seen contradicts that harsher loses more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.accelerators.composition import default_registry
from pytest_diffaccel.matrix import Candidate, Cell, Point
from pytest_diffaccel.search.decide.monotone import Monotone, is_checked

REGISTRY = default_registry()
CELL = Cell("SD1.5", "DDIM", 20)
MERGED: Point = {"ratio": 0.3, "max_downsample": 1}
points = st.tuples(st.integers(2, 20), st.integers(0, 11))


def candidate(point: tuple[int, int], merged: Point | None = None) -> Candidate:
    params: dict[str, Point] = {"DeepCache": {"cache_interval": point[0], "cache_branch_id": point[1]}}
    if merged is not None:
        return Candidate(CELL, "DeepCache and ToMe", {**params, "ToMe": merged})
    return Candidate(CELL, "DeepCache", params)


def monotone(losses: dict[Candidate, float], name: str = "DeepCache") -> Monotone:
    return Monotone(REGISTRY.select([name])[0], list(losses), list(losses.values()))


@given(points, points)
def test_harsher_is_more_of_one_parameter_and_less_of_none(one: tuple[int, int], other: tuple[int, int]) -> None:
    known = monotone({candidate(other): 0.05})
    harsher = one != other and one[0] >= other[0] and one[1] <= other[1]
    assert known.gentler(candidate(one)) == ([candidate(other)] if harsher else [])


def test_points_of_a_method_without_an_order_are_compared_with_their_own_kind_only() -> None:
    gentle = candidate((2, 3), MERGED)
    known = monotone({gentle: 0.05}, "DeepCache and ToMe")
    assert known.gentler(candidate((3, 3), MERGED)) == [gentle]
    assert known.gentler(candidate((3, 3), {**MERGED, "ratio": 0.6})) == []


@pytest.mark.parametrize(("harsh_loss", "holds"), [(0.10, True), (0.048, True), (0.02, False)])
def test_a_harsher_point_that_loses_much_less_contradicts(harsh_loss: float, holds: bool) -> None:
    known = monotone({candidate((2, 0)): 0.05, candidate((5, 0)): harsh_loss, candidate((2, 8)): 0.01})
    assert known.holds == holds


def test_nothing_evaluated_rules_nothing_out() -> None:
    known = monotone({})
    assert known.holds
    assert known.gentler(candidate((5, 0))) == []


def test_a_few_are_checked_all_the_same() -> None:
    every = [candidate((interval, branch)) for interval in range(2, 21) for branch in range(12)]
    checked = [one for one in every if is_checked(one)]
    assert len(every) / 40 < len(checked) < len(every) / 10
    assert [one for one in every if is_checked(one)] == checked
