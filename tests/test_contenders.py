"""The race: who contends, who gets more samples or more timing, and that it ends as a whole evaluation would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.decide.contenders import Contenders
from pytest_diffaccel.search.decide.select import Option, choose, leader
from pytest_diffaccel.search.predict.loss_model import EQUAL_LOSS, NO_LOSS

CELL = Cell("SD1.5", "DDIM", 20)
FIRST, WHOLE = 2, 32


def option(number: int, losses: tuple[float, ...], speedup: Interval | float = 2.5) -> Option:
    known = speedup if isinstance(speedup, Interval) else Interval(speedup, speedup, speedup)
    params = {"DeepCache": {"cache_interval": number, "cache_branch_id": 0}}
    return Option(Candidate(CELL, "DeepCache", params), known, losses)


def contenders(*options: Option, max_loss: float = 0.25) -> Contenders:
    return Contenders(options, max_loss, FIRST, WHOLE)


def losses(level: float, seed: int, samples: int = WHOLE) -> tuple[float, ...]:
    """Hard and easy samples are the same ones for all; each candidate does a little otherwise on each."""
    hardness = np.random.default_rng(0).lognormal(0, 0.4, WHOLE)
    own = np.random.default_rng([1, seed]).lognormal(0, 0.2, WHOLE)
    return tuple(float(value) for value in level * (hardness * own)[:samples])


def race(whole: dict[int, tuple[float, ...]]) -> list[Option]:
    """Options as they are when the race is over."""
    seen = dict.fromkeys(whole, FIRST)
    while True:
        options = [option(number, whole[number][: seen[number]]) for number in whole]
        needed = contenders(*options).undecided()
        if not needed:
            return options
        for candidate, samples in needed.items():
            number = int(candidate.params["DeepCache"]["cache_interval"])
            assert seen[number] < samples <= WHOLE
            assert samples % FIRST == 0
            seen[number] = samples


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.01, 0.02, 0.03, 0.05, 0.1]), min_size=1, max_size=6))
def test_the_race_ends_and_its_leader_is_not_noticeably_worse_than_the_best(levels: list[float]) -> None:
    whole = {number: losses(level, number) for number, level in enumerate(levels)}
    best = min(float(np.mean(row)) for row in whole.values())
    options = race(whole)
    won = int(leader(options).candidate.params["DeepCache"]["cache_interval"])
    # A wrong drop at the race's confidence is possible; one that is far worse is not.
    assert np.mean(whole[won]) <= 1.4 * best
    assert sum(len(one.losses) for one in options) <= len(levels) * WHOLE


def test_clear_winners_get_no_more_samples() -> None:
    first, second = option(2, (0.01, 0.011, 0.012, 0.011)), option(3, (0.05, 0.06, 0.05, 0.06))
    assert contenders(first, second).undecided() == {}


def test_those_that_contend_get_more_samples_the_fewest_first() -> None:
    ahead, close, far = option(2, losses(0.02, 1, 8)), option(3, losses(0.021, 2, 4)), option(4, losses(0.2, 3, 2))
    assert contenders(ahead, close, far).undecided() == {close.candidate: 6}


def test_all_samples_seen_leaves_nothing_open() -> None:
    one, other = option(2, losses(0.02, 1)), option(3, losses(0.0201, 2))
    known = contenders(one, other)
    assert known.undecided() == {}
    assert known.may_beat(one, other) == (other.loss > NO_LOSS and one.loss < (1 - EQUAL_LOSS) * other.loss)


def test_a_loss_near_the_limit_is_looked_at_again_even_without_contenders() -> None:
    alone = option(2, (0.20, 0.28))
    assert contenders(alone).undecided() == {alone.candidate: 4}
    assert contenders(option(2, (0.020, 0.028))).undecided() == {}


def test_what_would_win_if_it_were_fast_enough_is_timed() -> None:
    sure = option(2, losses(0.1, 1, 8), 2.5)
    unsure = option(3, losses(0.05, 2, 8), Interval(2.02, 1.92, 2.13))
    worse = option(4, losses(0.4, 3, 8), Interval(2.02, 1.92, 2.13))
    hopeless = option(5, losses(0.04, 4, 8), Interval(1.88, 1.79, 1.97))
    assert contenders(sure, unsure, worse, hopeless).borderline() == [unsure.candidate]


def test_the_group_tells_how_much_its_candidates_differ_by_chance() -> None:
    """Where all go up and down together, fewer samples decide than where each does as it likes."""
    shared = np.random.default_rng(0).lognormal(0, 0.5, 4)
    alike = [option(number, tuple(shared * (0.020 + 0.0004 * number))) for number in range(8)]
    apart = [option(number, tuple(0.022 * np.random.default_rng(number).lognormal(0, 0.5, 4))) for number in range(8)]
    assert len(contenders(*alike).undecided()) < len(contenders(*apart).undecided())


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples_drop_nobody_that_is_close(samples: int) -> None:
    one, other = option(2, (0.020,) * samples), option(3, (0.022,) * samples)
    assert other.candidate in contenders(one, other).undecided()
    assert choose([one, other], 1.2, 0.25).option is one


@pytest.mark.filterwarnings("error")
def test_pictures_that_are_the_baselines_at_first_are_no_scale() -> None:
    """Neither candidate lost anything on the samples that both have: no loss is a share of theirs."""
    begun = option(0, (0.0, 0.0))
    late = [option(number, (0.0, 0.0, *losses(0.1, number)[FIRST:])) for number in (1, 2, 3)]
    assert not {one.candidate for one in late} & contenders(begun, *late).undecided().keys()
