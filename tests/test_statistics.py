"""Statistics of speed-ups: known values, laws that any ratio obeys, and intervals that cover what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timings import BASELINE, CANDIDATE, COSTS, FULL, SHALLOW, noisy_block, run, speedup_of

from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import half_width, loss_interval, low_quantile, mean_interval, wall_speedup
from pytest_diffaccel.measure.step_kinds import RunTimes, step_kind_speedup

Estimate = Callable[[Sequence[Block]], Interval]

each_estimate = pytest.mark.parametrize("estimate", [wall_speedup, step_kind_speedup])
factors = st.floats(0.5, 2.0)
numbers = st.floats(-1e6, 1e6)


@st.composite
def blocks(draw: st.DrawFn, *, least: int = 1) -> list[Block]:
    """Blocks of a baseline and a candidate, with any noise."""

    def noisy(kinds: Sequence[str]) -> RunTiming:
        return run(kinds, draw(st.lists(factors, min_size=len(kinds) + 1, max_size=len(kinds) + 1)))

    count = draw(st.integers(least, 6))
    return [Block(noisy(("plain",) * 3), (noisy((FULL, SHALLOW, SHALLOW)),)) for _ in range(count)]


def scaled(timing: RunTiming, factor: float) -> RunTiming:
    return RunTiming(timing.total_s * factor, tuple(step * factor for step in timing.step_s), timing.kinds)


def close(left: Interval, right: Interval) -> bool:
    ends = (left.value, left.low, left.high)
    return ends == pytest.approx((right.value, right.low, right.high), rel=1e-6)


# --- laws of ratios --------------------------------------------------------------------------------------------


@each_estimate
@given(measured=blocks(), factor=st.floats(1e-3, 1e3))
@settings(max_examples=30)
def test_a_faster_machine_changes_nothing(estimate: Estimate, measured: list[Block], factor: float) -> None:
    on_another = [Block(scaled(block.baseline, factor), (scaled(block.runs[0], factor),)) for block in measured]
    assert close(estimate(on_another), estimate(measured))


@each_estimate
@given(measured=blocks())
@settings(max_examples=30)
def test_exchanging_baseline_and_candidate_inverts_the_ratio(estimate: Estimate, measured: list[Block]) -> None:
    exchanged = estimate([Block(block.runs[0], (block.baseline,)) for block in measured])
    assert close(exchanged, Interval(*(1 / end for end in _ends(estimate(measured)))))


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.high, interval.low


@each_estimate
@given(measured=blocks())
@settings(max_examples=30)
def test_the_interval_holds_the_estimate(estimate: Estimate, measured: list[Block]) -> None:
    interval = estimate(measured)
    assert 0 < interval.low < interval.value < interval.high < math.inf


@each_estimate
def test_more_blocks_narrow_the_interval(estimate: Estimate) -> None:
    """On the average over many searches: a few blocks can by chance be too sure of themselves."""

    def width(count: int) -> float:
        intervals = [estimate(_noisy_blocks(count, seed=seed)) for seed in range(20)]
        return float(np.mean([math.log(interval.high / interval.low) for interval in intervals]))

    assert width(16) < width(4) < width(1)


@each_estimate
@given(measured=blocks(least=2), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_blocks_does_not_move_the_estimate(estimate: Estimate, measured: list[Block], seed: int) -> None:
    shuffled = [measured[place] for place in np.random.default_rng(seed).permutation(len(measured))]
    assert estimate(shuffled).value == pytest.approx(estimate(measured).value)


@each_estimate
def test_the_same_blocks_give_the_same_interval(estimate: Estimate) -> None:
    measured = _noisy_blocks(6, seed=1)
    assert estimate(measured) == estimate(measured)


@each_estimate
@given(count=st.integers(1, 8))
@settings(max_examples=8)
def test_without_noise_the_estimate_is_the_truth(estimate: Estimate, count: int) -> None:
    interval = estimate([Block(run(BASELINE), (run(CANDIDATE),))] * count)
    assert interval.value == pytest.approx(speedup_of(CANDIDATE))


@each_estimate
def test_no_blocks_are_refused(estimate: Estimate) -> None:
    with pytest.raises(ValueError, match="no blocks"):
        estimate([])


# --- robustness ------------------------------------------------------------------------------------------------


def test_one_disturbed_run_in_ten_blocks_hardly_moves_the_estimates() -> None:
    measured = [Block(run(BASELINE), (run(CANDIDATE),))] * 9
    slow = Block(run(BASELINE), (run(CANDIDATE, [5.0] * (len(CANDIDATE) + 1)),))
    for estimate in (wall_speedup, step_kind_speedup):
        assert estimate([*measured, slow]).value == pytest.approx(speedup_of(CANDIDATE), rel=0.01)


def test_disturbed_steps_do_not_move_the_step_kind_estimate() -> None:
    """One step in ten takes five times as long in the candidate's runs only, so the wall ratio is far off."""
    disturbed = [5.0 if place == 4 else 1.0 for place in range(len(CANDIDATE) + 1)]
    measured = [Block(run(BASELINE), (run(CANDIDATE, disturbed),)) for _ in range(4)]
    truth = speedup_of(CANDIDATE)
    assert wall_speedup(measured).value < 0.9 * truth
    assert step_kind_speedup(measured).value == pytest.approx(truth, rel=0.01)


def test_step_kinds_are_more_precise_than_whole_runs() -> None:
    generator = np.random.default_rng(5)
    truth = math.log(speedup_of(CANDIDATE))
    errors: dict[str, list[float]] = {"wall": [], "kinds": []}
    for _ in range(200):
        measured = [_disturbed_block(generator) for _ in range(4)]
        errors["wall"].append(math.log(wall_speedup(measured).value) - truth)
        errors["kinds"].append(math.log(step_kind_speedup(measured).value) - truth)
    wall, kinds = (float(np.sqrt(np.mean(np.square(part)))) for part in errors.values())
    assert kinds < 0.75 * wall


def _disturbed_block(generator: np.random.Generator) -> Block:
    """Disturbance as machines have it: now and then a step takes longer, never shorter."""

    def noisy(kinds: Sequence[str]) -> RunTiming:
        hit = generator.random(len(kinds) + 1) < 0.05
        return run(kinds, (1 + hit * generator.exponential(0.5, len(kinds) + 1)).tolist())

    return Block(noisy(BASELINE), (noisy(CANDIDATE),))


# --- a machine with two speeds ---------------------------------------------------------------------------------

_DRAWS = 300


def _recorded_errors(count: int) -> tuple[dict[Estimate, np.ndarray], dict[Estimate, np.ndarray]]:
    """Errors (log) and half-widths of both estimates from ``count`` recorded blocks, by candidate and draw."""
    recorded = pytest.importorskip(
        "benchmarks.recorded", reason="the benchmarks are not part of the source distribution"
    )
    errors: dict[Estimate, np.ndarray] = {}
    halves: dict[Estimate, np.ndarray] = {}
    for estimate in (wall_speedup, step_kind_speedup):
        generator = np.random.default_rng(count)
        found = []
        for point in recorded.read_idle_vm():
            truth = sum(one.baseline.total_s for one in point.blocks) / sum(one.runs[0].total_s for one in point.blocks)
            drawn = [generator.choice(len(point.blocks), count, replace=False) for _ in range(_DRAWS)]
            intervals = [estimate([point.blocks[place] for place in places]) for places in drawn]
            found.append([(math.log(one.value / truth), math.log(one.high / one.value)) for one in intervals])
        errors[estimate], halves[estimate] = np.moveaxis(np.array(found), -1, 0)
    return errors, halves


@pytest.mark.parametrize("count", [3, 5, 8])
def test_step_kinds_are_no_worse_than_whole_runs_where_the_machine_has_two_speeds(count: int) -> None:
    """Recorded blocks. A fast quantile of short steps meets the fast mode more often than one of long steps does."""
    errors, halves = _recorded_errors(count)
    wall, kinds = errors[wall_speedup], errors[step_kind_speedup]
    assert np.all(np.abs(kinds.mean(axis=-1)) < 0.012)
    assert abs(kinds.mean()) < 0.005
    assert kinds.std() < 1.04 * wall.std()
    assert np.median(halves[step_kind_speedup]) < 1.05 * np.median(halves[wall_speedup])
    assert 0.93 <= np.mean(np.abs(kinds) <= halves[step_kind_speedup]) <= 0.99


# --- coverage --------------------------------------------------------------------------------------------------


def _noisy_blocks(count: int, seed: int) -> list[Block]:
    generator = np.random.default_rng(seed)
    return [noisy_block(generator, CANDIDATE, drift_sd=0.1, run_sd=0.01, step_sd=0.02) for _ in range(count)]


def coverage(estimate: Estimate, count: int, simulations: int, *, run_sd: float) -> float:
    """Share of simulated measurements of ``count`` blocks whose interval holds the true speed-up."""
    generator = np.random.default_rng(count)
    truth, hits = speedup_of(CANDIDATE), 0
    for _ in range(simulations):
        measured = [noisy_block(generator, CANDIDATE, drift_sd=0.1, run_sd=run_sd, step_sd=0.02) for _ in range(count)]
        interval = estimate(measured)
        hits += interval.low <= truth <= interval.high
    return hits / simulations


@pytest.mark.parametrize("count", [4, 8, 20])
def test_wall_intervals_cover_the_truth_in_95_of_100_cases(count: int) -> None:
    """Noise of the size that whole runs were measured to have on two shared cores: 8% per run."""
    assert 0.90 <= coverage(wall_speedup, count, 800, run_sd=0.083) <= 0.99


@pytest.mark.parametrize(("count", "simulations"), [(4, 600), (8, 600), (20, 400)])
def test_step_kind_intervals_cover_the_truth_in_95_of_100_cases(count: int, simulations: int) -> None:
    """Noise between that of a quiet machine, 1% per run, and of one that others use."""
    assert 0.92 <= coverage(step_kind_speedup, count, simulations, run_sd=0.03) <= 0.995


@pytest.mark.parametrize("count", [2, 4, 8, 20])
def test_intervals_of_means_cover_the_truth_in_95_of_100_cases(count: int) -> None:
    generator = np.random.default_rng(count)
    intervals = [mean_interval(generator.normal(3, 1, count).tolist()) for _ in range(1000)]
    assert 0.93 <= np.mean([interval.low <= 3 <= interval.high for interval in intervals]) <= 0.97


# --- known values ----------------------------------------------------------------------------------------------


def test_wall_interval_of_one_block_is_the_priors() -> None:
    """Student's quantile for one degree of freedom times the prior deviation of a block, 4%."""
    interval = wall_speedup([Block(RunTiming(2.0, (), ()), (RunTiming(1.0, (), ()),))])
    half = 12.7062047 * 0.04
    assert _ends(interval) == pytest.approx((2.0, 2 * math.exp(half), 2 * math.exp(-half)))


def test_wall_estimate_trims_a_fifth_at_each_end() -> None:
    ratios = [1.0, 2.0, 2.0, 2.0, 100.0]
    measured = [Block(RunTiming(ratio, (), ()), (RunTiming(1.0, (), ()),)) for ratio in ratios]
    assert wall_speedup(measured).value == pytest.approx(2.0)


def test_several_runs_in_a_block_count_as_their_geometric_mean() -> None:
    measured = Block(RunTiming(6.0, (), ()), tuple(RunTiming(total, (), ()) for total in (1.0, 4.0)))
    assert wall_speedup([measured]).value == pytest.approx(3.0)


def test_cost_of_a_kind_is_the_mean_of_its_steps_but_for_one_in_ten() -> None:
    """Of ten steps the slowest counts as the next one."""
    times = RunTimes.of([(run(BASELINE, [1.0] * 5 + [1.5] * 4 + [9.0, 1.0]),)])
    assert times.costs() == pytest.approx({"plain": COSTS["plain"] * 1.25})
    assert times.fixed_seconds() == pytest.approx(run(BASELINE).fixed_s)
    assert times.steps_seconds() == pytest.approx(times.costs()["plain"] * len(BASELINE))


def test_kinds_costs_are_trimmed_means_over_blocks() -> None:
    slow = [3.0] * 10 + [1.0]
    times = RunTimes.of([(run(CANDIDATE, noise),) for noise in (None, None, None, None, slow)])
    assert times.costs() == pytest.approx({kind: COSTS[kind] for kind in (FULL, SHALLOW)})


def test_restless_steps_widen_the_interval_of_one_block() -> None:
    """Before many blocks show it, the steps of a run tell how much the machine's speed changes."""
    modes = [1.0, 1.3] * 5 + [1.0]
    quiet, restless = (step_kind_speedup([Block(run(BASELINE, of), (run(CANDIDATE, of),))]) for of in (None, modes))
    assert math.log(quiet.high / quiet.value) == pytest.approx(12.7062047 * 0.02)
    assert restless.half_width_ratio > 2 * quiet.half_width_ratio


def test_fixed_part_counts_once() -> None:
    """A run that is nothing but its fixed part cannot be accelerated."""
    measured = Block(RunTiming(1.0, (0.001,), ("plain",)), (RunTiming(0.9995, (0.0005,), (FULL,)),))
    assert step_kind_speedup([measured]).value == pytest.approx(1.0 / 0.9995)


@given(st.lists(numbers, min_size=1, max_size=60))
def test_low_quantile_is_numpys_median_unbiased_one(values: list[float]) -> None:
    expected = float(np.quantile(values, 0.1, method="median_unbiased"))
    assert low_quantile(values) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(st.lists(numbers, min_size=1, max_size=30))
def test_low_quantile_lies_between_the_least_and_the_median(values: list[float]) -> None:
    assert min(values) - 1e-6 <= low_quantile(values) <= np.median(values) + 1e-6


def test_mean_interval_of_three_values() -> None:
    half = 4.3026527 / math.sqrt(3)
    assert _ends(mean_interval([1.0, 2.0, 3.0])) == pytest.approx((2.0, 2 + half, 2 - half))


def test_mean_interval_of_equal_values_has_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_what_no_spread_can_be_told_from_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(values)} values have no interval"):
        mean_interval(values)


def test_loss_interval_of_one_picture_is_the_priors() -> None:
    """Student's quantile for three degrees of freedom times 0.6 of the loss; below it, no loss is less than 0."""
    assert _ends(loss_interval([0.1])) == pytest.approx((0.1, 0.1 * (1 + 3.1824463 * 0.6), 0.0))


def test_loss_interval_of_one_picture_covers_the_truth_in_most_cases() -> None:
    """Pictures of a candidate scatter as those of recorded winners: by about 0.6 of its loss, skewed to the right."""
    generator = np.random.default_rng(0)
    shares = 0.57 * np.exp(generator.normal(0, 0.35, 2000))
    losses = [float(generator.gamma(1 / share**2, share**2)) for share in shares]
    intervals = [loss_interval([loss]) for loss in losses]
    assert np.mean([one.low <= 1 <= one.high for one in intervals]) >= 0.85
    assert all(one.high > one.low for one in intervals)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_loss_interval_of_several_is_the_means_above_zero(values: list[float]) -> None:
    loss, mean = loss_interval(values), mean_interval(values)
    assert (loss.value, loss.low, loss.high) == (mean.value, max(0.0, mean.low), mean.high)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(-1, 1))
def test_mean_interval_moves_with_its_values(values: list[float], shift: float) -> None:
    before, after = mean_interval(values), mean_interval([value + shift for value in values])
    assert after.value == pytest.approx(before.value + shift, abs=1e-9)
    assert after.high - after.low == pytest.approx(before.high - before.low, abs=1e-9)


def test_a_moderated_interval_lies_between_prior_and_sample() -> None:
    """Four degrees of freedom of the prior and as many of the sample: the variances are averaged."""
    half = half_width(3.0, count=5, df=4, prior_sd=1.0, prior_df=4.0)
    assert half == pytest.approx(2.3060041 * math.sqrt((1 + 9) / 2 / 5))


def test_prior_vanishes_with_many_samples() -> None:
    half = half_width(1.0, count=10_000, df=9_999, prior_sd=50.0)
    without = half_width(1.0, count=10_000, df=9_999, prior_sd=1.0)
    assert half / without < 1.5
    assert half < 0.05


# --- intervals -------------------------------------------------------------------------------------------------

intervals = st.tuples(numbers, numbers, numbers).map(
    lambda ends: Interval(*(sorted(ends)[place] for place in (1, 0, 2)))
)


@given(intervals, intervals)
def test_overlap_is_mutual_and_means_a_common_point(one: Interval, other: Interval) -> None:
    assert one.overlaps(other) == other.overlaps(one) == (max(one.low, other.low) <= min(one.high, other.high))
    assert one.overlaps(one)


def test_half_width_is_relative_to_the_estimate() -> None:
    assert Interval(2.0, 1.9, 2.3).half_width_ratio == pytest.approx(0.1)


def test_fixed_part_is_what_is_not_a_step() -> None:
    assert replace(run(CANDIDATE), total_s=1.0).fixed_s == pytest.approx(1.0 - sum(run(CANDIDATE).step_s))
