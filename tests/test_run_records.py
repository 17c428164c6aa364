"""What a run leaves for other tools: JSON lines, properties in JUnit XML, files of pytest-benchmark."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from entries import ENVIRONMENT, MET
from found import CELL, FIGURES, PARAMS
from searches import SmallSearch
from timings import STEADY

from pytest_diffaccel.gate.verdict import Finding, GateVerdict, Verdict
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.plugin.case_results import put_result, result_of
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.gate_sessions import GateSession, MetricSamples, Speed
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.case_log import CaseLog, log_case
from pytest_diffaccel.report.progress import EndedCase
from pytest_diffaccel.report.properties import plain_properties
from pytest_diffaccel.report.sent_results import CaseResult, dump, parse
from pytest_diffaccel.report.step_summary import write_step_summary
from pytest_diffaccel.search.news import Calibration, News
from pytest_diffaccel.search.results import (
    Broken,
    CellWinners,
    Chosen,
    Decided,
    Measured,
    Refusal,
    Skipped,
    Verified,
    Winners,
)

RECORDS = ("--junitxml", "junit.xml", "--diffaccel-log", "logs/cases.jsonl", "--benchmark-json", "benchmark.json")
POINTS = ((10, 0), (20, 0))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def junit(path: Path) -> dict[str, dict[str, str]]:
    """Properties of each test case, by the test's name."""
    return {
        str(case.get("name")): {str(made.get("name")): str(made.get("value")) for made in case.iter("property")}
        for case in ElementTree.parse(path).iter("testcase")
    }


def test_properties_are_plain() -> None:
    found = dict(plain_properties(Measured(FIGURES, stored=False)))
    assert (found["status"], found["speedup"], found["speedup_ci95"]) == ("measured", "1.23457", "[1.2, 1.25]")
    assert found["fired"] == "cached_steps=10, denoiser_calls=20"
    assert found.keys() == {
        *("status", "cell", "accelerator", "candidate", "speedup", "speedup_ci95", "wall_speedup", "wall_speedup_ci95"),
        *("lpips", "lpips_ci95", "psnr_db", "ssim", "peak_memory_mb", "fired", "num_samples", "environment"),
    }
    assert dict(plain_properties(Measured(FIGURES, stored=True)))["status"] == "stored"
    place = {"cell": "SD1.5-DDIM-20", "accelerator": "DeepCache"}
    assert dict(plain_properties(Broken(CELL, "DeepCache"))) == {"status": "unfinished", **place}
    skipped = dict(plain_properties(Skipped(FIGURES.candidate, "too slow")))
    assert skipped == {"status": "skipped", **place, "candidate": FIGURES.candidate.key, "evidence": "too slow"}


def test_properties_of_a_gate_name_the_metric() -> None:
    by_lpips = Finding("quality", "ok", "LPIPS 0.02 instead of 0.02", 0.0, (0.0, 0.0))
    by_psnr = Finding("quality", "regressed", "psnr 28 dB instead of 31 dB", -0.1, (-0.11, -0.09), "psnr")
    verdict = Verdict((by_lpips, by_psnr), figures=(("lpips", 0.02), ("metric_psnr", 28.0)))
    found = dict(plain_properties(GateVerdict(CELL, FIGURES.candidate, "a", (1.5,), verdict)))
    assert found == {
        "gate_status": "regressed",
        "lpips": "0.02",
        "metric_psnr": "28",
        "quality_status": "ok",
        "quality_text": by_lpips.text,
        "quality_change": "0",
        "quality_change_ci95": "[0, 0]",
        "metric_psnr_status": "regressed",
        "metric_psnr_text": by_psnr.text,
        "metric_psnr_change": "-0.1",
        "metric_psnr_change_ci95": "[-0.11, -0.09]",
    }


KEY = GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
OF_CELL = CellWinners(
    decided=(Decided(KEY, MET, "images/a"), Decided(replace(KEY, target=1.2), MET, None)),
    undecided=(Chosen(replace(KEY, target=4.0), PARAMS, Interval(3.9, 3.5, math.inf), 0.2),),
    verified=(Verified(FIGURES, "launch"), Verified(FIGURES, None)),
    environment=replace(ENVIRONMENT, scale=QualityScale(0.0, 1e-8, 6e-8, 0.165)),
    baseline="images/b",
    prompts=("red apple", "a ]]> <b>"),
)
NEWS = News({"timing": 1.5}, {"SD1.5": Calibration(4, 9.6, math.inf, 1.43, 20, 0.55, 1.0)})
SESSION = replace(
    GateSession(0.4, 0.01, 5.0, 0.01, 1.0, (0.1,), 0, "a digest", MET.environment),
    host=Speed(0.3, 0.01, 5.0, 0.02, 1.0),
    metrics={"psnr": MetricSamples("psnr", (31.5,))},
)
VERDICT = Verdict((Finding("speed", "regressed", "3% slower", 0.03, (0.02, 0.04)),), ("torch",), (), (("power", 0.9),))
RESULTS = (
    Measured(FIGURES, stored=True, news=NEWS),
    Skipped(FIGURES.candidate, "too slow"),
    Winners(CELL, "DeepCache", OF_CELL.undecided, 3, 1, ("a: failed",), None, OF_CELL, NEWS),
    Winners(CELL, "DeepCache", refused=Refusal("unfit", "it has no mid block")),
    Broken(CELL, case="SD1.5-DDIM-20-baseline"),
    GateVerdict(CELL, FIGURES.candidate, FIGURES.candidate.key, (1.5,), VERDICT, (0.5,), {"a": SESSION}, 2.5),
    GateVerdict(CELL, None, "SD1.5-DDIM-20-baseline", (), VERDICT),
)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_reaches_the_controller_as_it_was_sent(result: CaseResult) -> None:
    assert parse(dump(result)) == result


UNSPEAKABLE = "no such file: \udcff.bin"


def test_messages_with_file_names_that_are_no_utf8_reach_the_controller_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    found = parse(dump(Winners(CELL, "DeepCache", failed=(UNSPEAKABLE,), left=1)))
    assert found == Winners(CELL, "DeepCache", failed=("no such file: ?.bin",), left=1)
    case = EndedCase("test_search[x]", "failed", 0.25, "", UNSPEAKABLE)
    CaseLog(tmp_path / "cases.jsonl").write(case, "x", Broken(CELL, "DeepCache"))
    assert lines(tmp_path / "cases.jsonl")[0]["reason"] == UNSPEAKABLE
    log_case(case, Broken(CELL, "DeepCache"))
    (log,) = (tmp_path / ".diffaccel").rglob("*.log")
    assert r"no such file: \udcff.bin" in log.read_text(encoding="utf-8")
    write_step_summary([UNSPEAKABLE])
    assert "no such file" in (tmp_path / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{}", '{"kind": "another"}', '{"kind": "skipped", "evidence": "slow"}'])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"kind|candidate"):
        parse(text)


def test_a_result_of_another_version_ends_the_session_in_words() -> None:
    report = pytest.TestReport("benches/a.py::test_search[x]", ("a.py", 1, ""), {}, "passed", None, "call")
    assert result_of(report) is None
    vars(report)["diffaccel_result"] = '{"kind": "measured", "speedup": 1.5}'
    with pytest.raises(pytest.exit.Exception, match=r"test_search\[x\] cannot be read.* install one wherever"):
        result_of(report)


def test_a_tests_own_properties_stay_whatever_they_are_called() -> None:
    item = SimpleNamespace(stash=pytest.Stash(), user_properties=[("evidence", "mine"), ("weather", "fine")])
    for result in (Broken(CELL, "DeepCache"), Skipped(FIGURES.candidate, "too slow")):
        put_result(cast("pytest.Item", item), result)
    item.user_properties.append(("status", "mine"))
    put_result(cast("pytest.Item", item), Measured(FIGURES, stored=False))
    own = [("evidence", "mine"), ("weather", "fine"), ("status", "mine")]
    assert [pair for pair in item.user_properties if pair in own] == own
    assert [value for name, value in item.user_properties if name == "status"] == ["mine", "measured"]
    assert [name for name, _ in item.user_properties].count("diffaccel") == 1


def test_other_tools_see_names_and_shapes_that_stay() -> None:
    """Those of docs/records.md: what reads a log or a property goes on doing so."""
    shown = [result.to_json() for result in RESULTS]
    figures = {"candidate", "params", "speedup", "speedup_ci95", "wall_speedup", "wall_speedup_ci95", "rounds_s"}
    figures |= {"estimates_agree", "lpips", "lpips_ci95", "psnr_db", "ssim", "fired", "peak_memory_mb", "num_samples"}
    place, news = {"cell", "accelerator"}, {"phases_s", "calibrated"}
    of_cell = {"golden", "undecided", "verified", "environments", "pictures", "baseline", "prompts"}
    winners = {"provisional", "explored", "left", "failed", "phases_s"}
    gate = {"params", "case", "targets", "verdict", "text", "rounds_s", "sessions", "seconds"}
    assert [row.keys() for row in shown] == [
        place | figures | news | {"environment", "stored"},
        place | {"skipped", "evidence"},
        place | winners | of_cell | news,
        place | winners | {"refused", "unfinished", "unfit"},
        {"cell", "case"},
        place | gate,
        place | gate,
    ]
    measured, _, finished, unfit, _, judged, _ = shown
    assert judged["sessions"]["a"]["metrics"] == {"psnr": {"identity": "psnr", "values": (31.5,)}}
    assert (measured["cell"], measured["speedup_ci95"]) == ("SD1.5-DDIM-20", [1.2, 1.25])
    assert finished["golden"] == dict.fromkeys([str(KEY), str(replace(KEY, target=1.2))], MET.to_json())
    assert finished["pictures"] == {str(KEY): "images/a"}
    assert finished["undecided"][0]["key"] == str(replace(KEY, target=4.0))
    assert [winner["bound"] for winner in finished["verified"]] == ["launch", None]
    assert (unfit["refused"], unfit["unfit"], unfit["unfinished"]) == ("it has no mid block", True, False)
    assert (judged["verdict"]["status"], judged["verdict"]["figures"]) == ("regressed", {"power": 0.9})


def test_a_log_grows_by_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cases.jsonl"
    for evidence in ("first run", "second run"):
        log = CaseLog(path)
        case = EndedCase("test_search[x]", "skipped", 0.25, "gw1", evidence)
        log.write(case, "x", Skipped(FIGURES.candidate, evidence))
    written = lines(path)
    assert [line["reason"] for line in written] == ["first run", "second run"]
    assert (written[0]["version"], written[0]["case"], written[0]["duration_s"]) == (1, "x", 0.25)
    assert written[0]["worker"] == "gw1"
    ended = [datetime.fromisoformat(line["ended_at"]) for line in written]
    assert ended[0] <= ended[1]
    assert abs(datetime.now(timezone.utc) - ended[1]) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["one process", "xdist"]
)
def test_a_run_leaves_records_for_other_tools(steady_search: SmallSearch, workers: tuple[str, ...]) -> None:
    steady_search.register(*POINTS)
    if workers:
        steady_search.add_to_conftest(STEADY)
    run = steady_search.run_apart if workers else steady_search.run
    run(*RECORDS, *workers).assert_outcomes(passed=3)
    folder = steady_search.path
    written = lines(folder / "logs" / "cases.jsonl")
    _check_log(written)
    assert {line["worker"] for line in written} == {"gw0" if workers else None}
    properties = junit(folder / "junit.xml")
    assert [part["status"] for part in properties.values()] == ["measured", "measured", "winners"]
    assert {part["accelerator"] for part in properties.values()} == {"Echo"}
    assert all(float(part["speedup"]) > 1 for part in list(properties.values())[:2])
    _check_benchmarks(folder / "benchmark.json")


def _check_log(written: list[dict[str, Any]]) -> None:
    assert [line["outcome"] for line in written] == ["passed"] * 3
    assert [line.get("candidate") for line in written[:2]] == [line["case"] for line in written[:2]]
    assert all(line["speedup"] > 1 and line["lpips"] >= 0 and line["duration_s"] > 0 for line in written[:2])
    assert {entry["status"] for entry in written[2]["winners"].values()} == {"met"}


def _check_benchmarks(path: Path) -> None:
    benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    own = [entry for entry in benchmarks if "test_search" in entry["name"]]
    assert [entry["params"]["echo_interval"] for entry in own] == [10, 20]
    assert any("test_winners" in entry["name"] for entry in benchmarks)
    for entry in benchmarks:
        assert entry["fullname"] == f"benches/test_search.py::{entry['name']}"
        assert entry["stats"]["rounds"] == len(entry["stats"]["data"]) >= 1
        assert entry["stats"]["min"] == min(entry["stats"]["data"]) > 0
        assert entry["extra_info"]["speedup"] > 1
        assert entry["extra_info"]["lpips"] >= 0


def test_pytest_benchmark_compares_two_runs(finished_search: SmallSearch) -> None:
    """Its own storage and its own command; what was stored before still has its rounds."""
    for name in ("before", "after"):
        finished_search.run("--benchmark-save", name, "--benchmark-storage", "saved").assert_outcomes(passed=4)
    files = sorted((finished_search.path / "saved").glob("*/*.json"))
    assert [path.name for path in files] == ["0001_before.json", "0002_after.json"]
    command = [sys.executable, "-m", "pytest_benchmark", "compare", *map(str, files), "--group-by", "fullname"]
    done = subprocess.run(command, cwd=finished_search.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"test_search\[.*echo_interval=10.* \(\S*0001_before\)", done.stdout)) == 1
    assert len(re.findall(r"test_search\[.*echo_interval=10.* \(\S*0002_after\)", done.stdout)) == 1


def test_pytest_benchmark_compares_a_run_with_a_saved_one(finished_search: SmallSearch) -> None:
    saved = ("--benchmark-storage", "saved")
    finished_search.run("--benchmark-autosave", *saved).assert_outcomes(passed=4)
    result = finished_search.run("--benchmark-compare", "--benchmark-compare-fail", "mean:10%", *saved)
    result.assert_outcomes(passed=4)  # nothing was measured again: the times are the same
    assert re.findall(r"test_search\[.*echo_interval=10,.* \((NOW|0001)", result.stdout.str()) in (
        ["NOW", "0001"],
        ["0001", "NOW"],
    )


@pytest.mark.parametrize("asked", [("--benchmark-json", "benchmark.json"), ()], ids=["asked", "not asked"])
def test_pytest_benchmark_shows_a_table_where_it_is_asked(finished_search: SmallSearch, asked: tuple[str, ...]) -> None:
    result = finished_search.run(*asked)
    result.assert_outcomes(passed=4)
    shown = {name for name in ("Name (time in", "Outliers", "OPS") if name in result.stdout.str()}
    assert shown == ({"Name (time in", "Outliers", "OPS"} if asked else set())


def test_a_case_that_another_plugin_runs_again_is_taken_once(steady_search: SmallSearch) -> None:
    """As pytest-rerunfailures tells of what it runs again."""
    steady_search.register(*POINTS)
    steady_search.add_to_conftest(
        """
from copy import copy
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "call":
        again = copy(report)
        again.outcome = "rerun"
        item.ihook.pytest_runtest_logreport(report=again)
    return report
"""
    )
    steady_search.run(*RECORDS).assert_outcomes(passed=3)
    _check_log(lines(steady_search.path / "logs" / "cases.jsonl"))


def test_a_log_that_cannot_be_written_is_refused_at_the_start(small_search: SmallSearch) -> None:
    result = small_search.run("--diffaccel-log", "conftest.py/cases.jsonl")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --diffaccel-log: *conftest.py*"])
