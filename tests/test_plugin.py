"""The plugin through pytest: real searches, small ones, run as users run them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path

import pytest
from echo import DEATH, ERROR, NO_MEMORY, SILENCE, SLOW, Echo
from searches import SMALL_OPTIONS, TESTS, SmallSearch, open_run
from timings import STEADY

from pytest_diffaccel.matrix import TARGETS, Cell
from pytest_diffaccel.records.golden_file import merge, read_environments, read_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.search.cases import NotWorthwhile
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE
from pytest_diffaccel.search.search_run import SearchSession

CASE = "SD1.5-DDIM-20-Echo-echo_interval={},mishap={}".format
# Not by -k: its expressions cannot hold "=".
NODE = f"benches/test_search.py::test_search[{CASE('{}', '{}')}]".format
WITHOUT_WINNERS = ("-k", "not test_winners")


def key(target: float, accelerator: str = "Echo", steps: int = 20) -> GoldenKey:
    return GoldenKey(Cell("SD1.5", "DDIM", steps), accelerator, target)


def figures(search: SmallSearch, purpose: str = "search") -> dict[int, tuple[float, float]]:
    """(speed-up, LPIPS) by interval, as measured for a purpose."""
    query = f"SELECT record FROM diffaccel_measurements WHERE purpose = '{purpose}'"
    records = [json.loads(row[0]) for row in search.query(query)]
    return {
        record["candidate"]["params"]["Echo"]["echo_interval"]: (
            record["speedup"]["value"],
            record["quality"]["lpips"]["value"],
        )
        for record in records
    }


# --- a whole search --------------------------------------------------------------------------------------------


def test_a_search_measures_every_candidate_and_records_its_winners(
    finished_search: SmallSearch, finished_folder: Path
) -> None:
    said = (finished_folder / "output.txt").read_text(encoding="utf-8").splitlines()
    result = pytest.RunResult(0, said, [], 0.0)
    result.assert_outcomes(passed=4)
    golden = read_golden(finished_search.golden)
    assert list(golden) == [key(target) for target in TARGETS]
    searched, verified = figures(finished_search), figures(finished_search, "winner")
    assert searched.keys() == {10, 15, 20}
    assert all(speedup > 1.2 for speedup, _ in searched.values())
    for target in TARGETS:
        entry = golden[key(target)]
        interval = entry.params["Echo"]["echo_interval"]
        assert entry.lpips == pytest.approx(verified[interval][1], abs=1e-6)
        assert entry.speedup_ci95 is not None
        assert (entry.status == "met") == (entry.speedup_ci95[0] >= target * (1 - SPEED_TOLERANCE))
    least = min(searched, key=lambda interval: searched[interval][1])
    assert golden[key(1.2)].status == "met"
    assert golden[key(1.2)].params == {"Echo": {"echo_interval": least, "mishap": 0}}
    environments = read_environments(finished_search.golden)
    assert {entry.environment for entry in golden.values()} == environments.keys()
    environment = next(iter(environments.values()))
    assert "SD1.5 from" in environment.model_source
    assert environment.scale is not None
    assert environment.scale.repeat == 0.0
    assert environment.scale.noise_floor < environment.scale.unrelated / 10
    _shows_what_it_does(result)
    _reports_figures(finished_folder / "junit.xml")
    assert (finished_search.path / ".diffaccel" / "logs" / "SD1.5-DDIM-20.log").read_text().count("LPIPS") == 3


def _shows_what_it_does(result: pytest.RunResult) -> None:
    result.stdout.fnmatch_lines(
        [
            "diffaccel: 4 cases in 1 cell, models: models.toml*",
            "diffaccel: narrow with --grid coarse; Ctrl-C loses nothing, the same command goes on",
            "*diffaccel: winners*",
            "SD1.5 DDIM 20 steps (SD1.5 from*",
            "targets*speedup*LPIPS*fewer steps",
            "Echo",
            "*x [[]*",
            "    echo_interval=*",
            "golden: golden/search_params.json: 7 new",
        ]
    )


def _reports_figures(junit: Path) -> None:
    properties = [
        {part.get("name"): part.get("value") for part in case.iter("property")}
        for case in ElementTree.parse(junit).iter("testcase")
    ]
    assert sum("speedup" in part and float(part["speedup"]) > 1 for part in properties) == 3


def test_winners_are_measured_again_on_other_pictures(finished_search: SmallSearch) -> None:
    """Choosing flatters the chosen: what is recorded is the second measurement."""
    recorded = {entry.lpips for entry in read_golden(finished_search.golden).values()}
    first, again = (
        {round(lpips, 6) for _, lpips in figures(finished_search, one).values()} for one in ("search", "winner")
    )
    assert recorded <= again
    assert not recorded & first


def test_a_second_run_finds_everything_stored(finished_search: SmallSearch) -> None:
    golden, stored = finished_search.golden.read_bytes(), finished_search.stored()
    result = finished_search.run()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["golden: golden/search_params.json: 7 unchanged"])
    assert finished_search.golden.read_bytes() == golden
    assert finished_search.stored() == stored
    log = (finished_search.path / ".diffaccel" / "logs" / "SD1.5-DDIM-20.log").read_text()
    assert log.count("(stored)") == 3


def test_golden_is_made_again_from_the_store_alone(finished_search: SmallSearch) -> None:
    golden, stored = finished_search.golden.read_bytes(), finished_search.stored()
    finished_search.golden.unlink()
    finished_search.run().assert_outcomes(passed=4)
    assert finished_search.golden.read_bytes() == golden
    assert finished_search.stored() == stored


def test_fresh_measures_again(finished_search: SmallSearch) -> None:
    before = finished_search.stored()
    finished_search.run("--fresh", NODE(20, 0)).assert_outcomes(passed=1)
    after = finished_search.stored()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [(candidate, purpose) for candidate, purpose, _ in changed] == [(CASE(20, 0), "search")]


def test_other_samples_are_other_measurements(finished_search: SmallSearch) -> None:
    finished_search.run("--seed", "1", NODE(10, 0)).assert_outcomes(passed=1)
    candidates = [candidate for candidate, purpose, _ in finished_search.stored() if purpose == "search"]
    assert sorted(candidates) == sorted([CASE(10, 0), CASE(10, 0), CASE(15, 0), CASE(20, 0)])


def test_store_goes_where_it_is_told(finished_search: SmallSearch) -> None:
    finished_search.store.rename(finished_search.path / "elsewhere.db")
    result = finished_search.run("--store", "sqlite:///elsewhere.db", "--golden", "mine/golden.json")
    result.assert_outcomes(passed=4)
    assert not finished_search.store.exists()
    assert len(read_golden(finished_search.path / "mine" / "golden.json")) == len(TARGETS)


# --- a race --------------------------------------------------------------------------------------------------------

# The last one computes every call, and reaches no target.
RACERS = (*((interval, 0) for interval in range(2, 21)), (1, 0))


def test_a_race_passes_over_what_cannot_win_says_why_and_goes_on_where_it_was(steady_search: SmallSearch) -> None:
    steady_search.register(*RACERS)
    result = steady_search.race("-rs")
    counts = result.parseoutcomes()
    assert counts["passed"] + counts["skipped"] == len(RACERS) + 1
    result.stdout.fnmatch_lines(["golden: *: 7 new", "SKIPPED*predicted *x [[]*, *[]]*"])
    golden = read_golden(steady_search.golden)
    assert list(golden) == [key(target) for target in TARGETS]
    first = golden[key(1.2)]
    assert first.status == "met"
    assert first.fewer_steps is not None
    assert first.speedup is not None
    assert first.fewer_steps.steps < 20
    assert first.fewer_steps.speedup >= first.speedup
    log = (steady_search.path / ".diffaccel" / "logs" / "SD1.5-DDIM-20.log").read_text()
    assert log.count("skipped: predicted") == counts["skipped"]
    samples = dict(steady_search.query("SELECT num_samples, count(*) FROM diffaccel_measurements GROUP BY 1"))
    assert samples.keys() <= {2, 4}
    assert samples[2] + len(TARGETS) >= counts["passed"] - 1
    golden_file, stored = steady_search.golden.read_bytes(), steady_search.stored()
    result = steady_search.race()
    result.stdout.fnmatch_lines(["golden: *: 7 unchanged"])
    assert steady_search.golden.read_bytes() == golden_file
    assert steady_search.stored() == stored


def test_a_race_leaves_out_what_fails(steady_search: SmallSearch) -> None:
    steady_search.register((2, 0), (4, ERROR), (10, 0), (20, 0))
    result = steady_search.race()
    # Either in a case of its own, or, where that was left for later, among those of the winners' case.
    result.stdout.fnmatch_lines(["diffaccel: SD1.5-DDIM-20 Echo: *an accident in the third denoiser call*"])
    assert [(candidate, kind) for candidate, kind, _ in steady_search.failures()] == [(CASE(4, ERROR), "error")]
    assert len(read_golden(steady_search.golden)) == len(TARGETS)


def test_a_search_whose_time_is_up_records_nothing_that_it_does_not_know(steady_search: SmallSearch) -> None:
    steady_search.register(*RACERS)
    result = steady_search.race("--search-budget", "0.001s", "-rs")
    result.stdout.fnmatch_lines(
        ["search budget: * promising candidates were not tried*", "*left to the winners' case*"]
    )
    assert not steady_search.golden.exists()
    result = steady_search.race()
    result.stdout.fnmatch_lines(["golden: *: 7 new"])


def test_within_its_budget_a_search_finds_all_winners(steady_search: SmallSearch) -> None:
    steady_search.register(*RACERS)
    result = steady_search.race("--search-budget", "1h")
    result.assert_outcomes(passed=1, skipped=len(RACERS))
    result.stdout.fnmatch_lines(["golden: *: 7 new"])
    assert "search budget" not in result.stdout.str()


def test_winners_alone_race_by_themselves(steady_search: SmallSearch) -> None:
    """Without its cases, the group's winners evaluate what they need."""
    steady_search.register(*RACERS)
    steady_search.race("-k", "test_winners").assert_outcomes(passed=1, deselected=len(RACERS))
    assert len(read_golden(steady_search.golden)) == len(TARGETS)


def test_two_workers_race_in_one_group(steady_search: SmallSearch) -> None:
    """The second has no group of its own, and helps."""
    steady_search.register(*RACERS)
    result = steady_search.race_apart("-n", "2", "--diffaccel-log", "log.jsonl")
    counts = result.parseoutcomes()
    assert counts["passed"] + counts["skipped"] == len(RACERS) + 1
    result.stdout.fnmatch_lines(["golden: *: * new"])
    log = [json.loads(line) for line in (steady_search.path / "log.jsonl").read_text().splitlines()]
    assert {case["worker"] for case in log} == {"gw0", "gw1"}
    evaluated = steady_search.query(
        "SELECT candidate_key, num_samples FROM diffaccel_measurements WHERE purpose = 'search'"
    )
    assert len(evaluated) == len(set(evaluated)) > 1


def test_a_worker_knows_what_its_helpers_have_found(steady_search: SmallSearch) -> None:
    """Also in the middle of a group."""
    session, runs = SearchSession(workers=2), [open_run(methods=[Echo(RACERS)]) for _ in range(2)]
    first, second, third = [one for one in runs[0].candidates if one.accelerator == "Echo"][:3]
    for run in runs:
        run.session = session
    for run, candidate in zip([*runs, runs[0]], (first, second, third), strict=True):
        with suppress(NotWorthwhile):
            run.measure(candidate)
    known = runs[0].bench.known(first.cell)
    assert all(known.find(candidate) for candidate in (first, second))
    for run in runs:
        run.close()


def test_a_group_is_planned_anew_when_something_is_known_anew(steady_search: SmallSearch) -> None:
    """And only then: hundreds of cases that are skipped ask for the plan; what kinds of steps cost is kept longer."""
    run = open_run(methods=[Echo(RACERS)])
    first, second = [one for one in run.candidates if one.accelerator == "Echo"][:2]
    group = GroupSearch(run.bench, first.cell, "Echo")
    with suppress(NotWorthwhile):
        run.measure(first)
    before = group.plan()
    assert group.plan() is before
    group.evaluate(second)
    after = group.plan()
    assert after is not before
    assert after.evaluated.keys() - before.evaluated.keys() == {second}
    assert after.costs.kinds is before.costs.kinds
    run.close()


# --- the golden database ---------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of the least width that people use."""
    monkeypatch.setenv("COLUMNS", "80")


def _edit(search: SmallSearch) -> bytes:
    """Make one golden record say something else; the file's bytes after that."""
    text = search.golden.read_text()
    first, rest = text.split('"Echo": {"echo_interval": ', 1)
    search.golden.write_text(f'{first}"Echo": {{"echo_interval": 99{rest[rest.index(",") :]}')
    assert read_golden(search.golden)[key(1.2)].params["Echo"]["echo_interval"] == 99
    return search.golden.read_bytes()


@pytest.mark.parametrize("options", [(), ("--golden-new-only",), ("--update-golden", "--golden-new-only")])
def test_a_difference_is_shown_and_the_record_kept(
    finished_search: SmallSearch, narrow: None, options: tuple[str, ...]
) -> None:
    edited = _edit(finished_search)
    result = finished_search.run(*options)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "golden: *: 1 differs, 6 unchanged",
            "  differs: SD1.5 DDIM * steps, Echo",
            "    1.2x: *echo_interval 99 -> *",
            "next: *--update-golden writes the new ones",
        ]
    )
    assert finished_search.golden.read_bytes() == edited


def test_update_golden_writes_the_difference(finished_search: SmallSearch, narrow: None) -> None:
    before = finished_search.golden.read_bytes()
    _edit(finished_search)
    result = finished_search.run("--update-golden")
    result.assert_outcomes(passed=4)
    change = ["  updated: SD1.5 DDIM * steps, Echo", "    1.2x: *echo_interval 99 -> *"]
    result.stdout.fnmatch_lines(["golden: *: 6 unchanged, 1 updated", *change])
    assert finished_search.golden.read_bytes() == before


def test_records_of_other_searches_stay(finished_search: SmallSearch) -> None:
    golden = read_golden(finished_search.golden)
    others = {key(1.2, "Gone"): golden[key(1.2)], key(1.2, "Gone", steps=50): golden[key(1.2)]}
    merge(finished_search.golden, others, update=False)
    before = finished_search.golden.read_bytes()
    finished_search.run("--update-golden").assert_outcomes(passed=4)
    assert finished_search.golden.read_bytes() == before


def test_prune_removes_what_no_search_of_the_chosen_cells_can_find(finished_search: SmallSearch) -> None:
    golden = read_golden(finished_search.golden)
    elsewhere, unused = key(1.2, "Gone", steps=50), key(1.2, "DeepCache")
    others = {key(1.2, "Gone"): golden[key(1.2)], key(9.0): golden[key(1.2)], elsewhere: golden[key(1.2)]}
    merge(finished_search.golden, {**others, unused: golden[key(1.2)]}, update=False)
    result = finished_search.run("--golden-prune")
    result.stdout.fnmatch_lines(
        ["golden: *: 2 pruned, 7 unchanged", "  pruned: *, Echo", "    9x: met*", "  pruned: *, Gone"]
    )
    assert read_golden(finished_search.golden).keys() == {*golden, elsewhere, unused}


@pytest.mark.parametrize("content", ["{ broken", '{"(1, 2)": {}}', "[]"])
def test_a_broken_golden_file_is_refused_before_anything_is_measured(small_search: SmallSearch, content: str) -> None:
    small_search.golden.parent.mkdir()
    small_search.golden.write_text(content)
    result = small_search.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: golden/search_params.json:1: *mend it, or restore it from git)"])
    assert "INTERNALERROR" not in result.stdout.str()
    assert small_search.golden.read_text() == content
    assert not small_search.store.exists()


# --- failures --------------------------------------------------------------------------------------------------


def test_failing_candidates_fail_alone_and_the_rest_goes_on(steady_search: SmallSearch) -> None:
    steady_search.register((4, ERROR), (7, NO_MEMORY), (7, SILENCE), (10, 0))
    result = steady_search.run()
    result.assert_outcomes(passed=2, failed=3)
    failures = [(candidate, kind) for candidate, kind, _ in steady_search.failures()]
    assert failures == [
        (CASE(4, ERROR), "error"),
        (CASE(7, NO_MEMORY), "oom"),
        (CASE(7, SILENCE), "not-fired"),
    ]
    messages = [message for *_, message in steady_search.failures()]
    assert "an accident in the third denoiser call" in messages[0]
    assert "out of memory at batch size 1" in messages[1]
    assert "echoes stayed 0" in messages[2]
    golden = read_golden(steady_search.golden)
    assert {str(entry.params) for entry in golden.values()} == {"{'Echo': {'echo_interval': 10, 'mishap': 0}}"}
    result.stdout.fnmatch_lines(["next: 3 cases failed; run them again with --lf"])


def test_images_after_a_failure_are_those_without_one(small_search: SmallSearch, finished_folder: Path) -> None:
    """The pipeline is loaded anew after a failure, so the next candidate is measured as if it had been the first."""
    small_search.register((4, ERROR), (10, 0))
    small_search.run(*WITHOUT_WINNERS).assert_outcomes(passed=1, failed=1)
    loss = figures(small_search)[10][1]
    shutil.copy(finished_folder / ".diffaccel" / "search.sqlite", small_search.store)
    assert figures(small_search)[10][1] == loss


def test_failures_run_again_with_lf_and_are_forgotten_when_they_pass(small_search: SmallSearch) -> None:
    small_search.register((10, 0), (4, ERROR))
    small_search.run(*WITHOUT_WINNERS).assert_outcomes(passed=1, failed=1)
    assert [kind for _, kind, _ in small_search.failures()] == ["error"]
    result = small_search.run("--lf")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*winners*")


def test_a_case_that_takes_too_long_fails(small_search: SmallSearch) -> None:
    small_search.register((4, SLOW), (10, 0))
    result = small_search.run("--case-timeout", "5", NODE(4, SLOW))
    result.assert_outcomes(failed=1)
    assert [(candidate, kind) for candidate, kind, _ in small_search.failures()] == [(CASE(4, SLOW), "timeout")]
    assert "took longer than --case-timeout 5 s" in small_search.failures()[0][2]
    assert result.duration < 60


def test_when_nothing_works_nothing_is_recorded_and_the_reason_is_told(small_search: SmallSearch) -> None:
    """A broken installation must not look like an accelerator that is too slow."""
    small_search.register((4, ERROR))
    result = small_search.run()
    result.assert_outcomes(failed=2)
    assert not small_search.golden.exists() or read_golden(small_search.golden) == {}
    result.stdout.fnmatch_lines(
        [
            "diffaccel: SD1.5-DDIM-20 Echo: *an accident in the third denoiser call*",
            "diffaccel: SD1.5-DDIM-20 Echo: *all that was tried failed (1 candidate), so nothing is recorded*",
        ]
    )
    log = (small_search.path / ".diffaccel" / "logs" / "SD1.5-DDIM-20.log").read_text()
    assert "an accident in the third denoiser call" in log


def test_unattainable_targets_say_why(finished_search: SmallSearch) -> None:
    finished_search.golden.unlink()
    result = finished_search.run("--max-quality-loss", "1e-9")
    result.assert_outcomes(passed=4)
    reasons = {entry.reason for entry in read_golden(finished_search.golden).values()}
    assert reasons == {"quality"}
    result.stdout.fnmatch_lines(["*unattainable: the fast ones lose too much*"])


# --- as pytest users know it -----------------------------------------------------------------------------------


def test_collect_only_lists_the_cases_and_touches_nothing(small_search: SmallSearch) -> None:
    result = small_search.run("--collect-only", "-q")
    cases = [line for line in result.outlines if "::" in line]
    assert cases == [
        NODE(10, 0),
        NODE(15, 0),
        NODE(20, 0),
        "benches/test_search.py::test_winners[SD1.5-DDIM-20-Echo]",
    ]
    assert not small_search.store.exists()
    assert not small_search.golden.exists()


def test_groups_stay_together_in_the_matrix_order(small_search: SmallSearch) -> None:
    result = small_search.run("--collect-only", "-q", "--steps", "50", "--search-targets", "tome", "--grid", "coarse")
    groups = [line.split("[")[1].split("-")[2:4] for line in result.outlines if "::" in line]
    expected = [[steps, name] for steps in ("20", "50") for name in ["Tome"] * 4 + ["ToMe"] + ["Echo"] * 4]
    assert [steps for steps, _ in groups] == [steps for steps, _ in expected]
    winners = [line for line in result.outlines if "test_winners" in line]
    assert [line.split("[")[1].rstrip("]") for line in winners] == [
        f"SD1.5-DDIM-{steps}-{name}" for steps in (20, 50) for name in ("ToMe", "Echo")
    ]


def test_a_single_candidate_can_be_chosen_and_winners_wait(small_search: SmallSearch) -> None:
    small_search.run(NODE(20, 0), "benches/test_search.py::test_winners").assert_outcomes(passed=1, skipped=1)
    assert [candidate for candidate, *_ in small_search.stored()] == [CASE(20, 0)]
    assert not small_search.golden.exists()
    result = small_search.run("-k", "test_winners", "-rs")
    result.assert_outcomes(skipped=1, deselected=3)
    result.stdout.fnmatch_lines(["SKIPPED*not measured yet: 2 of 3 candidates; run their cases first"])


def test_x_stops_at_the_first_failure(small_search: SmallSearch) -> None:
    small_search.register((4, ERROR), (10, 0))
    result = small_search.run("-x")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])
    assert small_search.stored() == []


def test_update_golden_alone_searches_the_benches(small_search: SmallSearch) -> None:
    small_search.pytester.makepyfile("def test_unrelated(): raise SystemExit('ran')")
    run = small_search.pytester.runpytest_inprocess
    result = run(*SMALL_OPTIONS, "--update-golden", "--collect-only", "-q")
    cases = [line for line in result.outlines if "::" in line]
    assert len(cases) == 4
    assert all(line.startswith("benches/test_search.py::") for line in cases)
    result = run("test_update_golden_alone_searches_the_benches.py", "--update-golden", "--collect-only", "-q")
    assert [line for line in result.outlines if "::" in line] == [
        "test_update_golden_alone_searches_the_benches.py::test_unrelated"
    ]


def test_update_golden_alone_searches_the_benches_in_workers(small_search: SmallSearch) -> None:
    """xdist gives them the command line, and so the project's own tests, as it was."""
    small_search.pytester.makeini("[pytest]\ntestpaths = own")
    own = small_search.pytester.mkdir("own") / "test_own.py"
    own.write_text(
        "from pathlib import Path\n\nPath('imported').touch()\n\ndef test_unrelated(): pass", encoding="utf-8"
    )
    result = small_search.pytester.runpytest_subprocess(*SMALL_OPTIONS, "--update-golden", "-n", "1", "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not (small_search.path / "imported").exists()


def test_a_registered_accelerator_is_among_the_valid_ones(small_search: SmallSearch) -> None:
    result = small_search.run("--search-targets", "magic")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*'magic' is unknown (did you mean MagCache?); choose from DeepCache; *; FirstBlockCache; DBCache; Echo; all"]
    )


def test_the_embedded_pipelines_are_searched_without_any_option_for_them(steady_search: SmallSearch) -> None:
    """A built-in accelerator on the pipelines that the package carries, at their own size."""
    result = steady_search.pytester.runpytest_inprocess(
        *("--pipe", "sdxl", "--sched", "unipc", "--steps", "20", "--search_targets", "tome"),
        *("--grid", "coarse", "--num_samples", "1", "--batch_size", "1"),
        "benches/test_search.py::test_search[SDXL-UniPCMultistepScheduler-20-ToMe-ratio=0.6,max_downsample=2]",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["diffaccel: 1 case in 1 cell, *; the time left is shown after a short calibration"])
    ((candidate, purpose, _),) = steady_search.stored()
    assert (candidate, purpose) == ("SDXL-UniPCMultistepScheduler-20-ToMe-ratio=0.6,max_downsample=2", "search")


# --- xdist -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_share_the_groups_and_golden_is_complete(small_search: SmallSearch) -> None:
    small_search.register((10, 0), (20, 0))
    small_search.add_to_conftest(STEADY)
    result = small_search.run_apart("--sched", "unipc", "-n", "2", "-v")
    result.assert_outcomes(passed=6)
    passed = [line for line in result.outlines if "PASSED" in line]
    workers = {
        scheduler: {line.split("]")[0] for line in passed if f"-{scheduler}-" in line}
        for scheduler in ("DDIM", "UniPCMultistepScheduler")
    }
    assert sorted(map(len, workers.values())) == [1, 1]
    assert workers["DDIM"] != workers["UniPCMultistepScheduler"]
    assert [("test_winners" in line) for line in passed if "-DDIM-" in line] == [False, False, True]
    result.stdout.fnmatch_lines(["diffaccel: 6 cases in 2 cells*", "golden: *: 14 new"])
    golden = read_golden(small_search.golden)
    assert len(golden) == 2 * len(TARGETS)
    assert {entry.status for entry in golden.values()} == {"met"}


@pytest.mark.slow
def test_a_crashed_worker_loses_one_case_which_is_logged_with_its_reason(small_search: SmallSearch) -> None:
    """Nor does the case that killed it run again, and the group gets its winners without it."""
    small_search.register((4, 0), (5, ERROR), (7, DEATH), (10, 0))
    small_search.add_to_conftest(STEADY)
    result = small_search.run_apart("-n", "1", "--diffaccel-log", "logs/cases.jsonl")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines([f"*crashed while running*mishap={DEATH}*"])
    assert [candidate for candidate, purpose, _ in small_search.stored() if purpose == "search"] == [
        CASE(10, 0),
        CASE(4, 0),
    ]
    assert [(candidate, kind) for candidate, kind, _ in small_search.failures()] == [
        (CASE(5, ERROR), "error"),
        (CASE(7, DEATH), "interrupted"),
    ]
    assert len(read_golden(small_search.golden)) == len(TARGETS)
    log = (small_search.path / "logs" / "cases.jsonl").read_text(encoding="utf-8")
    by_case = {line["case"]: line for line in map(json.loads, log.splitlines())}
    failed, dead = by_case[CASE(5, ERROR)], by_case[CASE(7, DEATH)]
    assert (failed["outcome"], failed["reason"]) == ("failed", "RuntimeError: an accident in the third denoiser call")
    assert (dead["outcome"], dead["accelerator"]) == ("failed", "Echo")
    assert "crashed while running" in dead["reason"]
    assert by_case[CASE(10, 0)]["outcome"] == "passed"


# --- what the plugin costs others ------------------------------------------------------------------------------


def complaint(code: str, cwd: Path) -> str:
    """What code prints that fails in a process of its own; empty when it ends well."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, check=False, capture_output=True, text=True)
    return done.stdout + done.stderr or "failed" if done.returncode else ""


def test_an_unrelated_run_imports_next_to_nothing_to_its_very_end(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_unrelated(): pass")
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            ours = {f"pytest_diffaccel.{name}" for name in ("models", "records", "report")}
            print("imported:", {"torch", "pydantic", *ours} & set(sys.modules))
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["imported: set()"])


@pytest.mark.parametrize("module", ["pytest_diffaccel", "pytest_diffaccel.plugin.entry"])
def test_importing_the_plugin_imports_nothing_heavy(tmp_path: Path, module: str) -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'lpips', 'scipy'}"
    code = f"import sys, {module}; assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    assert not complaint(code, tmp_path)


@pytest.mark.parametrize("options", [(), ("-p", "no:diffaccel")])
def test_the_roots_conftest_needs_no_plugin(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    root = Path(__file__).resolve().parent.parent / "conftest.py"
    pytester.makeconftest(root.read_text(encoding="utf-8"))
    pytester.makepyfile("import sys\ndef test_no_torch(): assert 'torch' not in sys.modules")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


@pytest.mark.parametrize("command", [("--pyargs", "pytest_diffaccel.benches"), ("--update-golden",)])
def test_a_search_in_this_clone_is_free_of_what_its_tests_need_and_set(command: tuple[str, ...]) -> None:
    """pytest reads ``tests/conftest.py`` before it knows where the cases lie."""
    root = Path(__file__).resolve().parent.parent
    options = [*command, "--collect-only", "-q", "-p", "no:cacheprovider"]
    code = (
        "import os, sys; os.environ.pop('COLUMNS', None); before = dict(os.environ)\n"
        f"import pytest; assert pytest.main({options!r}) == 0\n"
        "changed = {name for name in os.environ if os.environ[name] != before.get(name)} - {'PYTEST_VERSION'}\n"
        "imported = {'torch', 'vl_convert'} & set(sys.modules)\n"
        "assert not changed | imported, changed | imported"
    )
    assert not complaint(code, root)


def test_an_unrelated_run_imports_no_torch_and_leaves_nothing_behind(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_no_torch(): assert 'torch' not in sys.modules")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    assert "diffaccel:" not in result.stdout.str()
    assert not (pytester.path / ".diffaccel").exists()
    assert not (pytester.path / "golden").exists()


def test_collecting_a_search_imports_nothing_heavy(small_search: SmallSearch) -> None:
    heavy = "{'torch', 'diffusers', 'scipy', 'numpy', 'sqlalchemy', 'pytest_diffaccel.records'} & {*sys.modules}"
    options = ["benches", *SMALL_OPTIONS, "--collect-only", "-q"]
    code = f"import sys, pytest; assert pytest.main({options!r}) == 0; assert not {heavy}, {heavy}"
    assert not complaint(code, small_search.path)


def test_public_names_come_from_the_package(tmp_path: Path) -> None:
    assert not complaint(
        "import pytest_diffaccel as package\n"
        "assert {'accelerate', 'load_pipeline', '__version__'} <= set(dir(package))\n"
        "try: package.magic\n"
        "except AttributeError as error: assert 'magic' in str(error)\n"
        "else: raise SystemExit('no error')\n",
        tmp_path,
    )


def test_benches_of_the_repository_collect_every_candidate(pytester: pytest.Pytester) -> None:
    """The full matrix: every candidate and every group once."""
    from pytest_diffaccel.accelerators.registry import default_registry
    from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, candidates, cells

    benches = TESTS.parent / "benches"
    result = pytester.runpytest_inprocess(str(benches), "--collect-only", "-q", "-p", "no:cacheprovider")
    names = [line.split("[", 1)[1].removesuffix("]") for line in result.outlines if "::test_search[" in line]
    matrix = cells(PIPES, SCHEDULERS, STEPS)
    assert names == [candidate.key for candidate in candidates(matrix, list(default_registry()))]
    assert sum("::test_winners[" in line for line in result.outlines) == 27 * 6
    assert result.duration < 30
