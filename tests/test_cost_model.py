"""The cost model: what some candidates showed of their kinds of steps tells the speed-ups of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timings import BASELINE, CANDIDATE, COSTS, FULL, SHALLOW, noisy_block, run, speedup_of

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import low_quantile_of, wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.kind_costs import KindCosts
from pytest_diffaccel.search.predict.regression import Regression, bells
from pytest_diffaccel.search.verify.fewer_steps import steps_as_fast

REGISTRY = default_registry()
CELL = Cell("SD1.5", "DDIM", len(BASELINE))
INTERVALS = (2, 3, 4, 5, 6, 8, 10)
Timed = list[tuple[Candidate, tuple[Block, ...]]]


def deepcache(interval: int) -> Candidate:
    return Candidate(CELL, "DeepCache", {"DeepCache": {"cache_interval": interval, "cache_branch_id": 0}})


def kinds_of(candidate: Candidate) -> tuple[str, ...]:
    return REGISTRY.for_params(candidate.params).kinds(candidate.params, candidate.cell.steps)


def searched(seed: int, *, run_sd: float, step_sd: float, blocks: int = 1, drift_sd: float = 0.2) -> Timed:
    """A search over the cache interval, each candidate with a few noisy blocks."""
    generator = np.random.default_rng(seed)
    return [
        (
            deepcache(interval),
            tuple(
                noisy_block(generator, kinds_of(deepcache(interval)), drift_sd=drift_sd, run_sd=run_sd, step_sd=step_sd)
                for _ in range(blocks)
            ),
        )
        for interval in INTERVALS
    ]


def predicted(timed: Timed, candidates: Sequence[Candidate] | None = None) -> list[Interval]:
    asked = [candidate for candidate, _ in timed] if candidates is None else candidates
    return CostModel.fit(REGISTRY, timed).speedups(asked)


def root_mean_square(errors: list[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


@pytest.mark.parametrize("blocks", [1, 3])
def test_without_noise_every_speedup_is_the_truth(blocks: int) -> None:
    timed = searched(0, run_sd=0.0, step_sd=0.0, blocks=blocks)
    for (candidate, _), speedup in zip(timed, predicted(timed), strict=True):
        assert speedup.value == pytest.approx(speedup_of(kinds_of(candidate)), rel=0.02)


def test_pooled_speedups_are_nearer_to_the_truth_than_each_candidates_own() -> None:
    own, pooled = [], []
    for seed in range(20):
        timed = searched(seed, run_sd=0.02, step_sd=0.03)
        for (candidate, blocks), speedup in zip(timed, predicted(timed), strict=True):
            truth = math.log(speedup_of(kinds_of(candidate)))
            own.append(math.log(step_kind_speedup(blocks).value) - truth)
            pooled.append(math.log(speedup.value) - truth)
    assert root_mean_square(pooled) < root_mean_square(own) / 2


def test_intervals_hold_the_truth_and_are_narrower_than_each_candidates_own() -> None:
    hits, narrower = [], []
    for seed in range(30):
        timed = searched(seed, run_sd=0.01, step_sd=0.02)
        for (candidate, blocks), speedup in zip(timed, predicted(timed), strict=True):
            hits.append(speedup.low <= speedup_of(kinds_of(candidate)) <= speedup.high)
            narrower.append(speedup.half_width_ratio < step_kind_speedup(blocks).half_width_ratio)
    assert np.mean(hits) >= 0.9
    assert all(narrower)


@pytest.mark.parametrize("blocks", [1, 2])
def test_speedups_are_not_biased(blocks: int) -> None:
    """A kind with few steps in a run is not dearer for it: that would not average away."""
    errors = []
    for seed in range(40):
        timed = searched(seed, run_sd=0.005, step_sd=0.05, blocks=blocks)
        errors += [
            math.log(speedup.value / speedup_of(kinds_of(candidate)))
            for (candidate, _), speedup in zip(timed, predicted(timed), strict=True)
        ]
    assert abs(np.mean(errors)) < 0.005


def waiting(seed: int, share: float) -> Timed:
    """A search on a quiet GPU, of which cheap steps wait for the host in a share of the runs: 10% to 40% longer."""
    generator = np.random.default_rng(seed)
    timed = searched(seed, run_sd=0.003, step_sd=0.003, blocks=6, drift_sd=0.003)

    def waited(block: Block) -> Block:
        (plain,) = block.runs
        factor = generator.uniform(1.1, 1.4) if generator.random() < share else 1.0
        steps = tuple(
            step_s * (factor if kind == SHALLOW else 1.0)
            for kind, step_s in zip(plain.kinds, plain.step_s, strict=True)
        )
        return replace(block, runs=(RunTiming(sum(steps) + plain.fixed_s, steps, plain.kinds),))

    return [(candidate, tuple(map(waited, blocks))) for candidate, blocks in timed]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.8])
def test_steps_that_wait_for_the_host_at_times_cost_what_they_cost_when_they_do_not(share: float) -> None:
    """In most of the runs of one search and in few of another's: they are to agree."""
    errors, hits = [], []
    for seed in range(20):
        timed = waiting(seed, share)
        for (candidate, _), speedup in zip(timed, predicted(timed), strict=True):
            truth = speedup_of(kinds_of(candidate))
            errors.append(math.log(speedup.value / truth))
            hits.append(speedup.low <= truth <= speedup.high)
    assert abs(np.mean(errors)) < 0.01
    assert root_mean_square(errors) < 0.02
    assert np.mean(hits) >= 0.95


@given(st.lists(st.floats(0.05, 0.5), min_size=3, max_size=60))
def test_a_kinds_cost_lies_no_farther_above_its_low_quantile_than_noise_explains(times: list[float]) -> None:
    """Three times 2.5%, which unaccelerated runs are taken to vary by before there are many."""
    baseline = RunTiming(1.12, (0.1,) * 10, BASELINE)
    runs = [RunTiming(10 * step_s + 0.12, (step_s,) * 10, (SHALLOW,) * 10) for step_s in times]
    blocks = [Block(baseline, (run,), "", float(place)) for place, run in enumerate(runs)]
    found = KindCosts.from_blocks([(deepcache(2), blocks)]).kinds[SHALLOW]
    logs = [math.log(step_s / 0.1) for step_s in times]
    assert min(logs) - 0.01 <= found.log_ratio <= low_quantile_of(logs) + 3 * 0.025 + 0.01
    assert found.variance > 0


def test_what_the_median_says_more_than_noise_explains_widens_the_interval() -> None:
    quiet, busy = (predicted(waiting(0, share))[0] for share in (0.0, 0.6))
    assert busy.half_width_ratio > 1.2 * quiet.half_width_ratio


def test_candidates_never_timed_are_told_from_those_that_share_their_kinds() -> None:
    timed = [one for one in searched(0, run_sd=0.0, step_sd=0.0) if one[0] in (deepcache(2), deepcache(10))]
    asked = [deepcache(interval) for interval in (3, 4, 7)]
    for candidate, speedup in zip(asked, predicted(timed, asked), strict=True):
        assert speedup.value == pytest.approx(speedup_of(kinds_of(candidate)), rel=5e-3)


def test_methods_together_cost_about_the_product_of_each_and_the_interval_is_wider() -> None:
    alone: Timed = searched(0, run_sd=0.0, step_sd=0.0)
    gated = Candidate(CELL, "T-Gate", {"T-Gate": {"gate_step": 1, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}})
    run = [COSTS["plain"], *[COSTS["T-Gate:gated"]] * (CELL.steps - 1)]
    baseline = RunTiming(sum([COSTS["plain"]] * CELL.steps) + 0.12, (COSTS["plain"],) * CELL.steps, BASELINE)
    block = Block(baseline, (RunTiming(sum(run) + 0.12, tuple(run), kinds_of(gated)),))
    together = Candidate(CELL, "DeepCache and T-Gate", {**deepcache(10).params, **gated.params})
    both, one = predicted([*alone, (gated, (block,) * 4)], [together, deepcache(10)])
    costs = {"full": 1.0, "shallow@0": 0.4, "planning": 1.0, "gated": 0.6}
    steps = [math.prod(costs[part.split(":")[1]] for part in kind.split("|")) for kind in kinds_of(together)]
    assert both.value == pytest.approx((10 + 1.2) / (sum(steps) + 1.2), rel=0.05)
    assert both.half_width_ratio > one.half_width_ratio


def test_nothing_known_is_a_very_wide_interval() -> None:
    (speedup,) = CostModel.fit(REGISTRY, []).speedups([deepcache(3)])
    assert speedup.low < 0.5
    assert speedup.high > 4


def merged(ratio: float, cost_s: float, lowest: int = 1) -> tuple[Candidate, tuple[Block, ...]]:
    """ToMe at a ratio, timed in a few blocks without noise."""
    candidate = Candidate(CELL, "ToMe", {"ToMe": {"ratio": ratio, "max_downsample": lowest}})
    run = RunTiming(cost_s * CELL.steps + 0.12, (cost_s,) * CELL.steps, kinds_of(candidate))
    baseline = RunTiming(0.1 * CELL.steps + 0.12, (0.1,) * CELL.steps, BASELINE)
    return candidate, (Block(baseline, (run,)),) * 6


def test_merging_ratios_never_timed_lie_between_those_that_were() -> None:
    timed = [merged(0.1, 0.11), merged(0.4, 0.09), merged(0.75, 0.08)]
    slow, middle, fast = predicted(timed, [timed[0][0], merged(0.55, 0.09)[0], timed[2][0]])
    assert slow.value < middle.value < fast.value
    assert middle.half_width_ratio < 0.1


def test_resolutions_never_timed_lie_between_those_that_were() -> None:
    """Each adds something to those before: what all of them add leaves little room for what some do."""
    timed = [merged(ratio, cost, lowest) for ratio, cost, lowest in ((0.3, 0.11, 1), (0.6, 0.106, 1), (0.6, 0.112, 8))]
    between = predicted(timed, [merged(0.6, 0.0, lowest)[0] for lowest in (2, 4)])
    assert all(0.87 < speedup.value < 0.97 for speedup in between)
    # It was 0.66 where each resolution was one of its own.
    assert all(speedup.half_width_ratio < 0.3 for speedup in between)


def test_a_cost_that_the_others_contradict_widens_every_interval() -> None:
    ratios = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    calm = CostModel.fit(REGISTRY, [merged(ratio, 0.12 - 0.05 * ratio) for ratio in ratios])
    assert calm.widening == 1.0
    odd = CostModel.fit(REGISTRY, [merged(ratio, 0.2 if ratio == 0.4 else 0.12 - 0.05 * ratio) for ratio in ratios])
    assert odd.widening > 1.0
    (before,), (after,) = (model.speedups([merged(0.2, 0.1)[0]]) for model in (calm, odd))
    assert after.half_width_ratio > before.half_width_ratio


def test_a_slower_machine_in_between_changes_nothing() -> None:
    """Costs are relative to the machine's level about then: candidates measured on a throttled one pool with others."""
    quick = searched(0, run_sd=0.0, step_sd=0.0)
    slow = searched(1, run_sd=0.0, step_sd=0.0, drift_sd=2.0)
    truth = [speedup.value for speedup in predicted(quick)]
    mixed = [speedup.value for speedup in predicted([*slow[:3], *quick[3:]])]
    assert mixed == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("fewer", [1, 4, 9, 10])
def test_fewer_steps_are_as_fast_as_their_time_says(fewer: int) -> None:
    model = CostModel.fit(REGISTRY, searched(0, run_sd=0.0, step_sd=0.0))
    speedup = model.of_fewer_steps(10, fewer)
    assert speedup.value == pytest.approx((1.0 + 0.12) / (0.1 * fewer + 0.12), rel=0.01)
    assert speedup.low <= speedup.value <= speedup.high


@pytest.mark.parametrize(("speedup", "steps"), [(1.0, 10), (1.05, 9), (2.0, 4), (5.0, 1), (6.0, None)])
def test_the_rival_has_the_most_steps_that_are_as_fast(speedup: float, steps: int | None) -> None:
    model = CostModel.fit(REGISTRY, searched(0, run_sd=0.0, step_sd=0.0))
    assert steps_as_fast(model, 10, speedup) == steps


def test_other_step_counts_share_the_costs() -> None:
    timed = searched(0, run_sd=0.0, step_sd=0.0)
    longer = Candidate(Cell("SD1.5", "UniPCMultistepScheduler", 50), "DeepCache", deepcache(5).params)
    (speedup,) = predicted(timed, [longer])
    assert speedup.value == pytest.approx((50 * 0.1 + 0.12) / (10 * 0.1 + 40 * 0.04 + 0.12), rel=5e-3)


def calibrated(seed: int, dwell_s: float) -> Timed:
    """Groups of a short run of each of three candidates and of the baseline, in random order, on a machine with two
    speeds: modes last so long on average, and in the slow one all takes a third longer.
    """
    generator = np.random.default_rng(seed)
    left, factor = generator.exponential(dwell_s), 1.0

    def timed(kinds: Sequence[str]) -> RunTiming:
        nonlocal left, factor
        noise = []
        for cost_s in [COSTS[kind] for kind in kinds] + [0.12]:
            took = 0.0
            work = cost_s * math.exp(generator.normal(0, 0.02))
            while work * factor > left:
                took, work = took + left, work - left / factor
                left, factor = generator.exponential(dwell_s), 1.32 if factor == 1.0 else 1.0
            left -= work * factor
            noise.append((took + work * factor) / cost_s)
        return run(kinds, noise)

    kinds = {candidate: kinds_of(candidate)[:7] for candidate in map(deepcache, (2, 3, 5))}
    blocks: dict[Candidate, list[Block]] = {candidate: [] for candidate in kinds}
    for group in range(20):
        made: dict[Candidate | None, RunTiming] = {}
        order = [None, *kinds]
        for place in generator.permutation(len(order)):
            one = order[place]
            made[one] = timed(("plain",) * 7 if one is None else kinds[one])
        for candidate, own in blocks.items():
            own.append(Block(made[None], (made[candidate],), "", float(group)))
    return [(candidate, tuple(own)) for candidate, own in blocks.items()]


@pytest.mark.parametrize("dwell_s", [0.1, 1.0, 10.0])
def test_short_runs_tell_whole_ones_on_a_machine_with_two_speeds(dwell_s: float) -> None:
    """Pooled costs are not biased, nearer to the truth than each candidate's own blocks, and honest."""
    pooled, own, hits = [], [], []
    for seed in range(12):
        timed = calibrated(seed, dwell_s)
        model = CostModel.fit(REGISTRY, timed)
        for (candidate, blocks), speedup in zip(timed, model.speedups([one for one, _ in timed]), strict=True):
            truth = speedup_of(kinds_of(candidate))
            short = speedup_of(kinds_of(candidate)[:7]) * run(("plain",) * 7).total_s / run(BASELINE).total_s
            own.append(math.log(wall_speedup(blocks).value / short))
            pooled.append(math.log(speedup.value / truth))
            hits.append(speedup.low <= truth <= speedup.high)
    assert abs(np.mean(pooled)) < 0.01
    assert root_mean_square(pooled) < max(0.9 * root_mean_square(own), 0.007)
    assert np.mean(hits) >= 0.93


def test_longer_runs_of_before_are_understood_after_many_shorter_ones() -> None:
    """A search of 30 steps, then one of 10: the runs of late cannot tell how the low quantile of 30 steps lies."""
    longer = Candidate(replace(CELL, steps=30), "DeepCache", deepcache(3).params)
    long = [(longer, (Block(run(("plain",) * 30), (run(kinds_of(longer)),)),))]
    full = run((FULL,) * len(BASELINE))
    baselines = [run(BASELINE, [1 + at / 10**6] * (len(BASELINE) + 1)) for at in range(1, 31)]
    short = [(deepcache(20), tuple(Block(one, (full,), started_at=one.total_s) for one in baselines))]
    (speedup,) = predicted(long + short, [deepcache(3)])
    assert speedup.value == pytest.approx(speedup_of(CANDIDATE), rel=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
def test_a_regression_says_what_the_textbook_says(seed: int, known: int, together: bool) -> None:
    """Rasmussen and Williams 2006, equations 2.22 to 2.24; and 5.12: what the other values say of each."""
    generator = np.random.default_rng(seed)
    points, others = generator.uniform(0, 3, (known, 2)), generator.uniform(0, 3, (4, 2))
    values, roots = generator.normal(size=known), generator.uniform(0.1, 1, (known, known))
    noise = roots @ roots.T + 0.1 * np.eye(known) if together else generator.uniform(0.1, 1, known)
    regression = Regression(bells(points, points, 1), values, noise)
    errors = noise if together else np.diag(noise)
    between, own = bells(others, points, 1), bells(others, others, 1)
    inverse = np.linalg.inv(bells(points, points, 1) + errors)

    mean, covariance = regression.predict(between, own)
    assert mean == pytest.approx(between @ inverse @ values, abs=1e-9)
    assert covariance == pytest.approx(own - between @ inverse @ between.T, abs=1e-9)
    each, variance = regression.predict_each(between, np.diag(own))
    assert each == pytest.approx(mean, abs=1e-9)
    assert variance == pytest.approx(np.diag(covariance), abs=1e-9)
    assert regression.surprises == pytest.approx(inverse @ values / np.sqrt(np.diag(inverse)), abs=1e-9)
