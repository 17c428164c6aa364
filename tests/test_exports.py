"""``diffaccel export`` and ``diffaccel compare``, on stores made by hand."""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from entries import ENVIRONMENT, MET
from test_store import SAMPLING, candidate, measurement

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement, Quality
from pytest_diffaccel.records.export_files import read_export
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.golden_file import write_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.store import Store

SCALED = replace(ENVIRONMENT, scale=QualityScale(0.0, 0.001, 0.002, 0.5))


def measured(interval: int = 2, **changes: Any) -> Measurement:
    return replace(measurement(interval, environment=ENVIRONMENT.id), **changes)


def store_of(path: Path, *measurements: Measurement) -> Path:
    with Store.open(path) as store:
        store.save_environment(SCALED)
        for one in measurements:
            store.save(one)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two measured candidates, one of them timed; one that failed; one skipped; and a skipped one measured later."""
    path = store_of(tmp_path / "search.sqlite", measured(2), measured(3, blocks=(), fired={}))
    with Store.open(path) as store:
        store.save_failure(candidate(4), ENVIRONMENT.id, SAMPLING, "oom", "out of memory, at batch size 4")
        params = {"DeepCache": {"cache_interval": 3}, "T-Gate": {"gate_step": 10}}
        mixed = Candidate(Cell("SD1.5", "DPM-Solver++", 20), "DeepCache and T-Gate", params)
        store.save_decision(mixed, ENVIRONMENT.id, SAMPLING, "predicted 1.1x: reaches no target")
        store.save_decision(candidate(2), ENVIRONMENT.id, SAMPLING, "cannot win, it seemed")
        store.save_group(candidate(2).cell, "DeepCache", ENVIRONMENT.id, SAMPLING, "done")
    return path


def exported(store: Path, name: str) -> list[dict[str, Any]]:
    target = store.parent / name
    assert main(["export", "--store", str(store), "-o", str(target)]) == 0
    return read_export(target)


def test_an_export_has_a_row_for_all_that_is_known(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = exported(store, "all.json")
    assert "4 rows: 2 measured, 1 failed, 1 skipped" in capsys.readouterr().out
    assert [row["status"] for row in rows] == ["measured", "measured", "failed", "skipped"]
    timed, predicted, failed, skipped = rows
    known = measured(2)
    assert (timed["candidate"], timed["steps"], timed["param_cache_interval"]) == (known.candidate.key, 20, 2)
    assert [timed[f"speedup{end}"] for end in ("", "_low", "_high")] == [1.7, 1.7 - 0.1, 1.7 + 0.1]
    assert (timed["psnr_db"], timed["ssim"], timed["peak_memory_mb"]) == (31.5, 0.97, 812.5)
    assert (timed["blocks"], timed["accelerated_s"], timed["fired_cached_steps"]) == (2, 0.1 + 0.2, 10)
    assert (timed["num_samples"], timed["seed"], timed["purpose"]) == (8, 2**40, "search")
    assert (timed["environment"], timed["model_source"]) == (ENVIRONMENT.id, ENVIRONMENT.model_source)
    assert (timed["lpips_noise_floor"], timed["created_at"] > "2026") == (0.002, True)
    assert (predicted["blocks"], predicted["accelerated_s"], predicted["fired_cached_steps"]) == (0, None, None)
    assert (failed["reason"], failed["speedup"]) == ("oom: out of memory, at batch size 4", None)
    assert (skipped["scheduler"], skipped["accelerator"]) == ("DPM-Solver++", "DeepCache and T-Gate")
    assert (skipped["param_gate_step"], skipped["param_cache_interval"]) == (10, 3)
    assert skipped["reason"] == "predicted 1.1x: reaches no target"


def test_all_formats_say_the_same(store: Path) -> None:
    pytest.importorskip("pyarrow")
    as_json = exported(store, "all.json")
    assert exported(store, "all.parquet") == as_json
    assert [{name: value or None for name, value in row.items()} for row in exported(store, "all.csv")] == [
        {name: value or None for name, value in row.items()} for row in as_json
    ]


def test_csv_goes_to_standard_output(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--store", str(store)]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["status"] for row in rows] == ["measured", "measured", "failed", "skipped"]


def test_parquet_without_pyarrow_names_the_extra(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", "--store", str(store), "-o", str(store.parent / "all.parquet")]) == 2
    assert "pip install 'pytest-diffaccel[export]'" in capsys.readouterr().err
    assert main(["export", "--store", str(store), "--format", "parquet"]) == 2
    assert "give a file with --output" in capsys.readouterr().err


def test_a_suffix_that_is_no_format_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = store.parent / "all.xlsx"
    assert main(["export", "--store", str(store), "-o", str(target)]) == 2
    assert ".xlsx is none of the formats, which are csv, parquet, json" in capsys.readouterr().err
    assert not target.exists()
    assert main(["export", "--store", str(store), "-o", str(target), "--format", "csv"]) == 0
    assert target.read_text(encoding="utf-8").startswith("status,")
    assert main(["export", "--store", str(store), "-o", str(store.parent / "ALL.JSON")]) == 0
    assert (store.parent / "ALL.JSON").read_text(encoding="utf-8").startswith("[")


def test_a_missing_store_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--store", str(tmp_path / "none.sqlite")]) == 2
    assert "there is no store" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Comparing


def quality(lpips: float, half: float = 0.005) -> Quality:
    return Quality(Interval(lpips, lpips - half, lpips + half), 31.5, 0.97, (lpips, lpips))


def speedup(value: float) -> Interval:
    return Interval(value, value / 1.05, value * 1.05)


def test_a_comparison_judges_by_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = range(2, 8)
    old = [measured(name, speedup=speedup(2.0), quality=quality(0.04)) for name in names]
    new = [
        measured(2, speedup=speedup(2.1), quality=quality(0.045)),
        measured(3, speedup=speedup(1.5), quality=quality(0.04)),
        measured(4, speedup=speedup(3.0), quality=quality(0.06)),
        measured(5, speedup=speedup(2.0), quality=quality(0.02)),
        measured(6, speedup=speedup(2.0), quality=quality(0.04), sampling=replace(SAMPLING, seed=1)),
    ]
    before, after = store_of(tmp_path / "a.sqlite", *old), store_of(tmp_path / "b.sqlite", *new)
    assert main(["compare", str(before), str(after)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "4 compared: 1 better, 1 faster, worse, 1 same, 1 slower",
        "not compared: 2 only in A, 1 only in B",
    ]
    said = {line.split("cache_interval=")[1][0]: " ".join(line.split()) for line in lines[1:-2]}
    assert {name: line.rpartition(" 0.0")[2].partition(" ")[2] for name, line in said.items()} == {
        "3": "slower",
        "4": "faster, worse",
        "5": "better",
    }
    # Independent errors of 5% each: a factor of exp(sqrt(2) * log(1.05)) = 1.0714 around 1.5 / 2.
    assert "2.00x -> 1.50x 0.750 [0.700, 0.804]" in said["3"]
    assert main(["compare", str(before), str(after), "--fail-on", "regressed"]) == 1
    assert main(["compare", str(before), str(before), "--fail-on", "regressed"]) == 0


def test_the_ratio_decides_where_the_two_intervals_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2.00x and 2.16x, 5% each, have 2.06x to 2.10x in common; their ratio is 1.01 to 1.16."""
    before = store_of(tmp_path / "a.sqlite", measured(speedup=speedup(2.0)), measured(3, speedup=speedup(2.0)))
    after = store_of(tmp_path / "b.sqlite", measured(speedup=speedup(2.16)), measured(3, speedup=speedup(2.12)))
    assert main(["compare", str(before), str(after)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2.00x -> 2.16x 1.080 [1.008, 1.157]" in " ".join(lines[1].split())
    assert lines[-1] == "2 compared: 1 faster, 1 same"


def test_what_the_noise_floor_explains_is_no_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However narrow an interval is, the environment knows what rounding alone moves."""
    before = store_of(
        tmp_path / "a.sqlite", measured(quality=quality(0.04, 0.0)), measured(3, quality=quality(0.04, 0))
    )
    after = store_of(
        tmp_path / "b.sqlite", measured(quality=quality(0.0415, 0.0)), measured(3, quality=quality(0.05, 0))
    )
    assert main(["compare", str(before), str(after), "--fail-on", "regressed"]) == 1
    assert "2 compared: 1 same, 1 worse" in capsys.readouterr().out


def test_stores_exports_and_golden_files_compare(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(store, "all.csv")
    assert main(["compare", str(store), str(store.parent / "all.csv")]) == 0
    assert "2 compared: 2 same" in capsys.readouterr().out
    key = GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
    golden = {name: store.parent / f"{name}.json" for name in ("old", "new")}
    write_golden(golden["old"], {key: MET})
    write_golden(golden["new"], {key: replace(MET, speedup=1.5, speedup_ci95=(1.48, 1.52))})
    assert main(["compare", *map(str, golden.values()), "--fail-on", "regressed"]) == 1
    assert "1 compared: 1 slower" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nosuch.json", "nosuch.csv", "nosuch"])
def test_what_is_not_there_is_named(
    store: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    assert main(["compare", str(store), name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffaccel: there is no ")
    assert name in said
    assert "Errno" not in said


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"[1, 2"), ("a.csv", b"candidate\xff\n"), ("a.json", b"\xff")]
)
def test_what_cannot_be_read_is_told(
    store: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    Path(name).write_bytes(content)
    assert main(["compare", str(store), name]) == 2
    assert capsys.readouterr().err.startswith(f"diffaccel: {name}")


def test_an_export_that_a_spreadsheet_saved_compares(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(store, "all.csv")
    file = store.parent / "all.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert main(["compare", str(store), str(file)]) == 0
    assert "2 compared: 2 same" in capsys.readouterr().out


def test_a_column_that_is_gone_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(store, "all.csv")
    file = store.parent / "all.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("speedup_low", "low", 1), encoding="utf-8")
    assert main(["compare", str(store), str(file)]) == 2
    assert "has no column 'speedup_low'; compare what" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--store", str(store), "-o", str(store / "all.csv")]) == 2
    assert capsys.readouterr().err == f"diffaccel: {store / 'all.csv'}: Not a directory\n"


def test_a_store_that_lost_a_table_is_told_by_export_and_report(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TABLE diffaccel_failures")
    for command in ("export", "report"):
        assert main([command, "--store", str(store)]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert "has lost diffaccel_failures" in said[0]


def test_nothing_in_common_is_an_error(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = store_of(store.parent / "other.sqlite", measured(9))
    assert main(["compare", str(store), str(other), "--fail-on", "regressed"]) == 2
    assert "nothing to compare: of 2 and 1 measurements none are of the same candidate" in capsys.readouterr().err
    (store.parent / "no.json").write_text(json.dumps([1]))
    assert main(["compare", str(store), str(store.parent / "no.json")]) == 2
    assert "is no export" in capsys.readouterr().err
