"""How a session begins and ends: cases in their order, places tried first, and an exit code that tells what is missing.

The cases measure nothing here: what a search would find is made up, so that a session takes no longer than pytest.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from entries import ENVIRONMENT, MET
from filelock import FileLock
from found import measured
from searches import SMALL_OPTIONS, SearchFolder

from pytest_diffaccel.gate.case import Showing
from pytest_diffaccel.gate.gate_run import GateRun
from pytest_diffaccel.gate.verdict import Finding, Verdict
from pytest_diffaccel.judge.script_verdict import ScriptVerdict, StageResult
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure import blocks
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.plugin.judge_cases import PROPERTY
from pytest_diffaccel.records import golden_file, places
from pytest_diffaccel.records.gate_sessions import GateSession, add_sessions, subject
from pytest_diffaccel.records.golden import dump_entries
from pytest_diffaccel.records.golden_file import merge, read_golden, write_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.records.presence import Presence
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError
from pytest_diffaccel.report import gate_report, session
from pytest_diffaccel.report.case_log import CaseLog
from pytest_diffaccel.search.results import CellWinners, Chosen, Decided, Measured, Refusal, Winners
from pytest_diffaccel.search.search_run import SearchRun

# As a plugin would that shuffles tests, or --ff, which orders them after all others have.
REORDERING = """
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    yield
    items.reverse()
"""
KEY = "('SD1.5', 'DDIM', 20, 'Echo', 1.2)"
POINTS = 3


@dataclass
class MadeUp:
    """A search that measures nothing; its group's winners wait for the candidates, as an exhaustive search's do.

    Attributes:
        folder: where it runs.
        pytester: runs it.
        left: promising candidates that its budget leaves out.
        verifies: whether its cell's winners are verified.
        misfit: why the model takes none of its group's candidates.
        undecided: what comes nearest to targets of which no more is known; then none is decided.
        unfinished: accelerators of which others promise more.
        measured: candidates that it was asked for.
    """

    folder: SearchFolder
    pytester: pytest.Pytester
    left: int = 0
    verifies: bool = True
    misfit: str = ""
    undecided: tuple[Chosen, ...] = ()
    unfinished: tuple[str, ...] = ()
    measured: list[Candidate] = field(default_factory=list)

    def run(self, *arguments: str) -> pytest.RunResult:
        options = [one for one in SMALL_OPTIONS if one != "--exhaustive" or "--search-budget" not in arguments]
        return self.pytester.runpytest_inprocess("benches", *options, *arguments)

    def measure(self, candidate: Candidate, *, others_follow: bool = False) -> Measured:
        self.measured.append(candidate)
        return measured(candidate, 2.0, 0.1)

    def find_winners(self, cell: Cell, accelerator: str, *_wanted: object) -> Winners:
        found = Winners(cell, accelerator, left=self.left)
        if self.misfit:
            return replace(found, refused=Refusal("unfit", self.misfit))
        missing = POINTS - len(self.measured)
        if missing and not self.left:
            return replace(found, refused=Refusal("unfinished", f"{missing} candidates are not measured yet"))
        decided = () if self.undecided else (Decided(GoldenKey.parse(KEY), MET, None),)
        of_cell = CellWinners(decided, self.undecided, (), ENVIRONMENT, "", (), unfinished=self.unfinished)
        return replace(found, of_cell=of_cell if self.verifies else None)


@pytest.fixture
def made_up(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """A folder whose searches are made up, in this process."""
    made = MadeUp(SearchFolder(pytester.path), pytester)
    monkeypatch.setattr(blocks, "_REPEATS", 0)  # the folder's conftest file sets it; this sets it back
    monkeypatch.setattr(SearchRun, "take", lambda *_: True)
    monkeypatch.setattr(SearchRun, "give_up", lambda *_: None)
    monkeypatch.setattr(SearchRun, "measure", lambda _, candidate, **known: made.measure(candidate, **known))
    monkeypatch.setattr(SearchRun, "find_winners", lambda _, *group: made.find_winners(*group))
    return made


# --- order -------------------------------------------------------------------------------------------------------


def test_winners_come_after_their_candidates_whatever_order_a_plugin_gives(made_up: MadeUp) -> None:
    made_up.folder.add_to_conftest(REORDERING)
    result = made_up.run("--diffaccel-log", "cases.jsonl")
    result.assert_outcomes(passed=4)
    lines = [json.loads(line) for line in (made_up.folder.path / "cases.jsonl").read_text().splitlines()]
    intervals = [line["case"].rpartition("echo_interval=")[2] for line in lines]
    assert intervals == ["10,mishap=0", "15,mishap=0", "20,mishap=0", "SD1.5-DDIM-20-Echo"]
    assert result.ret == 0
    assert [str(key) for key in read_golden(made_up.folder.golden)] == [KEY]


def test_other_tests_keep_the_order_that_a_plugin_gives_them(made_up: MadeUp) -> None:
    made_up.folder.add_to_conftest(REORDERING)
    made_up.pytester.makepyfile(test_others="def test_a(): pass\ndef test_b(): pass")
    result = made_up.run("test_others.py", "--collect-only", "-q")
    names = [line.partition("[")[0].rpartition("::")[2] for line in result.outlines if "::" in line]
    assert names == ["test_b", "test_a", "test_search", "test_search", "test_search", "test_winners"]


# --- the exit code -----------------------------------------------------------------------------------------------


def test_a_search_that_recorded_nothing_says_so_and_fails(made_up: MadeUp) -> None:
    result = made_up.run("-k", "test_winners")
    result.assert_outcomes(skipped=1, deselected=3)
    result.stdout.fnmatch_lines(
        ["not recorded: the winners of 1 group*", "  SD1.5-DDIM-20 Echo: 3 candidates are not measured yet*"]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_cell_that_nobody_verified_is_no_success(made_up: MadeUp) -> None:
    made_up.verifies = False
    result = made_up.run()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["  SD1.5-DDIM-20 Echo: its cell's winners were not verified"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("left", "arguments"), [(0, ("-k", "not test_winners")), (5, ("-k", "test_winners")), (0, ("--setup-only",))]
)
def test_what_was_not_asked_for_is_not_missing(made_up: MadeUp, left: int, arguments: tuple[str, ...]) -> None:
    """Candidates alone, what a budget left out, or a session that runs no case."""
    made_up.left, made_up.verifies = left, False
    result = made_up.run(*arguments)
    assert result.ret == 0
    assert "not recorded" not in result.stdout.str()


def test_a_group_that_does_not_fit_the_model_is_told_and_no_failure(made_up: MadeUp) -> None:
    made_up.misfit = "Echo cannot run this UNet"
    result = made_up.run("-k", "test_winners")
    result.assert_outcomes(skipped=1, deselected=3)
    result.stdout.fnmatch_lines(["SD1.5-DDIM-20 Echo 0/1; choosing winners of Echo, then verifying them"])
    result.stdout.fnmatch_lines(["left out: 1 group*", "  SD1.5-DDIM-20 Echo: Echo cannot run this UNet"])
    assert "not recorded" not in result.stdout.str()
    assert result.ret == 0


def test_golden_that_cannot_be_written_is_told_and_the_session_goes_on(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "golden")

    monkeypatch.setattr(session, "merge", merge)
    result = made_up.run()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["diffaccel: golden/search_params.json could not be written: *No space left*", "not recorded: *"]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in result.stdout.str()


# --- places that will be written ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--golden", "taken/golden.json"), "taken/golden.json: it cannot be read: Not a directory"),
        (("--golden", "benches"), "benches: it is a folder; name a file*"),
        (("--diffaccel-report", "taken/a.html"), "--diffaccel-report: 'taken/a.html' cannot be written: *"),
        (("--picture-grid", "taken/a.png"), "--picture-grid: 'taken/a.png' cannot be written: *"),
        (("--diffaccel-log", "taken/a.jsonl"), "--diffaccel-log: 'taken/a.jsonl' cannot be written: *"),
        (("--store", "mysql://nowhere/x"), "--store: a store is SQLite or PostgreSQL, not mysql*"),
        (("--store", "taken/store.sqlite"), "--store: the folder taken cannot be written: Not a directory*"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_first_case(
    made_up: MadeUp, arguments: tuple[str, ...], message: str
) -> None:
    (made_up.folder.path / "taken").write_text("a file where a folder should be")
    result = made_up.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert len(result.stderr.str().splitlines()) < 4
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_so_is_a_working_folder_that_cannot_be(made_up: MadeUp, workers: tuple[str, ...]) -> None:
    (made_up.folder.path / ".diffaccel").write_text("a file where a folder should be")
    result = made_up.run(*workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the working folder .diffaccel cannot be written: Not a directory*"])


def test_a_disk_without_space_is_refused(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "NamedTemporaryFile", full)
    result = made_up.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the working folder *No space left on device*make room*"])


def test_a_store_that_others_made_read_only_is_refused(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise StoreError("the store x cannot be written: attempt to write a readonly database; give another --store")

    monkeypatch.setattr(places.Store, "try_writing", refuse)
    result = made_up.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --store: *cannot be written: attempt to write a readonly database; *"])


def test_logs_that_cannot_be_written_end_no_search(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    (made_up.folder.path / ".diffaccel" / "logs" / "SD1.5-DDIM-20.log").mkdir(parents=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CaseLog, "write", full)
    result = made_up.run("--diffaccel-log", "cases.jsonl")
    result.assert_outcomes(passed=4)
    assert result.ret == 0
    for said in ("log of SD1.5-DDIM-20 cannot be written", "--diffaccel-log cannot be written: *No space left"):
        result.stdout.fnmatch_lines([f"diffaccel: {said}*"])
    assert result.stdout.str().count("cannot be written") == 2


def test_golden_that_cannot_be_pruned_is_told(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(*known: Any, prune: object = None, **more: Any) -> Any:
        if prune is not None:
            raise OSError(errno.EACCES, "Permission denied")
        return golden_file.merge(*known, **more)

    monkeypatch.setattr(session, "merge", merge)
    result = made_up.run("--golden-prune")
    result.stdout.fnmatch_lines(["golden: golden/search_params.json could not be pruned: *Permission denied"])
    assert result.ret == 0


def test_scores_that_cannot_be_written_are_refused_before_the_first_script(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_script(): raise SystemExit('ran')")
    (pytester.path / "taken").write_text("a file where a folder should be")
    result = pytester.runpytest_inprocess("--scores", "taken/scores.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --scores: 'taken/scores.json' cannot be written: Not a directory*"])


# --- the gate ----------------------------------------------------------------------------------------------------

GATE = ("--gate", "--search-targets", "deepcache")
# What such a run chooses, with the folder's own options; an advised command repeats it.
CHOSEN = "--pipe SD1.5 --sched DDIM --steps 20 --search-targets Echo --search-targets deepcache --models models.toml"
TIMES_S = (0.5, 0.4, 0.6)
OK = Verdict((Finding("speed", "ok", "as fast"),), (), (), (("speedup", 1.5),))


@pytest.fixture
def gate(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """A folder with one golden winner, whose gate makes up what it finds."""
    made_up.folder.golden.parent.mkdir()
    write_golden(made_up.folder.golden, {GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.2): MET})
    reference = GateSession(0.4, 0.01, 5.0, 0.01, 1.0, (0.1,), 0, "a digest", MET.environment, figure_s=8.0)
    showing = Showing((Finding("speed", "ok", "as fast"),), (), reference, (("speedup", 1.5),), TIMES_S)
    verdict = Verdict(showing.findings, (), (), showing.figures)
    monkeypatch.setattr(GateRun, "_judge", lambda *_: (verdict, showing))
    return made_up


def test_what_a_gate_timed_is_in_pytest_benchmarks_file(gate: MadeUp) -> None:
    result = gate.run(*GATE, "--benchmark-json", "times.json")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    found = json.loads((gate.folder.path / "times.json").read_text(encoding="utf-8"))["benchmarks"]
    by_name = {entry["name"].partition("DDIM-20-")[2]: entry for entry in found}
    assert by_name.keys() == {"DeepCache-cache_interval=2,cache_branch_id=0]", "baseline]"}
    winner = by_name["DeepCache-cache_interval=2,cache_branch_id=0]"]
    assert winner["stats"]["data"] == list(TIMES_S)
    assert winner["params"]["cache_interval"] == 2
    assert winner["extra_info"] == {"gate_status": "ok", "speedup": 1.5}


def test_references_that_cannot_be_written_are_told(gate: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_sessions(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gate_report, "add_sessions", add_sessions)
    result = gate.run(*GATE, "--update-golden")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["diffaccel gate: golden/gate.json could not be written: *No space left on device"])
    assert result.ret == gate_report.BROKE_OFF


def test_a_budget_that_is_less_than_recording_takes_is_told(gate: MadeUp) -> None:
    """Of a first recording after its first case, of a later one at the start; at the end not what is no use."""
    first = gate.run(*GATE, "--update-golden", "--gate-budget", "30s")
    whatever = "diffaccel gate: recording times every case 5 times at the least, whatever the budget is"
    here = f"{whatever}: here about * of timing, and --gate-budget is 30 s"
    ends = "*a --gate-budget above 80s, or further such runs, tell more"
    first.stdout.fnmatch_lines([f"{whatever}; how long that takes is told after*", "ok *", here, "ok *", ends])
    gate.run(*GATE, "--update-golden", "--gate-budget", "30s").stdout.fnmatch_lines([here, "ok *", ends])
    gate.run(*GATE, "--update-golden", "--gate-budget", "2min").stdout.no_fnmatch_line(f"{whatever}*")


@pytest.mark.parametrize(
    ("asked", "said"),
    [("90s", "90 s"), ("1min30s", "90 s"), ("2min", "2 min"), ("1h30min", "90 min"), ("2h", "2 h"), ("0.5s", "0.5 s")],
)
def test_a_gate_says_the_budget_that_was_asked_for(gate: MadeUp, asked: str, said: str) -> None:
    result = gate.run(*GATE, "--gate-budget", asked)
    result.stdout.fnmatch_lines([f"diffaccel gate: 2 cases of *, LPIPS increases of 5.0%; budget {said}"])


def test_a_metric_that_references_lack_is_told_before_and_after(gate: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "SD1.5-DDIM-20-DeepCache-cache_interval=2,cache_branch_id=0"
    session = GateSession(0.4, 0.002, 20.0, 0.005, 1.0, (0.1,), 0, "", MET.environment, figure_s=0.1)
    add_sessions(gate.folder.golden, {subject(MET.environment, key): session})
    lacking = Finding("quality", "inconclusive", "no psnr", metric="psnr", fix="record psnr")
    verdict = Verdict((lacking,), (), (), (("speedup", 1.5),))
    monkeypatch.setattr(GateRun, "_judge", lambda _, case: (verdict if case.candidate else OK, None))
    result = gate.run(*GATE, "--gate-quality", "psnr=3%", "--gate-quality", "4%")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "diffaccel gate: 2 cases of *; slowdowns of 3.0%, LPIPS increases of 4.0%, psnr decreases of 3.0%; *",
            "diffaccel gate: neither references nor golden hold psnr of 1 winner; record references while all is well: "
            f"pytest benches --gate --update-golden --gate-quality psnr=3% {CHOSEN}",
            f"inconclusive {key}: quality by psnr inconclusive *",
            "  quality by psnr inconclusive: no psnr",
            "  it takes: record psnr",
            "warning: 1 case could not be decided*",
            "  it takes: record psnr",
        ]
    )
    assert gate.run(*GATE, "--gate-quality", "psnr=3%", "--gate-strict").ret == gate_report.REGRESSED
    known = replace(MET, metrics={"psnr": GoldenMetric(31.0)})
    entries = {GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.2): known}
    gate.folder.golden.write_text(dump_entries(entries), encoding="utf-8")
    gate.run(*GATE, "--gate-quality", "psnr=3%").stdout.no_fnmatch_line("*hold psnr*")


def test_what_records_references_names_the_golden_file_that_is_judged(gate: MadeUp) -> None:
    """Without it references would be recorded of other winners, and the gate would ask for them again."""
    write_golden(gate.folder.path / "mine.json", {GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.2): MET})
    record = f"record references while all is well: pytest benches --gate --update-golden {CHOSEN}"
    mine = gate.run(*GATE, "--golden", "mine.json")
    mine.stdout.fnmatch_lines([f"diffaccel gate: 1 winner has no gate reference: *; {record} --golden mine.json"])
    gate.run(*GATE).stdout.fnmatch_lines([f"diffaccel gate: 1 winner has no gate reference: *; {record}"])
    nothing = gate.run(*GATE, "--golden", "other.json")
    nothing.stdout.fnmatch_lines(["*holds no winner *; record some: *--steps 20 --models * --golden other.json"])


def test_what_records_golden_anew_is_the_search_of_the_judged_winners(
    gate: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever judged one cell would search all of them, of other samples and without the GPU."""
    worse = Verdict((Finding("speed", "regressed", "slower"),), (), (), (("speedup", 1.5),))
    monkeypatch.setattr(GateRun, "_judge", lambda _, case: (worse if case.candidate else OK, None))
    said = " ".join(str(gate.run(*GATE).stdout).split())
    samples = f"--num-samples {MET.num_samples} --batch-size {MET.batch_size}"
    golden = f"pytest benches --update-golden --fresh {samples} {CHOSEN}"
    references = f"pytest benches --gate --update-golden --fresh {CHOSEN}"
    assert f"next: what is wanted as it is now is recorded by: {golden}, then {references} " in said


@pytest.mark.parametrize(
    ("recorded", "status", "remedy"),
    [
        (20.0, "speed", "--gate-budget * or more: pictures take some of it"),
        (0.1, "speed", "a quieter machine or a longer --gate-budget: *"),
        (20.0, "quality", "golden and references of more samples (--num-samples): *"),
        (
            None,
            "speed",
            "record references while all is well: pytest benches --gate --update-golden --pipe *",
        ),
    ],
)
def test_the_end_of_a_gate_advises_what_its_start_does(
    gate: MadeUp, monkeypatch: pytest.MonkeyPatch, recorded: float | None, status: str, remedy: str
) -> None:
    key, figures = "SD1.5-DDIM-20-DeepCache-cache_interval=2,cache_branch_id=0", (("speedup", 1.5),)
    if recorded is not None:
        session = GateSession(0.4, 0.002, 20.0, 0.005, 1.0, (0.1,), 0, "", MET.environment, figure_s=recorded)
        add_sessions(gate.folder.golden, {subject(MET.environment, key): session})
    verdict = Verdict((Finding(status, "inconclusive", "not certain"),), (), (), figures)
    monkeypatch.setattr(GateRun, "_judge", lambda _, case: (verdict if case.candidate else OK, None))
    result = gate.run(*GATE, "--gate-budget", "1min", "--gate-slowdown", "5%")
    start, _, end = result.stdout.str().partition("baseline: ")
    assert "warning: 1 case could not be decided" in end
    result.stdout.fnmatch_lines([f"  it takes: {remedy}"])
    assert (remedy.partition("*")[0] in start) == ("quieter" not in remedy and status == "speed")


def test_a_gate_needs_no_terminal(gate: MadeUp) -> None:
    result = gate.run(*GATE, "-p", "no:terminal")
    assert (result.ret, result.stdout.str(), result.stderr.str()) == (0, "", "")


# --- stopped -----------------------------------------------------------------------------------------------------

# As Ctrl-C does, but for pytester, which would end with what runs in its process.
STOPPING = """
def pytest_runtest_teardown(item):
    stopping.append(item)
    if len(stopping) == {cases}:
        item.session.shouldstop = "stopped"

stopping = []
"""


@pytest.mark.parametrize(("arguments", "without"), [((), ""), (("--fresh",), " without --fresh")])
def test_a_search_that_is_stopped_says_what_is_kept_and_how_it_goes_on(
    made_up: MadeUp, arguments: tuple[str, ...], without: str
) -> None:
    made_up.folder.add_to_conftest(STOPPING.format(cases=2))
    result = made_up.run("--grid", "coarse", *arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [
            "diffaccel: stopped after 2 of 4 cases: what they measured is stored, only the case under way is lost; "
            f"the same command{without} goes on"
        ]
    )
    assert "next:" not in result.stdout.str()
    assert "not recorded" not in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is kept of their verdicts but what is above; the same command judges all cases"),
        (
            ("--update-golden",),
            "1 recorded session is kept in golden/gate.json; the same command times all cases again",
        ),
    ],
)
def test_so_does_a_gate(gate: MadeUp, arguments: tuple[str, ...], said: str) -> None:
    gate.folder.add_to_conftest(STOPPING.format(cases=1))
    result = gate.run(*GATE, *arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["gate: 1 ok of 2", f"stopped after 1 of 2 cases: {said}"])
    assert "next:" not in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--scores", "s.json"),
            "their verdicts are in s.json; --ids 193-194,196 and another --scores judges the others",
        ),
        ((), "only --scores FILE keeps verdicts; --ids 193-194,196 judges the others"),
    ],
)
def test_so_does_the_judge(pytester: pytest.Pytester, arguments: tuple[str, ...], said: str) -> None:
    verdict = ScriptVerdict("192", (StageResult("static", "passed"),)).to_json()
    pytester.makepyfile(
        f"def test_a(request): request.node.user_properties.append(({PROPERTY!r}, {json.dumps(verdict)!r}))\n"
        "def test_b(request): request.session.shouldstop = 'stopped'\ndef test_c(): pass"
    )
    result = pytester.runpytest_inprocess("--ids", "192-194,196", *arguments)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"stopped after 1 of 4 tasks: {said}"])


# --- undecided ---------------------------------------------------------------------------------------------------


def test_only_what_a_budget_left_out_is_said_to_go_on(made_up: MadeUp) -> None:
    nearest = Chosen(GoldenKey.parse(KEY), {"Echo": {"echo_interval": 10}}, Interval(1.2, 1.1, 1.3), 0.1)
    made_up.undecided = (nearest,)
    shown = "  SD1.5 DDIM 20 steps, Echo, 1.2x: 1.20x ?1.10, 1.30?, LPIPS 0.100, echo_interval=10"
    stays = "undecided: 1 target; a winner that golden has stays"
    made_up.run().stdout.fnmatch_lines([f"{stays}; the same command measures no more of it; with --fresh *", shown])
    made_up.left = 5
    result = made_up.run("--search-budget", "1min")
    result.stdout.fnmatch_lines(
        [
            f"{stays}; the time was up, the same command goes on",
            shown,
            "search budget: 5 promising candidates were not tried; the same command goes on",
        ]
    )


@pytest.mark.parametrize(("target", "left"), [(1.2, 0), (2.0, 1)], ids=["it may reach it", "others may"])
def test_only_what_a_candidate_may_reach_is_unattainable_no_more(made_up: MadeUp, target: float, left: int) -> None:
    """A coarse search that leaves a target open says nothing against a finer one, which found it out of reach."""
    key = replace(GoldenKey.parse(KEY), target=target)
    unattainable = replace(MET, status="unattainable", reason="speed", fewer_steps=None)
    merge(made_up.folder.golden, {key: unattainable}, update=False)
    made_up.undecided = (Chosen(key, {"Echo": {"echo_interval": 10}}, Interval(1.2, 1.1, 1.3), 0.1),)
    made_up.run("--update-golden")
    assert len(read_golden(made_up.folder.golden)) == left


def test_another_golden_file_is_said_to_need_its_name(made_up: MadeUp) -> None:
    hint = "next: name this file where winners are shown, used or guarded: --golden other.json"
    made_up.run("--golden", "other.json").stdout.fnmatch_lines([hint])


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        ("coarse", "points that the coarse grid leaves out may reach it: leave out --grid coarse"),
        ("full", "others promise to reach it, the same command goes on"),
    ],
)
def test_what_others_may_reach_is_said_to_need_them(made_up: MadeUp, grid: str, why: str) -> None:
    key = replace(GoldenKey.parse(KEY), target=2.0)
    made_up.undecided = (Chosen(key, {"Echo": {"echo_interval": 10}}, Interval(1.2, 1.1, 1.3), 0.1),)
    made_up.unfinished = (key.accelerator,) if grid == "full" else ()
    result = made_up.run("--grid", grid)
    result.stdout.fnmatch_lines([f"undecided: 1 target; a winner that golden has stays; {why}"])


# --- without a terminal ------------------------------------------------------------------------------------------


def test_a_search_needs_no_terminal(made_up: MadeUp) -> None:
    result = made_up.run("-p", "no:terminal", "--picture-grid", "grid.png")
    assert (result.ret, result.stdout.str(), result.stderr.str()) == (0, "", "")
    assert [str(key) for key in read_golden(made_up.folder.golden)] == [KEY]


@pytest.mark.parametrize("quiet", [(), ("-p", "no:terminal")], ids=["terminal", "none"])
def test_scores_are_written_with_and_without_a_terminal(pytester: pytest.Pytester, quiet: tuple[str, ...]) -> None:
    """Of a script that is said to be judged."""
    verdict = ScriptVerdict("192", (StageResult("static", "passed"),)).to_json()
    pytester.makepyfile(
        f"def test_script(request): request.node.user_properties.append(({PROPERTY!r}, {json.dumps(verdict)!r}))"
    )
    result = pytester.runpytest_inprocess("--scores", "new/scores.json", *quiet)
    assert result.ret == 0
    assert ("every verdict: new/scores.json" in result.stdout.str()) is not bool(quiet)
    assert json.loads((pytester.path / "new" / "scores.json").read_text(encoding="utf-8"))["all"]["pass_rate"] == 1


def test_without_a_terminal_the_exit_code_tells(made_up: MadeUp) -> None:
    assert made_up.run("-p", "no:terminal", "-k", "test_winners").ret == pytest.ExitCode.TESTS_FAILED


def test_another_session_in_the_folder_is_told(made_up: MadeUp) -> None:
    """Both would measure everything: its store is another one, where it is not seen in this one."""
    told = "diffaccel: another session searches in this folder (process 4711, since noon)*measured twice*"
    work = made_up.folder.path / ".diffaccel"
    work.mkdir()
    with FileLock(work / "session.lock"):
        (work / "session.txt").write_text("process 4711, since noon", encoding="utf-8")
        made_up.run().stdout.fnmatch_lines([told])
    result = made_up.run()
    result.stdout.no_fnmatch_line("*another session*")
    assert f"process {os.getpid()}, since 20" in (work / "session.txt").read_text(encoding="utf-8")


def test_another_session_of_the_store_is_told(made_up: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "shared" / "search.sqlite")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        other = Presence(Store.open(url), "another", began_at=1e9)
    other.begin()
    try:
        result = made_up.run("--store", url)
    finally:
        other.end()
    words = f"({platform.node()}, process {os.getpid()}, since 2001-09-0*, in {tmp_path})"
    result.stdout.fnmatch_lines([f"diffaccel: another session searches into this store {words}*shared out"])
    result.assert_outcomes(passed=4)
    assert result.ret == 0
    for _ in range(2):  # neither of the other, nor of the one before
        made_up.measured.clear()
        made_up.run("--store", url).stdout.no_fnmatch_line("*another session*")
        with Store.open(url) as store:
            assert store.sessions() == []


def test_a_lock_of_somebody_elses_beside_the_report_matters_to_nobody(made_up: MadeUp) -> None:
    lock = made_up.folder.path / "uv.lock"
    lock.write_text("", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places.os, "access", lambda file, _: Path(file).name != lock.name)
        made_up.run("--diffaccel-report", "report.html").assert_outcomes(passed=4)


def test_a_session_that_is_refused_prunes_nothing(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise StoreError("out of reach")

    monkeypatch.setattr(places.Store, "try_writing", refuse)
    golden = made_up.folder.golden
    golden.parent.mkdir()
    gone = GoldenKey(Cell("SD1.5", "DDIM", 20), "Gone", 1.2)
    golden.write_text(dump_entries({gone: MET}), encoding="utf-8")
    assert made_up.run("--golden-prune").ret == pytest.ExitCode.USAGE_ERROR
    assert list(read_golden(golden)) == [gone]
