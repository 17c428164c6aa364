"""The live line: how many cases are done, and about how long the others take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from entries import ENVIRONMENT
from found import PARAMS, chosen, measured

from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.deciding import BY_LPIPS, QualityRule
from pytest_diffaccel.measure.measurement import Interval, MetricFigures
from pytest_diffaccel.report.progress import EndedCase, Progress
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.report.time_left import Lanes, TimeLeft
from pytest_diffaccel.report.winners import calibration_text, provisional_text, slowdown_text
from pytest_diffaccel.search.effort import Effort, SearchCase, winners
from pytest_diffaccel.search.news import Calibration, News
from pytest_diffaccel.search.results import CellWinners, Skipped, Winners

CELL = Cell("SD1.5", "DDIM", 20)
RESULT = measured(Candidate(CELL, "DeepCache", PARAMS), 1.6, 0.1234)
EFFORT = Effort(batches=2, first_batches=1, blocks=None, rival_batches=2)
#: An unaccelerated run of README's start, seconds on 2 CPU cores.
RUN_S = 1.43


@dataclass(frozen=True)
class Group:
    """A group of README's start as it went.

    Attributes:
        skipped: candidates that were not evaluated by their cases.
        cases_s: what those took that were.
        winners_s: what the winners' case took, less the cell's verification.
        explored: candidates that it evaluated.
        winners: how many distinct ones it found.
    """

    skipped: int
    cases_s: tuple[float, ...]
    winners_s: float
    explored: int
    winners: int


#: README's start: SD1.5 DDIM 20, coarse grid, 8 samples in batches of 4, embedded pipelines on 2 CPU cores.
MEASURED = {
    "DeepCache": Group(6, (3.6, 0.4), 4.1, 4, 3),
    "T-Gate": Group(6, (1.0, 0.9, 1.1, 1.0), 8.0, 5, 2),
    "ToMe": Group(2, (1.5, 1.4), 0.0, 0, 0),
    "DeepCache and ToMe": Group(2, (0.9, 0.7, 0.5, 0.5), 5.7, 2, 3),
    "DeepCache and T-Gate": Group(7, (0.6, 0.7, 0.6, 0.4, 0.4), 9.3, 7, 4),
    "DeepCache, T-Gate, and ToMe": Group(10, (0.7, 0.4), 12.4, 10, 4),
}
#: Winners in shared blocks, short runs, fewer steps.
VERIFIED_S = 37.6 + 9.6 + 14.2
#: Before the first candidate of an environment: the scale of losses and the calibration; once per process: loading.
SCALE_S, CALIBRATED_S, LOADED_S, IMPORTED_S = 6.3, 9.6, 4.3, 5.0
#: By cell, how many times as long as the README's start it takes in truth.
Cells = Mapping[Cell, float]
Ended = tuple[str, CaseResult, float]


def cases_of(cells: Cells) -> dict[str, SearchCase]:
    """The cases of searches as measured."""
    cases = {}
    for cell in cells:
        for name, group in MEASURED.items():
            size = group.skipped + len(group.cases_s)
            for number in range(size + 1):
                case = SearchCase(cell, name, is_winners=number == size, in_group=size)
                cases[f"{cell}-{name}-{number}"] = case
    return cases


def calibrated(run_s: float = RUN_S, steps: int = 20) -> Calibration:
    return Calibration(4, CALIBRATED_S, 0.041, run_s, steps, 0.55, 1.0)


def told(calibration: Calibration) -> CaseResult:
    """A result of a case of which nothing else is known, that tells of SD1.5's calibration."""
    return replace(RESULT, news=News(calibrated={"SD1.5": calibration}))


def candidates_of(cell: Cell, name: str, took: float, calibration: Calibration | None) -> Iterator[Ended]:
    """A group's candidates: first those that are skipped, whose phases ride on the next result."""
    group = MEASURED[name]
    candidate = Candidate(cell, name, PARAMS)
    waiting = {"loading": LOADED_S, "scale of losses": SCALE_S, "short runs": CALIBRATED_S} if calibration else {}
    for number in range(group.skipped):
        imported_s = IMPORTED_S + sum(waiting.values()) if calibration and not number else 0.0
        yield f"{cell}-{name}-{number}", Skipped(candidate, "slow"), imported_s
    for number, seconds in enumerate(group.cases_s, group.skipped):
        phases = {"pictures": took * seconds, **waiting}
        news = News(phases, {cell.pipe: calibration} if calibration else {})
        found = measured(candidate, RUN_S / seconds if seconds < 3 else 3.0, 0.1, news=news)
        yield f"{cell}-{name}-{number}", found, took * seconds
        waiting, calibration = {}, None


def winners_of(cell: Cell, name: str, took: float, verified_s: float | None) -> Ended:
    """A group's winners' case, which verifies the cell if that takes any time."""
    group = MEASURED[name]
    phases = {"pictures": took * group.winners_s, "short runs": took * (verified_s or 0.0)}
    result = Winners(
        cell,
        name,
        tuple(chosen(cell, name, 1.2, {"a": {"b": number}}) for number in range(group.winners)),
        group.explored,
        of_cell=None if verified_s is None else CellWinners((), (), (), ENVIRONMENT, "", ()),
        news=News(phases),
    )
    number = group.skipped + len(group.cases_s)
    return f"{cell}-{name}-{number}", result, sum(phases.values())


def search(cells: Cells, calibrations: Mapping[str, Calibration]) -> Iterator[Ended]:
    """All cases of a session's one process, as they end: name, result, and seconds."""
    seen: set[str] = set()
    for cell, took in cells.items():
        for name in MEASURED:
            calibration = None if cell.pipe in seen else calibrations[cell.pipe]
            last = name == list(MEASURED)[-1]
            yield from candidates_of(cell, name, took, calibration)
            seen.add(cell.pipe)
            yield winners_of(cell, name, took, VERIFIED_S if last else None)


@dataclass
class Replayed:
    """What the estimate was as a search went on.

    Attributes:
        told: seconds left when the first pipe was calibrated, and in truth.
        estimates: seconds left after each case from there on.
        paces: what a slower machine was said to be.
        progress: the live line, at its end.
    """

    told: tuple[float, float]
    estimates: list[float]
    paces: list[float]
    progress: Progress


def replay(cells: Cells, calibrations: Mapping[str, Calibration] | None = None) -> Replayed:
    """Show a progress all cases of a search by one process."""
    cases = cases_of(cells)
    left = TimeLeft(cases, EFFORT, Lanes(), embedded=True)
    progress = Progress(len(cases), left)
    calibrations = calibrations or {cell.pipe: calibrated() for cell in cells}
    ended = list(search(cells, calibrations))
    assert [name for name, _, _ in ended] == list(cases)
    truth = sum(seconds for _, _, seconds in ended)
    estimates, paces, told = [], [], None
    for name, result, seconds in ended:
        truth -= seconds
        progress.case_ended(EndedCase(name, "passed", seconds, ""), result)
        estimate, pace = left.seconds(), progress.slowdown()
        paces += [] if pace is None else [pace]
        if estimate is None:
            continue
        told = told or (estimate, truth)
        estimates.append(estimate)
    assert told is not None
    return Replayed(told, estimates, paces, progress)


def never_doubles(estimates: list[float]) -> bool:
    return all(later <= 2 * earlier for earlier, later in pairwise(estimates))


def test_what_is_told_after_calibration_is_what_it_takes() -> None:
    replayed = replay({CELL: 1.0})
    told, truth = replayed.told
    assert told == pytest.approx(truth, rel=0.3)
    assert max(replayed.estimates) <= 1.3 * told
    assert never_doubles(replayed.estimates)
    assert replayed.estimates[-2] == pytest.approx(VERIFIED_S + 12.4, rel=0.3)
    assert not replayed.paces
    # Winners are shown next, which may be others than those that looked best on the way.
    assert replayed.progress.line().endswith("58/58, 0 s left")


def test_nothing_is_told_before_the_calibration() -> None:
    left = TimeLeft(cases_of({CELL: 1.0}), EFFORT, Lanes(), embedded=True)
    progress = Progress(58, left)
    progress.case_ended(EndedCase("SD1.5-DDIM-20-DeepCache-0", "skipped", 15.6, ""), RESULT)
    assert progress.left() is None
    assert progress.line().startswith("SD1.5-DDIM-20 DeepCache 1/58; to be verified")


def test_what_is_too_bad_to_win_is_not_told_as_found() -> None:
    by_psnr = QualityRule("psnr", 20.0, higher_is_better=True)
    for quality, values, said in (
        (BY_LPIPS.rule, {4.5: 0.26, 1.3: 0.012}, "LPIPS 0.012 at 1.2x"),
        (by_psnr, {4.5: 19.9, 1.3: 30.0}, "psnr 30 at 1.2x"),
    ):
        progress = Progress(58, TimeLeft(cases_of({CELL: 1.0}), EFFORT, Lanes(), embedded=True), quality=quality)
        for speedup, value in values.items():
            found = measured(Candidate(CELL, "DeepCache", PARAMS), speedup, value)
            figures = replace(found.figures, metrics={"psnr": MetricFigures(value)})
            progress.case_ended(EndedCase(str(speedup), "passed", 1.0, ""), replace(found, figures=figures))
        assert progress.line().endswith(f"; to be verified: {said}")


def test_the_line_tells_of_what_groups_were_told_to_have_found() -> None:
    """Their winners' cases evaluate further candidates, which have no cases of their own."""
    progress = Progress(58, TimeLeft(cases_of({CELL: 1.0}), EFFORT, Lanes(), embedded=True))
    progress.case_ended(EndedCase("one", "passed", 1.0, ""), measured(Candidate(CELL, "DeepCache", PARAMS), 1.6, 0.012))
    found = replace(chosen(CELL, "DeepCache", 1.2, PARAMS), speedup=Interval(1.3, 1.2, 1.4), lpips=0.004)
    result = Winners(CELL, "DeepCache", (found,))
    assert provisional_text(result).startswith("SD1.5-DDIM-20 DeepCache, to be verified: 1.2x")
    progress.case_ended(EndedCase("winners", "passed", 1.0, ""), result)
    assert progress.line().endswith("; to be verified: LPIPS 0.004 at 1.2x, 0.012 at 1.5x")


def test_the_line_says_when_winners_are_chosen_and_verified() -> None:
    cases = cases_of({CELL: 1.0})
    winners = {name: case for name, case in cases.items() if case.is_winners}
    progress = Progress(len(cases), TimeLeft(cases, EFFORT, Lanes(), embedded=True), winners)
    said = []
    for name, result, seconds in search({CELL: 1.0}, {CELL.pipe: calibrated()}):
        if progress.case_began(name):
            assert cases[name].is_winners
            said.append(progress.line().partition("; ")[2].partition("; to be")[0])
        progress.case_ended(EndedCase(name, "passed", seconds, ""), result)
        assert "choosing" not in progress.line()
    found = sum(group.winners for name, group in MEASURED.items() if name != list(MEASURED)[-1])
    *first, last = (f"choosing winners of {name}" for name in MEASURED)
    assert said == [*first, f"{last}, then verifying them and {found} others"]


def test_the_line_says_what_goes_on_in_a_long_case_and_how_long_that_still_takes() -> None:
    cases = cases_of({CELL: 1.0})
    winners = {name: case for name, case in cases.items() if case.is_winners}
    now = [0.0]
    left = TimeLeft(cases, EFFORT, Lanes(), embedded=True)
    progress = Progress(len(cases), left, winners, clock=lambda: now[0])
    assert progress.works_on("short runs")
    assert progress.line() == "0/58; timing short runs"
    assert not progress.works_on("pictures")  # of a candidate, whose case is soon over
    told = 0
    for name, result, seconds in search({CELL: 1.0}, {CELL.pipe: calibrated()}):
        if progress.case_began(name):
            assert progress.works_on("pictures")
            before = progress.left()
            assert f"{before} left; choosing winners of" in progress.line()
            assert " (making pictures); to be verified" in progress.line()
            now[0] += 0.5 * (left.seconds() or 0.0)
            assert progress.left() != before
            now[0] += 2 * (left.seconds() or 0.0)
            assert progress.left() is None
            told += 1
        progress.case_ended(EndedCase(name, "passed", seconds, ""), result)
        assert "making" not in progress.line()
    assert told == len(winners)


def test_workers_choose_winners_side_by_side() -> None:
    cases = {name: case for name, case in cases_of({CELL: 1.0}).items() if case.is_winners}
    progress = Progress(len(cases), TimeLeft(cases, EFFORT, Lanes(2), embedded=True), cases)
    for name in list(cases)[:2]:
        assert progress.case_began(name)
    assert progress.line() == "SD1.5-DDIM-20 DeepCache 0/6; choosing winners of DeepCache and of T-Gate"


@pytest.mark.parametrize("slower", [1.8, 3.0])
def test_a_machine_that_turns_out_slower_is_told_once(slower: float) -> None:
    replayed = replay({CELL: slower})
    assert never_doubles(replayed.estimates)
    (pace,) = replayed.paces
    assert 1.5 < pace < 1.1 * slower
    assert replayed.estimates[-2] == pytest.approx(slower * (VERIFIED_S + 12.4), rel=0.4)
    assert slowdown_text(1.84, "12 min") == (
        "the machine is slower than when it was calibrated: work takes 1.8 times as long; about 12 min left"
    )


def test_cells_of_other_steps_and_pipes_are_estimated_from_the_one_that_is_calibrated() -> None:
    """A cell of 50 steps, and one of a pipe that the weights say takes 1.9 times as long; in truth 2.5 times."""
    cells = {CELL: 1.0, Cell("SD1.5", "UniPC", 50): 2.5, Cell("SD2.1", "DDIM", 20): 2.5}
    replayed = replay(cells, {"SD1.5": calibrated(), "SD2.1": calibrated(2.5 * RUN_S)})
    told, truth = replayed.told
    assert told == pytest.approx(truth, rel=0.3)
    assert never_doubles(replayed.estimates)
    assert replayed.estimates[-2] == pytest.approx(2.5 * (VERIFIED_S + 12.4), rel=0.3)
    assert not replayed.paces


def test_a_calibration_that_another_worker_tells_of_again_changes_nothing() -> None:
    left = TimeLeft(cases_of({CELL: 1.0}), EFFORT, Lanes(), embedded=True)
    left.case_ended("", told(calibrated()), duration_s=1.0)
    before = left.seconds()
    left.case_ended("", told(calibrated(9.9)), duration_s=1.0)
    assert left.seconds() == before


def test_stored_cases_take_no_time_and_say_nothing_of_it() -> None:
    """Three candidates of which one is stored: as many others are expected as without."""
    cases = {str(number): SearchCase(CELL, "ToMe", is_winners=number == 3, in_group=3) for number in range(4)}
    left = TimeLeft(cases, EFFORT, Lanes(), embedded=True)
    left.case_ended("", told(calibrated()), duration_s=1.0)
    before = left.seconds()
    left.case_ended("0", replace(RESULT, stored=True), duration_s=0.1)
    after = left.seconds()
    assert before is not None
    assert after is not None
    assert before - after == pytest.approx(0.55 * RUN_S)
    assert left.pace == 1.0


def test_an_exhaustive_search_learns_from_its_first_cases() -> None:
    """Ten candidates of 2 blocks: each takes as long as the others, whatever a run takes."""
    cases = {str(number): SearchCase(CELL, "ToMe", is_winners=False, in_group=10) for number in range(10)}
    effort = Effort(batches=2, first_batches=2, blocks=2, rival_batches=2)
    left = TimeLeft(cases, effort, Lanes(), embedded=True)
    assert left.seconds() is None
    first_s = effort.evaluation(1 / 1.6) + effort.batches  # the unaccelerated pictures, too
    for name, seconds in (("0", first_s), ("1", effort.evaluation(1 / 1.6))):
        left.case_ended(name, replace(RESULT, news=News({"loading": 9.0, "timing": seconds})), duration_s=60.0)
        assert left.seconds() == pytest.approx((9 - int(name)) * effort.evaluation())
    assert not left.is_calibrated


@pytest.mark.parametrize(("size", "metrics", "batches"), [(8, (), 1), (1, (), 8), (64, (), 1), (8, ("psnr",), 4)])
def test_rivals_are_reckoned_with_the_pictures_that_most_of_them_take(
    size: int, metrics: tuple[str, ...], batches: int
) -> None:
    """Eight show of most that they lose more than the winner; with other metrics than LPIPS all 32 are drawn."""
    settings: Any = SimpleNamespace(num_samples=32, batch_size=size, blocks=1, exhaustive=False, metrics=metrics)
    effort = Effort.of(settings)
    with_all = replace(effort, rival_batches=effort.batches)
    assert effort.rival_batches == batches
    assert with_all.verification(20) - effort.verification(20) == pytest.approx(9 * 0.45 * (effort.batches - batches))


def test_groups_go_on_side_by_side_and_each_worker_verifies_its_own() -> None:
    groups, verifications = [(CELL, 10.0), (CELL, 20.0), (CELL, 10.0)], {CELL: 30.0}
    assert Lanes(1, alone=False).seconds(groups, verifications) == 70.0
    assert Lanes(2, alone=False).seconds(groups, verifications) == 40.0
    assert Lanes(8, alone=False).seconds(groups, verifications) == 30.0
    assert Lanes(8, alone=True).seconds(groups, verifications) == 50.0
    assert Lanes(4, alone=False, divisible=True).seconds(groups, verifications) == 17.5


def test_one_of_several_workers_verifies_at_the_end_what_has_moved() -> None:
    groups, verifications = [(CELL, 10.0), (CELL, 20.0), (CELL, 10.0)], {CELL: 30.0}
    assert Lanes(1, alone=False).seconds(groups, verifications, again_s=15.0) == 70.0
    assert Lanes(2, alone=False).seconds(groups, verifications, again_s=15.0) == 55.0
    assert Lanes(2, alone=True).seconds(groups, verifications, again_s=15.0) == 50.0


def test_the_time_left_of_two_workers_holds_what_one_of_them_does_alone() -> None:
    """Before the last winners' case: beside its own group's winners it verifies what all others have moved."""
    cases = cases_of({CELL: 1.0})
    one, two = (TimeLeft(cases, EFFORT, Lanes(workers, alone=False), embedded=True) for workers in (1, 2))
    *ended, (_, last, _) = search({CELL: 1.0}, {"SD1.5": calibrated()})
    for name, result, seconds in ended:
        if isinstance(result, Winners):
            ahead = News({**result.news.phases_s, "verification": 10.0})
            result = replace(result, news=ahead)
        for left in (one, two):
            left.case_ended(name, result, duration_s=seconds)
    assert isinstance(last, Winners)
    verified = sum(group.winners for name, group in MEASURED.items() if name != last.accelerator)
    own = winners(len(MEASURED[last.accelerator].cases_s) + MEASURED[last.accelerator].skipped)
    alone, beside, pace = one.seconds(), two.seconds(), two.pace
    assert alone is not None
    assert beside is not None
    assert pace is not None
    assert beside - alone == pytest.approx(pace * EFFORT.again(verified + own) * RUN_S, rel=0.01)


def test_verifications_of_two_cells_go_on_at_once_unless_they_need_the_machine_alone() -> None:
    other = Cell("SDXL", "DDIM", 20)
    groups, verifications = [(CELL, 10.0), (other, 10.0)], {CELL: 30.0, other: 30.0}
    assert Lanes(2, alone=False).seconds(groups, verifications) == 40.0
    assert Lanes(2, alone=True).seconds(groups, verifications) == 70.0


def test_a_budget_bounds_what_is_left_but_for_the_verification() -> None:
    left = TimeLeft(cases_of({CELL: 1.0}), EFFORT, Lanes(), embedded=True, budget_s=80.0)
    left.case_ended("", told(calibrated()), duration_s=1.0)
    assert left.seconds() == 80.0
    name, result, _ = winners_of(CELL, "DeepCache", 1.0, None)
    left.case_ended(name, result, duration_s=70.0)
    assert left.seconds() == pytest.approx(VERIFIED_S, rel=0.3)


def test_what_a_worker_verifies_ahead_is_not_expected_again() -> None:
    left = TimeLeft(cases_of({CELL: 1.0}), EFFORT, Lanes(), embedded=True)
    left.case_ended("", told(calibrated()), duration_s=1.0)
    before, names = left.seconds(), list(MEASURED)
    for name in names[:-1]:
        case, result, _ = winners_of(CELL, name, 1.0, None)
        assert isinstance(result, Winners)
        phases = {**result.news.phases_s, "verification": VERIFIED_S / len(names)}
        result = replace(result, news=News(phases))
        left.case_ended(case, result, duration_s=20.0)
    after = left.seconds()
    assert before is not None
    assert after is not None
    assert after < before - 0.7 * VERIFIED_S
    assert left.pace == pytest.approx(1.0, abs=0.3)


def test_a_session_of_candidates_without_winners_verifies_nothing() -> None:
    cases = {name: case for name, case in cases_of({CELL: 1.0}).items() if not case.is_winners}
    left = TimeLeft(cases, EFFORT, Lanes(), embedded=True)
    left.case_ended("", told(calibrated()), duration_s=1.0)
    assert left.seconds() == pytest.approx(RUN_S * (2 + 0.55 * 47), rel=0.1)


def test_a_calibration_is_told_with_the_time_left() -> None:
    assert calibration_text("SD1.5", calibrated(), "3 min") == (
        "SD1.5: calibrated in 10 s; speed-ups are predicted to 4.1% or better; about 3 min left"
    )
    assert calibration_text("SD1.5", replace(calibrated(), rounds=0), None) == (
        "SD1.5: calibrated before; speed-ups are predicted to 4.1% or better"
    )
    assert "in 10 s; some speed-ups are open yet" in calibration_text(
        "SD1.5", replace(calibrated(), half_width_ratio=28.9), None
    )
