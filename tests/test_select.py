"""The choice of winners: least loss among those that are fast and good enough, or the true reason why there is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.select import Choice, Option, choose

CELL = Cell("SD1.5", "DDIM", 20)


def option(number: int, speedup: float, lpips: float, *, margin: float = 0.0, verified: bool = False) -> Option:
    params = {"DeepCache": {"cache_interval": number, "cache_branch_id": 0}}
    interval = Interval(speedup, speedup - margin, speedup + margin)
    return Option(Candidate(CELL, "DeepCache", params), interval, lpips, verified)


# Few distinct values, so that ties happen.
figures = st.tuples(
    st.sampled_from([0.9, 1.2, 1.5, 1.9, 2.0, 3.0]),
    st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.3]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.booleans(),
)
options = st.lists(figures, max_size=8).map(
    lambda rows: [
        option(number, speedup, lpips, margin=margin, verified=verified)
        for number, (speedup, lpips, margin, verified) in enumerate(rows)
    ]
)
targets = st.sampled_from(TARGETS)
max_losses = st.sampled_from([0.05, 0.25, 1.0])


@given(options, targets, max_losses)
def test_a_winner_is_fast_and_good_enough_and_none_such_loses_less(
    known: list[Option], target: float, max_loss: float
) -> None:
    choice = choose(known, target, max_loss)
    eligible = [one for one in known if one.reaches(target) and one.lpips <= max_loss]
    assert (choice.reason is None) == bool(eligible)
    if choice.reason is None:
        assert choice.option in eligible
        assert choice.option.lpips == min(one.lpips for one in eligible)
        ties = [one for one in eligible if one.lpips == choice.option.lpips]
        assert choice.option.speedup.value == max(one.speedup.value for one in ties)


@given(options, targets, max_losses)
def test_reasons_say_what_is_lacking(known: list[Option], target: float, max_loss: float) -> None:
    choice = choose(known, target, max_loss)
    fast = [one for one in known if one.reaches(target)]
    if choice.reason == "speed":
        assert not fast
    if choice.reason == "quality":
        assert fast
        assert all(one.lpips > max_loss for one in fast)


@given(options, targets, max_losses)
def test_an_unattainable_target_names_the_best_reached(known: list[Option], target: float, max_loss: float) -> None:
    choice = choose(known, target, max_loss)
    if choice.reason is not None:
        good = [one for one in known if one.lpips <= max_loss] or known
        assert (choice.option is None) == (not known)
        if choice.option is not None:
            assert choice.option in good
            assert choice.option.speedup.value == max(one.speedup.value for one in good)


@given(options, targets, max_losses, st.randoms(use_true_random=False))
def test_order_plays_no_part(known: list[Option], target: float, max_loss: float, random: object) -> None:
    shuffled = list(known)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(shuffled, target, max_loss) == choose(known, target, max_loss)


@given(options, max_losses)
def test_a_higher_target_never_costs_less_quality(known: list[Option], max_loss: float) -> None:
    met = [choice for target in TARGETS if (choice := choose(known, target, max_loss)).reason is None]
    losses = [choice.option.lpips for choice in met if choice.option]
    assert losses == sorted(losses)
    assert [choice.target for choice in met] == list(TARGETS[: len(met)])


def test_one_not_verified_gets_the_benefit_of_its_interval() -> None:
    hopeful, proven = option(1, 1.9, 0.1, margin=0.2), option(2, 2.5, 0.2, verified=True)
    assert choose([hopeful, proven], 2.0, 1.0) == Choice(2.0, hopeful, None)


def test_one_verified_is_taken_at_its_word() -> None:
    slow, proven = option(1, 1.9, 0.1, margin=0.2, verified=True), option(2, 2.5, 0.2, verified=True)
    assert choose([slow, proven], 2.0, 1.0) == Choice(2.0, proven, None)


def test_exactly_the_target_and_exactly_the_loss_are_enough() -> None:
    just = option(1, 2.0, 0.25, verified=True)
    assert choose([just], 2.0, 0.25).reason is None


def test_nothing_measured_is_unattainable_for_speed() -> None:
    assert choose([], 1.2, 0.25) == Choice(1.2, None, "speed")
