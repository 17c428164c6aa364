"""``diffaccel explain``: what it says of a winner, of a target out of reach, and of what it does not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from entries import MET
from recorded import CELL, HOSTILE, RecordedSearch, environment

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.deciding import QualityRule
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import write_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.report.html.content.cells import cells_of


@pytest.fixture
def search(tmp_path: Path) -> RecordedSearch:
    made = RecordedSearch(tmp_path)
    made.fill()
    made.golden.parent.mkdir()
    return made


def explained(search: RecordedSearch, key: str, capsys: pytest.CaptureFixture[str]) -> str:
    status = main(["explain", key, "--store", str(search.store), "--golden", str(search.golden)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


@pytest.mark.parametrize("key", ["SD1.5, DDIM, 20 steps, DeepCache, 1.5x", "('SD1.5', 'DDIM', 20, 'DeepCache', 1.5)"])
def test_a_winner_is_explained_by_its_contenders(
    search: RecordedSearch, key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = explained(search, key, capsys)
    lines = said.splitlines()
    assert lines[0] == "SD1.5 DDIM 20 steps, DeepCache, 1.5x"
    assert lines[1].startswith("winner: cache_interval=")
    assert "x, LPIPS " in lines[2]
    assert any(line.startswith("surely fast enough: ") for line in lines)
    assert any(line.startswith("  contender: cache_interval=") for line in lines)
    assert "passed over without being measured: 1" in lines
    passed_over = f"1: cache_interval=9, cache_branch_id=9: predicted 1.01x: {HOSTILE}"
    assert "".join(passed_over.split()) in "".join(said.split())
    assert "failed without being measured: 1" in lines
    assert max(len(line) for line in lines if str(search.path) not in line) <= 80  # a path stays whole


def test_a_target_out_of_reach_is_explained_by_what_comes_nearest(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = explained(search, "SD1.5, DDIM, 20 steps, DeepCache, 4x", capsys).splitlines()
    assert lines[1].startswith(("unattainable: ", "undecided: "))
    assert any(line.startswith("not surely fast enough: ") for line in lines)


def test_what_a_bound_barred_is_named_with_the_reason(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    metric = {"clip_score": GoldenMetric(28.1, (27.2, 29.1), -0.012, (-0.02, -0.004))}
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        won = record.winners["DeepCache"].entries[1.5]
        barred = next(key for key, speedup in record.speedups.items() if speedup.low > 1.5 and not _is_of(won, key))
        entries = {**record.winners["DeepCache"].entries, 1.5: replace(won, metrics=metric)}
        why = "breaks clip_score=-5%: -8.0% [-9.0%, -7.0%]"
        store.save_winners(replace(record.winners["DeepCache"], entries=entries, barred={barred: why}))
        (record,) = cells_of(store.contents())
    assert record.barred == {barred: why}
    said = explained(search, "SD1.5, DDIM, 20 steps, DeepCache, 1.5x", capsys).splitlines()
    (line,) = [line for line in said if line.startswith("  cannot win: cache_interval=")]
    assert line.endswith(f"; it {why}")
    assert "  clip_score 28.1 [27.2, 29.1], -1.2% [-2.0%, -0.4%]" in said


def _is_of(entry: GoldenEntry, key: str) -> bool:
    return key == Candidate(CELL, "DeepCache", entry.params).key


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "SDXL, DDIM, 20 steps, DeepCache, 2x",
            "pytest benches --pipe SDXL --sched DDIM --steps 20 --search-targets DeepCache\n",
        ),
        ("FLUX.1, flow match euler, 28 steps, MagCache, 2x", "pytest benches --pipe FLUX.1 --sched FlowMatchEuler"),
        ("SD1.5, DDIM, 20 steps, ToMe, 2x", "the store holds no candidate of SD1.5-DDIM-20 ToMe"),
        ("SD1.5, DDIM, 20 steps", "speed"),
    ],
)
def test_what_is_not_known_is_said(
    search: RecordedSearch, key: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", key, "--store", str(search.store)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (1.5, "it is not known well enough whether a candidate reaches it"),
        (4.0, "nothing measured reaches it, and points that were not measured may"),
    ],
)
def test_why_a_target_is_undecided_is_said(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], target: float, said: str
) -> None:
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        won = record.winners["DeepCache"]
        store.save_winners(replace(won, entries={one: e for one, e in won.entries.items() if one != target}))
    lines = explained(search, f"SD1.5, DDIM, 20 steps, DeepCache, {target}x", capsys).splitlines()
    assert lines[1] == f"undecided: {said}"


def test_figures_name_their_source_and_what_golden_says_instead(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden keeps what was recorded first, the store what the last search found."""
    monkeypatch.setenv("COLUMNS", "1000")
    key = GoldenKey(CELL, "DeepCache", 1.5)
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
    found = record.entries[key].rounded()
    store_line = f"all of this is what the last search found that used {search.store}"
    golden = f"golden ({search.golden}), which diffaccel show prints, "
    for in_golden, said in (
        (None, "has no record of it"),
        (found, "says the same"),
        (
            replace(found, lpips=0.2, lpips_ci95=(0.1, 0.3), beats_fewer_steps=None, fewer_steps=None),
            "says otherwise: ",
        ),
    ):
        if in_golden is not None:
            write_golden(search.golden.resolve(), {key: in_golden}, {found.environment: environment()})
        *_, where, last = explained(search, str(key), capsys).splitlines()
        assert where == store_line
        assert last.startswith(f"{golden}{said}")
    assert "LPIPS 0.200 [0.100, 0.300]" in last
    assert last.endswith("; an earlier search's record, which stays until a search with --update-golden finds another")
    assert main(["show", "--golden", str(search.golden)]) == 0
    assert f"of golden ({search.golden}), which keeps a record until --update-golden" in capsys.readouterr().out


def test_what_another_metric_decided_in_golden_is_said(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    key = GoldenKey(CELL, "DeepCache", 1.5)
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
    decided = {"quality": "psnr", "metrics": {"psnr": GoldenMetric(20.1626)}, "selection_lpips": None}
    found = replace(record.entries[key], fewer_steps=None, beats_fewer_steps=None, rule="diffbench", **decided)
    write_golden(search.golden.resolve(), {key: found}, {found.environment: environment()})
    assert "; decided by psnr 20.16; by DiffBench's rule; " in explained(search, str(key), capsys).splitlines()[-1]


def test_what_lacks_the_metric_that_decided_is_not_called_too_bad(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of this store has SSIM: a search by it lets others' measurements lie."""
    monkeypatch.setenv("COLUMNS", "1000")
    rule = QualityRule("ssim", 0.5, higher_is_better=True)
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        store.save_winners(replace(record.winners["DeepCache"], quality=rule))
    said = explained(search, "SD1.5, DDIM, 20 steps, DeepCache, 1.5x", capsys)
    (line,) = [line for line in said.splitlines() if line.startswith("surely fast enough: ")]
    assert "cannot win" not in line
    assert line.endswith(" of them were measured without ssim, by another search")


def test_contenders_are_told_by_what_decided_their_own_group(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another accelerator of the cell was searched since, by another metric."""
    monkeypatch.setenv("COLUMNS", "1000")
    key = "SD1.5, DDIM, 20 steps, DeepCache, 1.5x"
    before = explained(search, key, capsys)
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        rule = QualityRule("psnr", 12.0, higher_is_better=True)
        store.save_winners(replace(record.winners["DeepCache"], accelerator="ToMe", entries={}, quality=rule))
    assert "  contender: " in before
    assert explained(search, key, capsys) == before


def test_a_record_of_another_environment_is_said_to_be_one(
    search: RecordedSearch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    key, other = GoldenKey(CELL, "DeepCache", 1.5), environment(torch="2.0.0")
    write_golden(search.golden.resolve(), {key: replace(MET, environment=other.id)}, {other.id: other})
    last = explained(search, str(key), capsys).splitlines()[-1]
    assert last.endswith("cache_branch_id=0; recorded in another environment (torch 2.0.0 -> 2.14.1)")
