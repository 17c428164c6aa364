"""The plan: what may win is evaluated, what cannot is passed over for a reason that holds, and all targets end
decided."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell, Params
from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.search.decide.contenders import Contenders
from pytest_diffaccel.search.decide.plan import Plan
from pytest_diffaccel.search.decide.racing import explore
from pytest_diffaccel.search.decide.select import choose
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.loss_model import NO_LOSS, LossModel, log_loss, loss_of
from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE, VAGUE_SPEEDUP, may_reach, probabilities, reaches

REGISTRY = default_registry()
CELL = Cell("SD1.5", "DDIM", 20)
SAMPLES, FIRST = 16, 4
MAX_LOSS = 0.25


def candidate(interval: int, branch: int = 0) -> Candidate:
    return Candidate(CELL, "DeepCache", {"DeepCache": {"cache_interval": interval, "cache_branch_id": branch}})


GRID = [Candidate(CELL, "DeepCache", params) for params in REGISTRY.select(["DeepCache"])[0].grid(CELL, coarse=False)]


def shallow_cost(branch: int) -> float:
    return 0.15 + 0.07 * branch


def true_speedup(one: Candidate) -> float:
    point = one.params["DeepCache"]
    kinds = REGISTRY.for_params(one.params).kinds(one.params, CELL.steps)
    full = sum(kind == "DeepCache:full" for kind in kinds)
    shallow = shallow_cost(int(point["cache_branch_id"])) * (CELL.steps - full)
    return (CELL.steps + 1) / (full + shallow + 1)


def true_losses(one: Candidate, seed: int = 0) -> tuple[float, ...]:
    """Grows with the interval, falls with the branch; samples differ in how hard they are, and a little by chance."""
    point = one.params["DeepCache"]
    level = 0.01 * (point["cache_interval"] - 1) * math.exp(-0.25 * point["cache_branch_id"])
    hardness = np.random.default_rng(seed).lognormal(0, 0.4, SAMPLES)
    chance = np.random.default_rng([seed, *map(int, point.values())]).lognormal(0, 0.1, SAMPLES)
    return tuple(float(value) for value in level * hardness * chance)


def costs() -> CostModel:
    """All that timing can tell: every branch's kinds, in many blocks."""
    baseline = RunTiming(21.0, (1.0,) * 20, ("plain",) * 20)

    def block(one: Candidate) -> Block:
        kinds = REGISTRY.for_params(one.params).kinds(one.params, CELL.steps)
        branch = int(one.params["DeepCache"]["cache_branch_id"])
        steps = tuple(1.0 if kind == "DeepCache:full" else shallow_cost(branch) for kind in kinds)
        return Block(baseline, (RunTiming(sum(steps) + 1.0, steps, kinds),))

    return CostModel.fit(
        REGISTRY, [(candidate(2, branch), (block(candidate(2, branch)),) * 20) for branch in range(12)]
    )


COSTS = costs()


def plan(evaluated: dict[Candidate, tuple[float, ...]]) -> Plan:
    return Plan(REGISTRY, REGISTRY.select(["DeepCache"])[0], CELL, COSTS, evaluated, MAX_LOSS, FIRST)


def contenders(evaluated: dict[Candidate, tuple[float, ...]]) -> Contenders:
    return Contenders(plan(evaluated).options, MAX_LOSS, FIRST, SAMPLES)


def search(seed: int = 0) -> dict[Candidate, tuple[float, ...]]:
    """What the cases and then the race of a group evaluate."""
    evaluated: dict[Candidate, tuple[float, ...]] = {}
    for point in GRID:
        if plan(evaluated).advice(point, GRID).evaluate:
            evaluated[point] = true_losses(point, seed)[:FIRST]
    while (best := plan(evaluated).best([point for point in GRID if point not in evaluated])) is not None:
        evaluated[best] = true_losses(best, seed)[:FIRST]
    while needed := contenders(evaluated).undecided():
        evaluated |= {point: true_losses(point, seed)[:count] for point, count in needed.items()}
    return evaluated


def test_what_lost_to_a_candidate_is_promising_again_once_a_bound_bars_that() -> None:
    """Barred ones still tell what others lose, and are not evaluated again."""
    known = plan(search())
    left = [point for point in GRID if point not in known.evaluated]
    assert known.best(left) is None
    barred = {choice.option.candidate.key for target in TARGETS if (choice := choose(known.options, target, 1)).option}
    without = replace(known, barred=barred)
    assert without.best(left) is not None
    kept = {option.candidate.key for option in without.options}
    assert kept == {option.candidate.key for option in known.options} - barred
    assert without.evaluated_options == known.options


@pytest.mark.parametrize("seed", range(4))
def test_the_winners_of_an_exhaustive_search_are_found_at_a_fraction_of_its_samples(seed: int) -> None:
    found, exhaustive = plan(search(seed)), plan({point: true_losses(point, seed) for point in GRID})
    truth = {point: float(np.mean(true_losses(point, seed))) for point in GRID}
    right = met = 0
    for target in TARGETS:
        choice, best = (choose(known.options, target, MAX_LOSS) for known in (found, exhaustive))
        assert choice.reason == best.reason
        if choice.option is not None and best.option is not None and best.reason is None:
            met += 1
            right += truth[choice.option.candidate] <= max(1.02 * truth[best.option.candidate], NO_LOSS)
    assert right >= met - 1 > 3
    assert sum(map(len, found.evaluated.values())) < len(GRID) * SAMPLES / 5


def test_what_nobody_could_see_is_not_looked_for() -> None:
    """A target that is reached at hardly any loss is left alone, however much less another one may lose."""
    slow = [one for one in GRID if 1.25 < true_speedup(one) < 1.45]
    *others, first = sorted(slow, key=true_speedup)

    def next_one(loss: float) -> Candidate | None:
        return plan({first: (loss,) * FIRST, GRID[-1]: (0.3,) * FIRST}).best(others)

    assert next_one(4 * NO_LOSS)
    assert not next_one(0.2 * NO_LOSS)


def vague_costs() -> CostModel:
    """Two blocks of some branches, on a machine that is twice as slow in some runs."""
    noise = np.random.default_rng(0)
    baseline = RunTiming(21.0, (1.0,) * 20, ("plain",) * 20)

    def block(one: Candidate) -> Block:
        kinds = REGISTRY.for_params(one.params).kinds(one.params, CELL.steps)
        branch = int(one.params["DeepCache"]["cache_branch_id"])
        slow = float(noise.choice([1.0, 1.3]))
        steps = tuple(slow * (1.0 if kind == "DeepCache:full" else shallow_cost(branch)) for kind in kinds)
        return Block(baseline, (RunTiming(sum(steps) + 1.0, steps, kinds),))

    return CostModel.fit(REGISTRY, [(candidate(2, branch), (block(candidate(2, branch)),)) for branch in range(12)])


def test_what_is_slower_than_a_candidate_that_nobody_could_tell_from_none_is_not_looked_at() -> None:
    """Also where neither surely reaches a target: what slower ones reach, the faster one does."""
    known = replace(plan({}), costs=vague_costs())
    speedups = dict(zip(GRID, known.costs.speedups(GRID), strict=True))
    assert all(speedup.half_width_ratio > VAGUE_SPEEDUP for speedup in speedups.values())
    slow = [one for one in GRID if not reaches(speedups[one], 1.2) and may_reach(speedups[one], 1.2)]
    *others, fastest = sorted(slow, key=lambda one: speedups[one].value)
    assert len(others) > 3

    def seen(one: Candidate, loss: float) -> Plan:
        return replace(known, evaluated={one: (loss,) * FIRST, GRID[-1]: (0.3,) * FIRST})

    assert seen(fastest, 4 * NO_LOSS).best(others)
    assert not seen(fastest, 0.2 * NO_LOSS).best(others)
    assert "promises" in seen(fastest, 0.2 * NO_LOSS).advice(others[0]).evidence
    # A slower one says nothing of faster ones.
    assert seen(others[0], 0.2 * NO_LOSS).best([fastest])


@given(st.floats(1.05, 1.5), st.floats(0.0, 0.3))
def test_a_vague_speedup_reaches_a_target_as_likely_as_it_lies_above_it(value: float, width: float) -> None:
    speedup = Interval(value, value / (1 + width), value * (1 + width))
    ((found,),) = probabilities([speedup], [1.25]).tolist()
    assert 0.0 <= found <= 1.0
    if speedup.half_width_ratio > VAGUE_SPEEDUP:
        needed = 1.25 * (1 - SPEED_TOLERANCE)
        assert (found > 0.5) == (value > needed) or found == pytest.approx(0.5)
        assert (found > 0.0) == (speedup.high >= needed)


def test_where_hardly_any_loss_is_allowed_less_is_looked_for() -> None:
    """What is allowed is worse than nothing, even where nobody could see either."""
    strict = replace(plan({GRID[-1]: (0.3,) * FIRST}), max_loss=0.8 * NO_LOSS)
    fast = [one for one in GRID if true_speedup(one) > 1.25]
    assert strict.targets_left(fast) == replace(strict, max_loss=MAX_LOSS).targets_left(fast) != set()


class EverBetter:
    """A group of which each candidate that is evaluated loses less than the one before."""

    def __init__(self) -> None:
        self.evaluated: dict[Candidate, tuple[float, ...]] = {}

    def plan(self) -> Plan:
        return plan(self.evaluated)

    def evaluate(self, candidate: Candidate) -> None:
        self.evaluated[candidate] = (0.2 * 0.9 ** len(self.evaluated),) * FIRST

    def extend(self, candidate: Candidate, num_samples: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(("cases", "evaluated"), [(32, 32), (3, 28)])
def test_no_more_is_explored_than_a_group_has_cases_unless_these_are_few(cases: int, evaluated: int) -> None:
    track = EverBetter()
    (method,) = REGISTRY.select(["DeepCache"])[0].methods
    space = [Candidate(CELL, method.name, {method.name: point}) for point in method.space(CELL)]
    explored = explore(track, space, len(space), cases)
    assert (explored.evaluated, explored.left) == (len(track.evaluated), 0)
    assert explored.evaluated == evaluated


def test_what_is_passed_over_could_not_have_won() -> None:
    evaluated = search()
    found = plan(evaluated)
    for point in GRID:
        if point not in evaluated:
            advice = found.advice(point)
            assert not advice.evaluate
            assert "predicted" in advice.evidence
            best = [float(np.mean(evaluated[other][:FIRST])) for other in evaluated if true_speedup(other) >= 1.2]
            own = float(np.mean(true_losses(point)[:FIRST]))
            assert true_speedup(point) < 1.22 or min(best) <= NO_LOSS or own > 0.95 * min(best)


def test_a_slow_candidate_says_that_it_reaches_no_target() -> None:
    evidence = plan(search()).advice(candidate(2, 11)).evidence
    assert "reaches no target (the lowest is 1.2x)" in evidence


def test_where_no_target_is_reached_only_what_comes_nearer_is_evaluated() -> None:
    """What is not much faster, or surely loses more than is allowed, gains nothing."""
    slow = [point for point in GRID if 1.0 < true_speedup(point) < 1.17]
    assert len(slow) > 2
    slowest, nearest = min(slow, key=true_speedup), max(slow, key=true_speedup)
    known = plan({slowest: true_losses(slowest)[:FIRST]})
    advice = known.advice(nearest)
    assert advice.evaluate == (true_speedup(nearest) > 1.04 * true_speedup(slowest))
    for point in slow:
        assert ("reaches no target" in known.advice(point).evidence) == (not known.advice(point).evaluate)
    others = [point for point in slow if point is not slowest]
    hopeless = replace(known, evaluated=dict.fromkeys(others, (0.9,) * FIRST), max_loss=1e-3)
    assert not hopeless.advice(slowest).evaluate
    assert "reaches no target" in hopeless.advice(slowest).evidence


def test_a_dominated_candidate_names_what_beats_it() -> None:
    evaluated = {point: true_losses(point) for point in GRID if point != candidate(10, 5)}
    evidence = plan(evaluated).advice(candidate(10, 5)).evidence
    assert "is reached at" in evidence
    assert "cache_interval=" in evidence


def test_the_race_ends_and_nobody_gets_more_samples_than_there_are() -> None:
    evaluated = search()
    assert contenders(evaluated).undecided() == {}
    assert max(map(len, evaluated.values())) <= SAMPLES


def test_it_is_the_turn_of_what_promises_most() -> None:
    """What promises much less is left for later, and its evidence names what promises more."""
    known = plan({candidate(5, 4): true_losses(candidate(5, 4))[:FIRST]})
    best = known.best(GRID)
    assert best is not None
    assert known.advice(best, GRID).evaluate
    waiting = [
        point
        for point in GRID
        if known.advice(point).evaluate and not known.advice(point, GRID).evaluate and point is not best
    ]
    assert waiting
    for point in waiting:
        assert "promises more" in known.advice(point, GRID).evidence


def test_of_few_samples_the_luckiest_is_not_believed() -> None:
    """A target's least loss is what the model makes of it, between what was seen and what its neighbours say."""
    lucky = candidate(4, 0)
    honest = {point: true_losses(point)[:FIRST] for point in (candidate(2, 0), candidate(3, 0), candidate(5, 0), lucky)}
    flattered = {**honest, lucky: tuple(0.3 * loss for loss in honest[lucky])}
    near = candidate(4, 1)
    known = plan(flattered)
    assert known.losses_of(single("DeepCache"), [near.params])[0] > log_loss(float(np.mean(flattered[lucky])))
    assert known.advice(near).evaluate


def single(name: str) -> Accelerator:
    return REGISTRY.select([name])[0]


@settings(max_examples=25)
@given(st.sets(st.sampled_from(range(len(GRID))), min_size=3, max_size=30))
def test_the_loss_model_knows_what_it_has_seen(places: set[int]) -> None:
    seen = {GRID[place]: float(np.mean(true_losses(GRID[place]))) for place in places}
    mean, sd = LossModel(REGISTRY, CELL, seen, SAMPLES).predict(single("DeepCache"), [point.params for point in seen])
    truth = np.array([log_loss(loss) for loss in seen.values()])
    assert np.all(np.abs(mean - truth) <= 4 * np.maximum(sd, 0.12))
    assert np.all(sd < 0.2)


def test_losses_of_methods_together_add_up_like_the_sides_of_a_right_angle() -> None:
    merged: list[Params] = [{"ToMe": {"ratio": ratio, "max_downsample": 1}} for ratio in (0.2, 0.5, 0.75)]
    seen = {candidate(interval): 0.03 for interval in (2, 3, 5)}
    seen |= {Candidate(CELL, "ToMe", params): 0.04 for params in merged}
    together = REGISTRY.select(["DeepCache and ToMe"])[0]
    mean, sd = LossModel(REGISTRY, CELL, seen, SAMPLES).predict(together, [{**candidate(3).params, **merged[1]}])
    assert loss_of(float(mean[0])) == pytest.approx(0.05, rel=0.15)
    assert sd[0] < 0.35


def test_of_an_unknown_method_the_model_says_that_it_does_not_know() -> None:
    _, sd = LossModel(REGISTRY, CELL, {}, SAMPLES).predict(
        single("ToMe"), [{"ToMe": {"ratio": 0.5, "max_downsample": 1}}]
    )
    assert sd[0] >= 1.0
