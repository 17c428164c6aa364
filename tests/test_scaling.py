"""The comparison of searches on several GPUs, on stand-ins."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from searches import SMALL_OPTIONS, SMALL_SEARCH, TESTS, SmallSearch
from standins import THREE, StandIns
from timings import STEADY

from pytest_diffaccel.measure.measurement import Interval

pytest.importorskip("benchmarks.scaling", reason="the benchmarks are not part of the source distribution")

from benchmarks import scaling
from benchmarks.output import needed

# What a conftest.py would do, as a plugin: the searches have folders of their own.
PLUGIN = """
from pytest_diffaccel.search import pipelines
pipelines.computing_gpu = lambda gpu: gpu.physical
"""


def finish(folder: Path, gpus: int, seconds: float) -> None:
    """Leave what a search does that began at 1000 s; its first worker is done first."""
    (folder / "finished.json").write_text(json.dumps({"gpus": gpus, "began_at": 1000.0, "seconds": seconds}))
    ends = {f"gw{place}": 1000 + seconds - 2 * (gpus - 1 - place) for place in range(gpus)}
    cases = (
        {"case": case, "worker": worker, "duration_s": 3.0, "ended_at": f"{datetime.fromtimestamp(end, timezone.utc)}"}
        for worker, ended_at in ends.items()
        for case, end in (("first", ended_at - 6), ("last", ended_at))
    )
    (folder / "cases.jsonl").write_text("".join(f"{json.dumps(case)}\n" for case in cases))


@pytest.fixture
def searched(finished_folder: Path, tmp_path: Path, stand_ins: StandIns) -> Path:
    """A folder of searches on one GPU and on two, of which the second found another winner for one target."""
    stand_ins.list_gpus(THREE)
    folder = tmp_path / "searches"
    for gpus, seconds in ((1, 30.0), (2, 16.0)):
        one = folder / str(gpus)
        shutil.copytree(finished_folder / ".diffaccel", one / ".diffaccel")
        shutil.copy(finished_folder / "golden" / "search_params.json", one / "golden.json")
        finish(one, gpus, seconds)
    golden = folder / "2" / "golden.json"
    head, tail = golden.read_text().split('"echo_interval": ', 1)
    golden.write_text(f'{head}"echo_interval": 99{tail[tail.index(",") :]}')
    (folder / "options.json").write_text(json.dumps(["--pipe", "SD1.5"]))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments])
    scaling.main()


def test_what_is_finished_is_compared_and_not_searched_again(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "_pytest", lambda *_, **__: pytest.fail("searched again"))
    output = searched / "scaling.json"
    command = ("--folder", str(searched), "--gpus-counts", "1,2", "--output", str(output))
    run(monkeypatch, *command, "--json", "--", "--pipe", "SD1.5")
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    alone, two = printed["rows"]
    assert (alone["gpus"], alone["seconds"], alone["speedup"]) == (1, 30.0, 1.0)
    assert (two["gpus"], two["seconds"], two["speedup"]) == (2, 16.0, 30 / 16)
    assert (alone["same_winners"], two["same_winners"]) == ("7/7", "6/7")
    assert alone["winners"] != two["winners"]
    assert len(printed["other_winners"]["2"]) == 1
    # The same measurements.
    assert two["timed_twice"] >= 4
    assert (two["agree"], two["median_change"], two["baseline_slowdown"]) == (1.0, 0.0, 1.0)
    # Of three winners, the second search has another one.
    assert two["recorded_twice"] >= 1
    assert (two["recorded_agree"], two["recorded_distance"]) == (1.0, 0.0)
    # Two workers, which end at 14 and 16 s, each 9 s after it began.
    assert (two["start_s"], two["work_s"], two["idle_s"]) == (6.0, 18.0, 1.0)
    written = json.loads(output.read_text())
    assert written["rows"] == printed["rows"]
    assert written["environment"]["versions"].keys() >= {"torch", "diffusers"}


def test_the_table_has_a_column_a_search(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--folder", str(searched), "--gpus-counts", "1,2", "--", "--pipe", "SD1.5")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["search", "1", "2"] in lines
    assert ["seconds", "30.000", "16.000"] in lines
    assert ["same_winners", "7/7", "6/7"] in lines


def test_what_is_missing_is_searched_in_the_order_given(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def search(folder: Path, gpus: int, options: list[str]) -> None:
        done.append((folder.name, gpus, options))
        finish(folder, gpus, 9.0)

    for gpus in ("1", "2"):
        (searched / gpus / "finished.json").unlink()
    monkeypatch.setattr(scaling, "warm_up", lambda *_: done.append("warm"))
    monkeypatch.setattr(scaling, "search", search)
    run(monkeypatch, "--folder", str(searched), "--gpus-counts", "2,1", "--", "--pipe", "SD1.5")
    options = ["--pipe", "SD1.5"]
    assert done == ["warm", ("2", 2, options), ("1", 1, options)]


def test_a_number_named_twice_is_searched_on_twice_and_compared(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(folder: Path, gpus: int, _: list[str]) -> None:
        shutil.copytree(searched / "1", folder)
        finish(folder, gpus, 29.0)

    monkeypatch.setattr(scaling, "warm_up", lambda *_: None)
    monkeypatch.setattr(scaling, "search", search)
    command = ["--folder", str(searched), "--json", "--gpus-counts"]
    run(monkeypatch, *command, "1,2,1", "--", "--pipe", "SD1.5")
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [(row["search"], row["gpus"], row["seconds"]) for row in printed["rows"]] == [
        ("1", 1, 30.0),
        ("1-again", 1, 29.0),
        ("2", 2, 16.0),
    ]
    assert printed["rows"][1]["speedup"] == 30 / 29
    assert printed["other_winners"]["1-again"] == []
    assert printed["other_speedups"]["1-again"] == {}
    with pytest.raises(SystemExit, match="--gpus-counts: 1 comes three times"):
        run(monkeypatch, *command, "1,1,1", "--", "--pipe", "SD1.5")


def test_a_change_of_speedups_is_seen(searched: Path) -> None:
    alone, two = (scaling.Searched.read(searched / name) for name in ("1", "2"))

    def times(factor: int, one: Interval) -> Interval:
        return Interval(*(factor * end for end in (one.value, one.low, one.high)))

    faster = {key: times(30, one) for key, one in two.speedups.items()}
    recorded = {key: times(30, one) for key, one in two.recorded.items()}
    busy = replace(two, speedups=faster, recorded=recorded, baseline_s=1.1 * two.baseline_s)
    row = scaling.row(busy, alone)
    assert row["recorded_distance"] == pytest.approx(29.0)
    assert row["recorded_agree"] < 1
    assert row["median_change"] == pytest.approx(29.0)
    assert row["baseline_slowdown"] == pytest.approx(1.1)
    assert row["agree"] < 1
    apart = scaling.disagreeing(replace(two, speedups=faster), alone)
    assert len(apart) == round((1 - row["agree"]) * row["timed_twice"])
    for (low, value, high), (low_after, value_after, high_after) in apart.values():
        assert (low_after, value_after, high_after) == pytest.approx((30 * low, 30 * value, 30 * high), abs=3e-3)


def test_a_workers_work_begins_with_its_first_timed_block(tmp_path: Path) -> None:
    finish(tmp_path, 2, 16.0)
    times = scaling.WorkerTimes.read(tmp_path / "cases.jsonl", 1000.0, {"last": 1008.5, "another": 1001.0})
    assert (times.start_s, times.work_s, times.idle_s) == (6.0, 18.0, 1.0)
    times = scaling.WorkerTimes.read(tmp_path / "cases.jsonl", 1000.0, {"first": 1007.5})
    assert (times.start_s, times.work_s, times.idle_s) == (7.5, 15.0, 1.0)


def test_other_options_and_missing_gpus_are_refused(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"holds another search \(options.json says which\)"):
        run(monkeypatch, "--folder", str(searched), "--", "--pipe", "SDXL")
    with pytest.raises(SystemExit, match=r"--gpus-counts: 3 GPU\(s\) can be used here; ask for 1 to 3"):
        run(monkeypatch, "--folder", str(searched), "--gpus-counts", "1,4", "--", "--pipe", "SD1.5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match=r"^no GPU can be used here \(CUDA_VISIBLE_DEVICES .*\)$"):
        run(monkeypatch, "--folder", str(searched), "--", "--pipe", "SD1.5")


@pytest.mark.slow
def test_a_search_runs_from_nothing(
    small_search: SmallSearch, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_ins.list_gpus(THREE)
    plugin = SMALL_SEARCH.format(tests=str(TESTS), points=((10, 0), (20, 0)), replies=()) + STEADY + PLUGIN
    (small_search.path / "scaling_stand_in.py").write_text(plugin)
    monkeypatch.setenv("PYTHONPATH", str(small_search.path))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-v")  # must not change what is listed
    options = ["-p", "scaling_stand_in", *SMALL_OPTIONS, "--models", str(small_search.path / "models.toml")]
    run(monkeypatch, "--gpus-counts", "1", "--folder", "searches", "--json", "--", *options)
    said = capfd.readouterr()
    (row,) = json.loads(said.out)["rows"]
    assert (row["gpus"], row["same_winners"]) == (1, "7/7")
    assert row["seconds"] > 1
    assert row["start_s"] + row["work_s"] < row["seconds"]
    assert min(row["start_s"], row["work_s"]) > 0 == row["idle_s"]
    assert said.err.count(" passed in ") == 2
    assert "1 passed in " in said.err
    assert (small_search.path / "searches" / "1" / ".diffaccel" / "search.sqlite").exists()


def test_a_benchmark_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit, match=r"needs pyarrow: pip install -e '\.\[benchmarks\]'"):
        needed("pyarrow.parquet")
