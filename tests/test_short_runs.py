"""Short runs: which few of them tell the speeds of all candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import pytest
from echo import NOTHING, Echo
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.matrix import PIPES, STEPS, Candidate, Cell, candidates
from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.search.calibrate.short_runs import ShortRuns

#: No matrix has shorter runs than this.
SHORTEST = min(STEPS)


@cache
def registry() -> Registry:
    return default_registry()


@cache
def all_candidates(pipe: str, steps: tuple[int, ...], *, coarse: bool) -> tuple[Candidate, ...]:
    cells = [Cell(pipe, "DDIM", count) for count in steps]
    return tuple(candidates(cells, list(registry()), coarse=coarse))


def kinds(known: Registry, candidate: Candidate) -> set[str]:
    return set(known.for_params(candidate.params).kinds(candidate.params, candidate.cell.steps))


def held(known: Registry, runs: Sequence[Candidate]) -> set[str]:
    return {kind for run in runs for kind in kinds(known, run)}


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("steps", [*[(count,) for count in STEPS], STEPS], ids=str)
@pytest.mark.parametrize("pipe", PIPES)
def test_every_kind_of_step_of_every_candidate_is_in_a_short_run(
    pipe: str, steps: tuple[int, ...], coarse: bool
) -> None:
    known = all_candidates(pipe, steps, coarse=coarse)
    short = ShortRuns.of(registry(), known)
    assert held(registry(), known) <= held(registry(), short.runs)
    assert {run.cell.pipe for run in short.runs} == {pipe}
    for run in short.runs:
        assert run.cell.steps < SHORTEST
        registry().for_params(run.params).check(run.params, run.cell.steps)
    assert len({run.key for run in short.runs}) == len(short.runs)
    lengths = [run.cell.steps for run in short.runs]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("pipe", PIPES)
def test_the_best_run_is_of_the_same_accelerator_and_holds_kinds_of_the_candidate(pipe: str) -> None:
    known = all_candidates(pipe, STEPS, coarse=True)
    short = ShortRuns.of(registry(), known)
    for candidate in known:
        run = short.best_for(candidate)
        assert run is not None, candidate.key
        assert run in short.runs
        assert run.accelerator == candidate.accelerator
        assert kinds(registry(), run) & kinds(registry(), candidate)
        assert run.cell.steps <= candidate.cell.steps


def test_points_beyond_the_grids_have_short_runs_too() -> None:
    """A race goes on with the whole space, and winners of it are timed further."""
    cell = Cell("SD1.5", "DDIM", 50)
    tome, both = registry().select(["ToMe", "DeepCache and ToMe"])
    beyond = [Candidate(cell, tome.name, {"ToMe": point}) for point in tome.methods[0].space(cell)]
    cached = {"cache_interval": 3, "cache_branch_id": 0}
    beyond += [Candidate(cell, both.name, {"DeepCache": cached, **one.params}) for one in beyond]
    short = ShortRuns.of(registry(), beyond)
    assert held(registry(), beyond) <= held(registry(), short.runs)
    assert held(registry(), beyond) - held(registry(), all_candidates("SD1.5", (50,), coarse=False))
    for one in beyond:
        run = short.best_for(one)
        assert run is not None
        assert run.cell.steps < SHORTEST


def test_runs_that_are_left_out_are_chosen_no_more_until_none_is_left() -> None:
    known = all_candidates("SD1.5", (20,), coarse=True)
    short = ShortRuns.of(registry(), known)
    candidate = next(one for one in known if one.accelerator == "DeepCache")
    chosen: list[str] = []
    while (run := short.without(set(chosen)).best_for(candidate)) is not None:
        assert run.key not in chosen
        chosen.append(run.key)
    alike = [
        run.key
        for run in short.runs
        if run.accelerator == "DeepCache" and kinds(registry(), run) & kinds(registry(), candidate)
    ]
    assert sorted(chosen) == sorted(alike)
    assert short.without(set()) == short


def test_where_all_runs_of_an_accelerator_are_left_out_others_still_are_told_of() -> None:
    known = all_candidates("SD1.5", (20,), coarse=True)
    short = ShortRuns.of(registry(), known)
    left = short.without({run.key for run in short.runs if run.accelerator == "ToMe"})
    assert {one.accelerator for one in known if left.best_for(one) is None} == {"ToMe"}


def echo_registry(*intervals: int) -> Registry:
    known = default_registry()
    known.register(Echo([(interval, NOTHING) for interval in intervals]))
    return known


def echoes(known: Registry, steps: int) -> list[Candidate]:
    (echo,) = known.select(["Echo"])
    return list(candidates([Cell("SD1.5", "DDIM", steps)], [echo]))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True), st.sampled_from([12, *STEPS]))
def test_a_method_of_the_users_own_has_short_runs(intervals: list[int], steps: int) -> None:
    known = echo_registry(*intervals)
    all_of_them = echoes(known, steps)
    short = ShortRuns.of(known, all_of_them)
    assert held(known, all_of_them) <= held(known, short.runs)
    for one in all_of_them:
        run = short.best_for(one)
        assert run is not None
        assert (run.accelerator, run.cell.pipe, run.cell.scheduler) == ("Echo", "SD1.5", "DDIM")
        assert run.cell.steps <= steps


def test_a_kind_that_comes_late_only_is_looked_for_in_longer_runs() -> None:
    """Of interval 10, nothing is computed a second time within eight steps, but both kinds are there; of what begins
    after 15 steps there is nothing in any short run.
    """

    class Late(Echo):
        name = "Late"
        param_names = ("late_interval", "mishap")

        def check(self, point: object, steps: int, pipeline: object = None) -> None:
            """Everything goes."""

        def kinds(self, point: object, steps: int, restarts: frozenset[int]) -> list[str]:
            return ["early" if step < 15 else "late" for step in range(steps)]

    known = default_registry()
    known.register(Late([(2, NOTHING)]))
    (late,) = known.select(["Late"])
    cells = [Cell("SD1.5", "DDIM", steps) for steps in (50, 20)]
    short = ShortRuns.of(known, list(candidates(cells, [late])))
    assert [run.cell.steps for run in short.runs] == [8, 20]
    assert held(known, short.runs) == {"Late:early", "Late:late"}


def test_of_what_a_run_makes_most_of_the_best_one_makes_most() -> None:
    known = echo_registry(2, 8)
    short = ShortRuns.of(known, echoes(known, 20))
    often, seldom = echoes(known, 20)
    best_often, best_seldom = short.best_for(often), short.best_for(seldom)
    assert best_often is not None
    assert best_seldom is not None
    assert best_often.params == often.params
    assert best_seldom.params == seldom.params


# --- the first steps of each kind ------------------------------------------------------------------------------

step_kinds = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.001, 1.0)), min_size=1, max_size=20)


@given(step_kinds, st.sets(st.sampled_from("abcd")), st.floats(0.01, 1.0))
def test_exactly_the_first_step_of_each_new_kind_is_left_out(
    steps: list[tuple[str, float]], new: set[str], fixed_s: float
) -> None:
    names, times = [kind for kind, _ in steps], [step_s for _, step_s in steps]
    timing = RunTiming(sum(times) + fixed_s, tuple(times), tuple(names))
    left = timing.without_first(new)
    assert len(left.kinds) == len(left.step_s) == len(names) - len(new & set(names))
    for kind in "abc":
        own = [step_s for name, step_s in steps if name == kind]
        left_of_it = [step_s for name, step_s in zip(left.kinds, left.step_s, strict=True) if name == kind]
        assert left_of_it == (own[1:] if kind in new else own)
    assert math.isclose(left.fixed_s, fixed_s, rel_tol=1e-6, abs_tol=1e-9)


def test_without_new_kinds_a_run_is_what_it_was() -> None:
    timing = RunTiming(1.0, (0.2, 0.3), ("plain", "plain"))
    assert timing.without_first(()) == timing
    assert timing.without_first({"plain"}) == RunTiming(0.8, (0.3,), ("plain",))
