"""The choice of winners: least loss among those that are fast and good enough, or the true reason why there is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.decide.select import (
    Choice,
    Option,
    choose,
    leader,
)
from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE, may_reach
from pytest_diffaccel.search.verify.choices import final_choice, worth_verifying

CELL = Cell("SD1.5", "DDIM", 20)


def option(number: int, speedup: float, *losses: float, margin: float = 0.0) -> Option:
    params = {"DeepCache": {"cache_interval": number, "cache_branch_id": 0}}
    interval = Interval(speedup, speedup - margin, speedup + margin)
    return Option(Candidate(CELL, "DeepCache", params), interval, losses)


# Few distinct values, so that ties happen.
figures = st.tuples(
    st.sampled_from([0.9, 1.2, 1.5, 1.9, 2.0, 3.0]),
    st.sampled_from([0.0, 0.01, 0.1, 0.101, 0.25, 0.3]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
options = st.lists(figures, max_size=8).map(
    lambda rows: [option(number, speedup, lpips, margin=margin) for number, (speedup, lpips, margin) in enumerate(rows)]
)
# Speed-ups about the targets, whose intervals are of any width.
vague_options = st.lists(
    st.tuples(st.sampled_from(TARGETS), st.floats(0.9, 1.1), st.floats(0.0, 1.0), st.floats(0.0, 0.8)), max_size=8
).map(
    lambda rows: [
        option(number, target * factor, lpips, margin=target * factor * share)
        for number, (target, factor, lpips, share) in enumerate(rows)
    ]
)
targets = st.sampled_from(TARGETS)
max_losses = st.sampled_from([0.05, 0.25, 1.0])


@given(options, targets, max_losses)
def test_a_winner_is_fast_and_good_enough_and_none_such_loses_less(
    known: list[Option], target: float, max_loss: float
) -> None:
    choice = choose(known, target, max_loss)
    eligible = [option for option in known if option.reaches(target) and option.loss <= max_loss]
    assert (choice.reason is None) == bool(eligible)
    if choice.option is not None and choice.reason is None:
        assert choice.option in eligible
        least = min(option.loss for option in eligible)
        assert choice.option.loss == least  # one sample each: differences are what they are
        ties = [option for option in eligible if option.loss == least]
        assert choice.option.speedup.value == max(option.speedup.value for option in ties)


@given(options, targets, max_losses)
def test_reasons_say_what_is_lacking(known: list[Option], target: float, max_loss: float) -> None:
    choice = choose(known, target, max_loss)
    maybe = [option for option in known if may_reach(option.speedup, target)]
    if choice.reason == "speed":
        assert not maybe
    if choice.reason == "quality":
        assert maybe
        assert all(option.loss > max_loss for option in maybe)
    if choice.reason == "undecided":
        good = [option for option in maybe if option.loss <= max_loss]
        assert good
        assert not any(option.reaches(target) for option in good)


@given(vague_options, targets, max_losses)
def test_nothing_that_seems_fast_and_good_enough_is_called_out_of_reach(
    known: list[Option], target: float, max_loss: float
) -> None:
    """Nobody is to read "unattainable" beside a best that is above the target."""
    choice = choose(known, target, max_loss)
    if choice.reason in ("speed", "quality"):
        assert not [option for option in known if option.loss <= max_loss and option.speedup.value >= target]
        if choice.option is not None and choice.option.loss <= max_loss:
            assert choice.option.speedup.value < target
    if choice.reason == "undecided":
        assert [
            option
            for option in known
            if option.loss <= max_loss and option.speedup.high >= target * (1 - SPEED_TOLERANCE)
        ]


def test_what_is_only_perhaps_fast_enough_makes_no_target_unattainable() -> None:
    perhaps, lossy = option(1, 3.06, 0.09, margin=0.4), option(2, 4.5, 0.6)
    assert choose([perhaps, lossy], 3.0, 0.25) == Choice(3.0, perhaps, "undecided")
    assert choose([perhaps, lossy], 4.0, 0.25) == Choice(4.0, perhaps, "quality")
    assert choose([perhaps], 4.0, 0.25) == Choice(4.0, perhaps, "speed")


@given(options, targets, max_losses)
def test_an_unattainable_target_names_the_best_reached(known: list[Option], target: float, max_loss: float) -> None:
    choice = choose(known, target, max_loss)
    if choice.reason is not None:
        good = [option for option in known if option.loss <= max_loss] or known
        assert (choice.option is None) == (not known)
        if choice.option is not None:
            assert choice.option in good
            fastest = max(option.speedup.value for option in good)
            as_fast = [option for option in good if option.speedup.value >= fastest * (1 - SPEED_TOLERANCE)]
            assert choice.option in as_fast
            assert choice.option.loss == min(option.loss for option in as_fast)


@given(options, targets, max_losses, st.randoms(use_true_random=False))
def test_order_plays_no_part(known: list[Option], target: float, max_loss: float, random: object) -> None:
    shuffled = list(known)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(shuffled, target, max_loss) == choose(known, target, max_loss)


@given(options, max_losses)
def test_a_higher_target_never_costs_less_quality(known: list[Option], max_loss: float) -> None:
    met = [choice for target in TARGETS if (choice := choose(known, target, max_loss)).reason is None]
    losses = [choice.option.loss for choice in met if choice.option]
    assert losses == sorted(losses)
    assert [choice.target for choice in met] == list(TARGETS[: len(met)])


def test_the_lower_end_of_the_interval_must_reach_the_target_less_the_tolerance() -> None:
    vague, sure = option(1, 2.0, 0.1, margin=0.1), option(2, 2.5, 0.2)
    assert choose([vague, sure], 2.0, 1.0) == Choice(2.0, sure, None)
    known = option(1, 2.0, 0.1, margin=2.0 * SPEED_TOLERANCE)
    assert choose([known, sure], 2.0, 1.0) == Choice(2.0, known, None)


def test_exactly_the_target_and_exactly_the_loss_are_enough() -> None:
    just = option(1, 2.0, 0.25)
    assert choose([just], 2.0, 0.25).reason is None


def test_nothing_measured_is_unattainable_for_speed() -> None:
    assert choose([], 1.2, 0.25) == Choice(1.2, None, "speed")


def test_a_tie_goes_to_the_faster_then_to_the_simpler() -> None:
    slow, fast = option(1, 1.5, 0.100, 0.200), option(2, 1.8, 0.103, 0.199)
    assert choose([slow, fast], 1.2, 1.0).option is fast
    simple, long = option(9, 1.5, 0.1, 0.2), option(10, 1.5, 0.1, 0.2)
    assert choose([long, simple], 1.2, 1.0).option is simple


def test_what_is_surely_worse_is_no_tie_however_little() -> None:
    best, worse = option(1, 1.5, 0.100, 0.200, 0.300), option(2, 1.8, 0.101, 0.201, 0.301)
    assert choose([best, worse], 1.2, 1.0).option is best


def test_few_samples_do_not_make_a_tie_of_everything() -> None:
    best, unsure = option(1, 1.5, 0.10, 0.20), option(2, 1.8, 0.16, 0.19)
    assert choose([best, unsure], 1.2, 1.0).option is best


def test_more_samples_do_not_make_a_loss_look_worse() -> None:
    """The later samples are harder; the one that was spared them is not better for that."""
    raced, spared = option(1, 1.5, 0.10, 0.10, 0.40, 0.40), option(2, 1.5, 0.15, 0.15)
    assert raced.loss > spared.loss
    assert leader([raced, spared]) is raced


def test_where_the_best_is_not_verified_the_best_of_those_that_are_is_the_winner() -> None:
    best, second = option(2, 1.6, 0.01), option(3, 1.6, 0.02)
    assert final_choice([best, second], {second.candidate.key}, 1.5, 0.25) == Choice(1.5, second, None)


def test_a_target_that_only_unverified_candidates_reach_is_undecided() -> None:
    fast, slow = option(5, 3.1, 0.05), option(2, 1.6, 0.01)
    reasons = {target: final_choice([fast, slow], {slow.candidate.key}, target, 0.25).reason for target in TARGETS}
    # What nothing reaches is told without a verification.
    assert reasons == {1.2: None, 1.5: None, 1.8: "undecided", 2.0: "undecided", 2.5: "undecided", 3.0: "undecided"} | {
        4.0: "speed"
    }


@given(options, targets, max_losses, st.sets(st.integers(0, 7)))
def test_only_what_is_visibly_better_is_worth_verifying_beside_what_is_verified(
    known: list[Option], target: float, max_loss: float, numbers: set[int]
) -> None:
    verified = {one.candidate.key for place, one in enumerate(known) if place in numbers}
    worth, best = worth_verifying(known, verified, target, max_loss), choose(known, target, max_loss)
    final = final_choice(known, verified, target, max_loss)
    assert worth in (best, final)
    if best.option is not None and best.option.candidate.key in verified:
        assert worth == best
    if worth.option is not None and worth.option.candidate.key not in verified:
        assert worth == best
        if final.reason is None and best.reason is None and final.option is not None:
            assert worth.option.loss < 0.98 * final.option.loss
            assert final.option.loss > 0.005
    elif final.option is not None and worth.reason is None:
        assert worth == final


def test_of_losses_that_nobody_could_see_what_is_verified_stands() -> None:
    """Here is nothing to be gained, and on more samples either may be the better one."""
    verified, less, much_less = option(2, 1.6, 0.0049, 0.0050), option(3, 1.6, 0.001, 0.001), option(4, 1.6, 0.02, 0.02)
    assert worth_verifying([verified, less], {verified.candidate.key}, 1.5, 0.25).option == verified
    assert worth_verifying([much_less, less], {much_less.candidate.key}, 1.5, 0.25).option == less
    assert worth_verifying([verified, less], set(), 1.5, 0.25).option == less
