"""Verification of a cell with two groups: in one go, by whoever is last, and of whatever works.

Speeds are made by hand (:class:`timings.SteadyClock`) where searches run in this process.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, permutations
from pathlib import Path
from typing import Any

import pytest
from echo import ERROR, NOTHING, Echo, Reply
from searches import BOTH, THRIFTY, SearchFolder, SmallSearch, drive, open_run, without_scale
from timings import STEADY, SteadyClock

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.accelerators.base import GridSize, points
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell, Point
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.report.html.content.cells import cells_of
from pytest_diffaccel.search.decide.racing import Explored
from pytest_diffaccel.search.decide.select import Choice, Option
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.outcome import golden_entry
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.search_run import SearchSession
from pytest_diffaccel.search.verify.cell_end import end_group
from pytest_diffaccel.search.verify.fewer_steps import rival
from pytest_diffaccel.search.verify.verification import Verification, Winner, verify_ahead
from pytest_diffaccel.search.workbench import Workbench

POINTS = ((2, NOTHING), (10, NOTHING))
CELL = Cell("SD1.5", "DDIM", 20)
OPTIONS = (*BOTH, *THRIFTY)


#: Lines of a conftest.py: no speed-up is ever known.
VAGUE = """
from pytest_diffaccel.search.predict.cost_model import CostModel
CostModel.widening = 15.0
"""
#: The same: winners of one accelerator cannot be timed.
BROKEN_ECHO = """
from pytest_diffaccel.search.evaluate import evaluation
_timed = evaluation.timed

def breaks(generate, batch, seeds):
    if "Echo" in generate.params:
        raise RuntimeError("an accident in verification")
    return _timed(generate, batch, seeds)

evaluation.timed = breaks
"""


def keys(*accelerators: str) -> list[GoldenKey]:
    return [GoldenKey(Cell("SD1.5", "DDIM", 20), name, target) for name in accelerators for target in TARGETS]


class Finished:
    """A finished search of two groups, and what their winners' cases found."""

    def __init__(self, folder: SearchFolder) -> None:
        self.folder = folder
        run = open_run(*OPTIONS, methods=[Echo(POINTS), Reply(POINTS)])
        self.search_prompts = [prompt for batch in run.bench.batches(CELL, "search") for prompt in batch.prompts]
        self.first, last = drive(run)
        assert last.of_cell is not None
        self.of_cell = last.of_cell
        #: Of all runs that were timed beside candidates.
        self.timed_prompts: set[str] = set()

    def winners(self) -> list[Measurement]:
        rows = self.folder.query("SELECT record FROM diffaccel_measurements WHERE purpose = 'winner'")
        return [Measurement.from_json(json.loads(record)) for (record,) in rows]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, everything_imported: None) -> Finished:
    """Done once; nobody changes it."""
    folder = SearchFolder(tmp_path_factory.mktemp("both"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.path)
        without_scale(patch)
        SteadyClock(patch)
        prompts: set[str] = set()

        def noting(generate: Generate, batch: Sequence[str], seeds: Sequence[int]) -> Any:
            prompts.update(batch)
            return timed(generate, batch, seeds)

        patch.setattr("pytest_diffaccel.search.evaluate.evaluation.timed", noting)
        finished = Finished(folder)
    finished.timed_prompts = prompts
    return finished


@pytest.fixture
def search(steady_search: SmallSearch, both: Finished) -> SmallSearch:
    """A folder with a copy of it, less golden, to run pytest in."""
    shutil.copytree(both.folder.path / ".diffaccel", steady_search.path / ".diffaccel")
    steady_search.register(*POINTS, replies=POINTS)
    return steady_search


def forget(search: SmallSearch, accelerator: str) -> None:
    """As if one group had not been searched."""
    search.execute(f"DELETE FROM diffaccel_measurements WHERE accelerator = '{accelerator}'")
    search.execute(f"DELETE FROM diffaccel_decisions WHERE accelerator = '{accelerator}'")


def logged(search: SmallSearch) -> list[dict[str, Any]]:
    """Lines of --diffaccel-log."""
    return [json.loads(line) for line in (search.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]


# --- together --------------------------------------------------------------------------------------------------


def test_golden_entries_of_all_groups_come_with_the_last_ones_case(both: Finished) -> None:
    assert both.first.of_cell is None
    assert {chosen.key.target for chosen in both.first.provisional} == set(TARGETS)
    assert [decided.key for decided in both.of_cell.decided] == keys("Echo", "Reply")
    assert both.of_cell.undecided == ()


def test_winners_of_all_groups_are_timed_in_shared_blocks(both: Finished) -> None:
    winners = both.winners()
    assert {winner.candidate.accelerator for winner in winners} == {"Echo", "Reply"}
    baselines = {winner.candidate.key: [block.baseline for block in winner.blocks] for winner in winners}
    assert all(len(own) >= 2 and len(set(own)) == len(own) for own in baselines.values())
    # Chosen at once, and few enough for one block: all have the same unaccelerated runs.
    assert len({tuple(own) for own in baselines.values()}) == 1
    times = Counter(block.started_at for winner in winners for block in winner.blocks)
    assert set(times.values()) == {len(winners)}


def test_winners_are_timed_on_pictures_that_chose_nobody(both: Finished) -> None:
    assert both.timed_prompts == set(both.of_cell.prompts)
    assert not both.timed_prompts & set(both.search_prompts)
    for winner in both.winners():
        assert len(winner.quality.lpips_per_sample) == len(both.of_cell.prompts)
        assert winner.speedup.low <= winner.speedup.value <= winner.speedup.high
        assert all(len(run.kinds) == CELL.steps for block in winner.blocks for run in block.runs)


def test_the_recorded_speed_ups_are_true(both: Finished) -> None:
    """20 steps and as much as one outside them; an echo takes a twentieth of a step, a reply a tenth."""
    for text, part in (("Echo", 0.05), ("Reply", 0.1)):
        for decided in both.of_cell.decided:
            if decided.key.accelerator == text:
                full = 20 // int(decided.entry.params[text][f"{text.lower()}_interval"])
                true = 21 / (1 + full + (20 - full) * part)
                assert decided.entry.speedup == pytest.approx(true, rel=0.03)
                assert decided.entry.speedup_ci95 is not None
                assert decided.entry.speedup_ci95[0] <= true <= decided.entry.speedup_ci95[1]


def test_the_first_group_shows_its_winners_before_they_are_verified(search: SmallSearch) -> None:
    result = search.race(*OPTIONS, "-v")
    text = result.stdout.str()
    result.stdout.fnmatch_lines(["diffaccel: SD1.5-DDIM-20 Echo, to be verified: 1.2x, * by *_interval=*"])
    assert text.index("20 Echo, to be verified") < text.index("golden: ")
    # Those of the last one come with the verified winners of all.
    assert "Reply, to be verified" not in text
    result.stdout.fnmatch_lines(["golden: *: 14 new"])
    assert list(read_golden(search.golden)) == keys("Echo", "Reply")
    log = (search.path / ".diffaccel" / "logs" / "SD1.5-DDIM-20.log").read_text(encoding="utf-8")
    assert re.search(r"winners of Echo chosen in ", log)
    assert re.search(r"winners of Reply chosen, the cell's winners verified in ", log)


@pytest.mark.parametrize("name", ["Echo", "Reply"])
def test_a_session_with_one_groups_cases_records_that_group(search: SmallSearch, name: str) -> None:
    search.race(*OPTIONS, "-k", name).stdout.fnmatch_lines(["golden: *: 7 new"])
    assert list(read_golden(search.golden)) == keys(name)


@pytest.mark.slow
def test_two_processes_record_each_key_once(search: SmallSearch) -> None:
    """Each decides a group; whoever is last verifies both, whose winners are not measured yet."""
    search.execute("DELETE FROM diffaccel_measurements WHERE purpose = 'winner'")
    search.add_to_conftest(STEADY)
    result = search.race_apart(*OPTIONS, "-n", "2", "--diffaccel-log", "log.jsonl")
    result.stdout.fnmatch_lines(["golden: *: 14 new"])
    cases = [line for line in logged(search) if line["case"] in ("SD1.5-DDIM-20-Echo", "SD1.5-DDIM-20-Reply")]
    assert len({line["worker"] for line in cases}) == 2
    assert [line["outcome"] for line in cases] == ["passed", "passed"]
    assert sorted("winners" in line for line in cases) == [False, True]
    assert list(read_golden(search.golden)) == keys("Echo", "Reply")
    stored = Counter(key for key, purpose, _ in search.stored() if purpose == "winner")
    assert set(stored.values()) == {1}


@pytest.mark.slow
def test_workers_calibrate_together(search: SmallSearch) -> None:
    """What one of them does not know well enough after all rounds that there is time for, no other times again."""
    for name in ("Echo", "Reply"):
        forget(search, name)
    search.execute("DELETE FROM diffaccel_calibration")
    search.add_to_conftest(STEADY + VAGUE)
    search.race_apart(*OPTIONS, "-n", "2").stdout.fnmatch_lines(["golden: *"])
    (first,) = search.query("SELECT min(created_at) FROM diffaccel_measurements WHERE accelerator != ''")
    rounds = search.query("SELECT created_at FROM diffaccel_calibration")
    assert 4 <= sum(made < first for made in rounds) <= 5


def test_a_block_of_many_winners_may_take_as_much_longer_than_a_case(
    search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of their cases made one accelerated run; a block makes one of every winner, and an unaccelerated one."""
    limits: list[float | None] = []

    @contextmanager
    def noting(seconds: float | None) -> Iterator[None]:
        limits.append(seconds)
        yield

    monkeypatch.setattr("pytest_diffaccel.search.evaluate.evaluation.time_limit", noting)
    search.execute("DELETE FROM diffaccel_measurements WHERE purpose = 'winner'")
    search.race(*OPTIONS, "--case-timeout", "100", "-k", "Echo and test_winners")
    assert limits
    assert set(limits) == {300.0}  # two winners and the unaccelerated run


# --- who verifies ----------------------------------------------------------------------------------------------

NAMES = ("DeepCache", "DeepCache and ToMe", "DeepCache, T-Gate, and ToMe")


def test_the_last_of_a_cells_groups_is_told_what_all_of_them_left(search: SmallSearch) -> None:
    run = open_run(*OPTIONS, methods=[Echo(POINTS), Reply(POINTS)])
    left = dict(zip(NAMES, (0, 7, 2), strict=True))
    for place, order in enumerate(permutations(NAMES)):
        told = [end_group(run.bench, CELL, name, left[name], f"session-{place}", NAMES) for name in order]
        assert told == [None, None, left]
    run.close()


def test_what_an_earlier_session_decided_does_not_count(search: SmallSearch) -> None:
    """It may have been stopped before its last group, and other groups may have been in it."""
    run = open_run(*OPTIONS, methods=[Echo(POINTS), Reply(POINTS)])
    first, second, third = NAMES
    assert end_group(run.bench, CELL, first, 0, "one", NAMES) is None
    assert end_group(run.bench, CELL, second, 0, "one", NAMES) is None
    assert end_group(run.bench, CELL, third, 3, "two", NAMES) is None
    assert end_group(run.bench, Cell("SD1.5", "DDIM", 25), third, 3, "one", NAMES) is None
    assert end_group(run.bench, CELL, third, 4, "two", [third]) == {third: 4}
    assert end_group(run.bench, CELL, third, 5, "one", NAMES) == {first: 0, second: 0, third: 5}
    run.close()


# --- where one group fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failing", "working"), [("Echo", "Reply"), ("Reply", "Echo")])
def test_a_group_that_fails_entirely_leaves_the_others_their_winners(
    search: SmallSearch, failing: str, working: str
) -> None:
    forget(search, failing)
    bad = ((4, ERROR), (8, ERROR))
    search.register(*(bad if failing == "Echo" else POINTS), replies=bad if failing == "Reply" else POINTS)
    result = search.race(*OPTIONS, "--diffaccel-log", "log.jsonl")
    result.stdout.fnmatch_lines(
        [f"diffaccel: SD1.5-DDIM-20 {failing}: *all that was tried failed (2 candidates)*accident*", "golden: *: 7 new"]
    )
    assert list(read_golden(search.golden)) == keys(working)
    outcomes = {line["case"]: line["outcome"] for line in logged(search)}
    assert outcomes[f"SD1.5-DDIM-20-{failing}"] == "failed"
    assert outcomes[f"SD1.5-DDIM-20-{working}"] == "passed"
    assert {kind for _, kind, _ in search.failures()} == {"error"}


@pytest.mark.parametrize(("failing", "working"), [("Echo", "Reply"), ("Reply", "Echo")])
def test_a_winner_that_fails_in_verification_leaves_the_others_theirs(
    search: SmallSearch, monkeypatch: pytest.MonkeyPatch, failing: str, working: str
) -> None:
    """What fails is found by halves, told and left out; all that works is recorded."""
    search.execute("DELETE FROM diffaccel_measurements WHERE purpose = 'winner'")

    def breaks(generate: Generate, batch: Sequence[str], seeds: Sequence[int]) -> Any:
        if failing in generate.params:
            raise RuntimeError("an accident in verification")
        return timed(generate, batch, seeds)

    monkeypatch.setattr("pytest_diffaccel.search.evaluate.evaluation.timed", breaks)
    result = search.race(*OPTIONS)
    result.stdout.fnmatch_lines(["diffaccel: SD1.5-DDIM-20 *: *an accident in verification", "golden: *: 7 new"])
    assert list(read_golden(search.golden)) == keys(working)
    assert {(failing in candidate, kind) for candidate, kind, _ in search.failures()} == {(True, "error")}


@pytest.mark.slow
def test_a_worker_tells_of_a_winner_that_fails_ahead_of_the_cells_end(search: SmallSearch) -> None:
    search.execute("DELETE FROM diffaccel_measurements WHERE purpose = 'winner'")
    search.add_to_conftest(STEADY + BROKEN_ECHO)
    result = search.race_apart(*OPTIONS, "-n", "2", "--diffaccel-log", "log.jsonl")
    result.stdout.fnmatch_lines(["golden: *: 7 new"])
    assert list(read_golden(search.golden)) == keys("Reply")
    (echo,) = [line for line in logged(search) if line["case"] == "SD1.5-DDIM-20-Echo"]
    assert "an accident in verification" in str(echo["failed"])


def test_winners_are_verified_ahead_where_a_worker_would_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything_imported: None
) -> None:
    """Two workers, three cells: of the first, all winners together; of the last two, the first group's ahead."""
    folder = SearchFolder(tmp_path)
    monkeypatch.chdir(folder.path)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)
    more = ("--steps", "25", "--steps", "50")
    run = open_run(*OPTIONS, *more, methods=[Echo(POINTS), Reply(POINTS)], session=SearchSession(workers=2))
    ahead = []

    def noting(bench: Workbench, cell: Cell, accelerator: str) -> Verification:
        ahead.append((cell.steps, accelerator))
        return verify_ahead(bench, cell, accelerator)

    monkeypatch.setattr("pytest_diffaccel.search.verify.verification.verify_ahead", noting)
    drive(run)
    assert ahead == [(25, "Echo"), (50, "Echo")]
    rows = folder.query("SELECT DISTINCT steps, accelerator FROM diffaccel_measurements WHERE purpose = 'winner'")
    assert sorted(rows) == [(steps, name) for steps in (20, 25, 50) for name in ("Echo", "Reply")]


def test_winners_with_a_rival_in_common_show_the_same_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything_imported: None
) -> None:
    """Also where it was drawn further for a later one."""
    monkeypatch.chdir(SearchFolder(tmp_path).path)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)
    samples = count(1)

    def drawing(*asked: Any) -> Measurement | None:
        made = rival(*asked)
        return made and replace(made, sampling=replace(made.sampling, num_samples=next(samples)))

    monkeypatch.setattr("pytest_diffaccel.search.verify.verification.rival", drawing)
    last = drive(open_run(*OPTIONS, methods=[Echo(POINTS), Reply(POINTS)]))[-1]
    assert last.of_cell is not None
    shown = [decided.entry.fewer_steps for decided in last.of_cell.decided if decided.entry.fewer_steps]
    by_steps = {
        steps: {one.num_samples for one in shown if one.steps == steps} for steps in {one.steps for one in shown}
    }
    assert len(shown) > len(by_steps)
    assert all(len(counts) == 1 for counts in by_steps.values())


# --- what is not known well enough -----------------------------------------------------------------------------


def test_undecided_targets_are_shown_and_never_recorded(search: SmallSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CostModel, "widening", 15.0)
    result = search.race(*OPTIONS)
    golden = read_golden(search.golden)
    said = re.search(
        r"undecided: (\d+) targets?; (?:a winner that golden has stays|winners that golden has stay)",
        result.stdout.str(),
    )
    assert said
    undecided = [key for key in keys("Echo", "Reply") if key not in golden]
    assert len(undecided) == int(said[1]) > 0
    for key in undecided:
        pattern = (
            rf"  SD1.5 DDIM 20 steps, {key.accelerator}, (?:[\d.]+x, )*{key.target:g}x(?:, [\d.]+x)*: "
            r"[\d.]+x \[([\d.]+), ([\d.]+)\], LPIPS [\d.]+, \w+"
        )
        shown = re.search(pattern, result.stdout.str())
        assert shown
        assert float(shown[1]) < key.target < float(shown[2])
    assert all(entry.status == "met" for entry in golden.values())
    assert "unattainable" not in result.stdout.str()


class Sparse(Echo):
    """Its coarse grid leaves out all that is fast."""

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        intervals = (2,) if size.startswith("coarse") else (2, 10)
        return points(self.param_names, [(interval, NOTHING) for interval in intervals])


@pytest.mark.parametrize("size", ["coarse", "full"])
def test_what_the_coarse_grid_leaves_out_is_undecided(steady_search: SmallSearch, size: str) -> None:
    """No target is out of reach as long as points that were left out may reach it."""
    (found,) = drive(open_run("--grid", size, methods=[Sparse(())]))
    assert found.of_cell is not None
    met = {one.key.target for one in found.of_cell.decided if one.entry.status == "met"}
    undecided = {one.key.target for one in found.of_cell.undecided}
    if size == "coarse":
        assert 1.5 in met
        assert {3.0, 4.0} <= undecided
        assert not any(one.entry.status == "unattainable" for one in found.of_cell.decided)
    else:
        assert {1.5, 3.0} <= met
        assert not undecided


@pytest.mark.parametrize("looks", [True, False])
def test_a_target_that_proves_to_be_missed_is_looked_for_again(
    steady_search: SmallSearch, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """A race may end as if a target were reached, by speed-ups that verification shows to be others. What nothing
    evaluated reaches is not out of reach as long as something else promises to reach it, and the next session goes on.
    """
    monkeypatch.setattr(GroupSearch, "race", lambda *_: Explored(1, 0))
    if not looks:
        monkeypatch.setattr(GroupSearch, "look_further", lambda *_: Explored(0, 0))
    run = open_run(methods=[Sparse(())])
    run.measure(run.candidates[0])
    found = run.find_winners(CELL, "Echo")
    group = GroupSearch(run.bench, CELL, "Echo")
    assert (group.is_done, bool(group.targets_left)) == (looks, not looks)
    run.close()
    assert found.of_cell is not None
    met = {one.key.target for one in found.of_cell.decided if one.entry.status == "met"}
    undecided = {one.key.target for one in found.of_cell.undecided}
    assert (3.0 in met, 3.0 in undecided) == (looks, not looks)
    assert 1.5 in met


def test_a_finished_group_verifies_nothing_more(steady_search: SmallSearch) -> None:
    """What is found out later, about other groups say, may make another one the best: its search has ended."""
    (before,) = drive(open_run(methods=[Echo(POINTS)]))
    assert before.of_cell is not None
    with Store.open(steady_search.store) as store:
        known = [
            one.measurement for one in store.contents().measurements if one.measurement.sampling.purpose == "search"
        ]
        slower, faster = sorted(known, key=lambda one: one.speedup.value)
        new = Candidate(CELL, "Echo", {"Echo": {**faster.candidate.params["Echo"], "echo_interval": 11}})
        store.save(replace(faster, candidate=new, quality=slower.quality))
    verified = [row for row in steady_search.stored() if row[1] == "winner"]
    (after,) = drive(open_run(methods=[Echo((*POINTS, (11, NOTHING)))]))
    assert after.of_cell is not None
    assert [row for row in steady_search.stored() if row[1] == "winner"] == verified
    found = [{one.key: one.entry.params for one in of_cell.decided} for of_cell in (before.of_cell, after.of_cell)]
    assert found[0] == found[1]


@pytest.mark.parametrize("gone", [0, -1])
def test_a_winner_whose_verification_is_gone_is_verified_again(steady_search: SmallSearch, gone: int) -> None:
    """It has won: neither is a target left open, nor does another winner take it."""
    (before,) = drive(open_run(methods=[Echo(POINTS)]))
    lost = sorted({key for key, purpose, _ in steady_search.stored() if purpose == "winner"})[gone]
    steady_search.execute(f"DELETE FROM diffaccel_measurements WHERE purpose = 'winner' AND candidate_key = '{lost}'")
    (after,) = drive(open_run(methods=[Echo(POINTS)]))
    assert before.of_cell is not None
    assert after.of_cell is not None
    found = [{one.key: one.entry.params for one in of_cell.decided} for of_cell in (before.of_cell, after.of_cell)]
    assert found[0] == found[1]
    assert len({str(params) for params in found[0].values()}) == 2


def test_golden_refuses_what_is_undecided(both: Finished) -> None:
    one = both.winners()[0]
    environment = both.of_cell.environment
    option = Option(one.candidate, Interval(3.0, 2.0, 4.0), one.quality.lpips_per_sample)
    winner = Winner(Choice(3.0, option, "undecided"), one, None)
    with pytest.raises(ValueError, match="3x is undecided"):
        golden_entry(winner, environment)


def test_what_is_not_timed_is_recorded_as_predicted(both: Finished) -> None:
    """A candidate that only comes nearest to a target keeps the search's figures, and is not verified."""
    timed_one = both.winners()[0]
    untimed = replace(timed_one, blocks=())
    environment = both.of_cell.environment
    option = Option(timed_one.candidate, timed_one.speedup, timed_one.quality.lpips_per_sample)
    entries = [
        golden_entry(Winner(Choice(4.0, option, "speed"), measurement, None), environment)
        for measurement in (timed_one, untimed)
    ]
    assert [entry.basis for entry in entries] == ["measured", "predicted"]
    assert {entry.status for entry in entries} == {"unattainable"}


def test_an_undecided_target_leaves_the_golden_record_alone(
    search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.race(*OPTIONS)
    before = read_golden(search.golden)
    assert list(before) == keys("Echo", "Reply")
    monkeypatch.setattr(CostModel, "widening", 15.0)
    result = search.race(*OPTIONS, "--update-golden")
    after = read_golden(search.golden)
    assert list(after) == list(before)
    lines = re.findall(r"^  SD1.5 DDIM 20 steps, (\w+), ([\d.x, ]+): ", result.stdout.str(), re.MULTILINE)
    undecided = [(name, target) for name, targets in lines for target in re.findall(r"([\d.]+)x", targets)]
    assert undecided
    for name, target in undecided:
        key = GoldenKey(Cell("SD1.5", "DDIM", 20), name, float(target))
        assert after[key] == before[key]
        assert after[key].status == "met"


def test_a_report_after_a_search_has_no_pending_changes(steady_search: SmallSearch) -> None:
    """Also of targets that nothing reaches, whose records have no rival."""
    points = ((2, NOTHING), (3, NOTHING))
    steady_search.register(*points)
    steady_search.race(*THRIFTY)
    golden = read_golden(steady_search.golden)
    assert {entry.status for entry in golden.values()} == {"met", "unattainable"}
    with Store.open(steady_search.store) as store:
        (record,) = cells_of(store.contents())
    assert record.entries == golden
    assert {key: record.winners["Echo"].speedups.keys() for key in record.winners} == {"Echo": record.searched.keys()}


# --- what the time goes to -------------------------------------------------------------------------------------


def test_phases_are_plain_words_and_take_no_longer_than_their_cases(search: SmallSearch) -> None:
    forget(search, "Reply")
    search.execute("DELETE FROM diffaccel_calibration")
    search.race(*OPTIONS, "--diffaccel-log", "log.jsonl")
    spent: Counter[str] = Counter()
    for line in logged(search):
        own = line.get("phases_s", {})
        # What a skipped case spent is told by the next one that is not.
        spent.update(own)
        assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", name) and seconds > 0 for name, seconds in own.items())
    assert {"pictures", "scoring", "verification"} <= spent.keys()
    assert 0 < sum(spent.values()) <= sum(line["duration_s"] for line in logged(search))
