"""What a report says: which measurements, which verdicts and reasons, which golden changes, which command."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from entries import MET
from PIL import Image
from recorded import CELL, HOSTILE, RecordedSearch, clip_scores, deepcache_grid, environment
from searches import SMALL_OPTIONS, SmallSearch

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.gate.verdict import Finding, GateVerdict, Verdict
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.deciding import QualityRule
from pytest_diffaccel.measure.measurement import Block, Interval, MetricValues, RunTiming
from pytest_diffaccel.measure.timing_lock import TimingLock
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_changes import categories
from pytest_diffaccel.records.golden_file import Change, Golden, merge, read_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import FewerSteps, GoldenMetric
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.report.html.cell_part import cell_parts
from pytest_diffaccel.report.html.charts.heat_map import coloured, difference_maps
from pytest_diffaccel.report.html.charts.timing_charts import kind_costs_chart
from pytest_diffaccel.report.html.charts.vega import Chart
from pytest_diffaccel.report.html.content.banner import Banner
from pytest_diffaccel.report.html.content.candidate_rows import frontier_of
from pytest_diffaccel.report.html.content.cells import cells_of
from pytest_diffaccel.report.html.content.data import row_data
from pytest_diffaccel.report.html.content.findings import Findings, find
from pytest_diffaccel.report.html.content.golden_part import entry_words, golden_part
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.report.html.content.scores import Axis, frontier_points
from pytest_diffaccel.report.step_summary import gate_summary, plain, search_summary, write_step_summary
from pytest_diffaccel.settings.search_settings import ON_COARSE_GRID

KEY = GoldenKey(Cell("SD1.5", "DDIM", 20), "DeepCache", 1.5)
_SAME_ENVIRONMENT = "The environment is the one that golden was recorded in"


@pytest.fixture
def search(tmp_path: Path) -> RecordedSearch:
    return RecordedSearch(tmp_path)


def material(search: RecordedSearch, **changes: object) -> Material:
    with Store.open(search.store) as store:
        return replace(search.material([], []), contents=store.contents(), **changes)


def embedded_data(page: Path) -> dict[str, object]:
    found = re.search(r'id="report-data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


# Which measurements


def test_a_cell_shows_its_newest_conditions_and_counts_the_others(search: RecordedSearch) -> None:
    search.fill(grid=deepcache_grid()[:2])
    old, newer = environment(), environment(torch="2.15.0")
    candidate = Candidate(CELL, "DeepCache", deepcache_grid()[3])
    with Store.open(search.store) as store:
        store.save(search.measurement(candidate, newer, "search"))
        (record,) = cells_of(store.contents())
    assert record.environment == newer.id != old.id
    assert list(record.searched) == [candidate.key]
    assert record.left_out == 4 + CELL.steps


def test_rivals_belong_to_the_cell_whose_steps_they_replace(search: RecordedSearch) -> None:
    search.fill(grid=deepcache_grid()[:2])
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
    assert record.cell == CELL
    assert [rival.candidate.cell.steps for rival in record.rivals] == list(range(1, 21))


def test_a_cell_of_failures_alone_is_shown(search: RecordedSearch) -> None:
    cell = Cell("SD1.5", "EulerDiscreteScheduler", 7)
    failed = Candidate(cell, "DeepCache", deepcache_grid()[0])
    with Store.open(search.store) as store:
        store.save_failure(failed, environment().id, search.sampling(), "oom", "out of memory")
        (record,) = cells_of(store.contents())
    assert (record.cell, len(record.failures)) == (cell, 1)


def test_a_candidate_that_two_searches_passed_over_is_shown_once(search: RecordedSearch) -> None:
    """They were of other numbers of samples, or of other options."""
    search.fill(grid=deepcache_grid()[:1])
    skipped, failed, both = (Candidate(CELL, "DeepCache", params) for params in deepcache_grid()[1:4])
    wide, narrow = search.sampling(), replace(search.sampling(), num_samples=2)
    with Store.open(search.store) as store:
        for sampling in (wide, narrow, wide.on_terms(["on the coarse grid"])):
            store.save_decision(skipped, environment().id, sampling, f"said of {sampling.purpose}")
            store.save_failure(failed, environment().id, sampling, "error", "an accident")
        store.save_decision(both, environment().id, wide, "too slow")
        store.save_failure(both, environment().id, wide, "error", "an accident")
    (found,) = find(material(search))
    rows = {row.key: row for row in found.rows}
    assert len(rows) == len(found.rows)
    assert rows[skipped.key].reason == "said of search on the coarse grid"
    assert (rows[failed.key].verdict, rows[both.key].verdict) == ("failed", "failed")


# Which verdicts


@pytest.fixture
def findings(search: RecordedSearch) -> Findings:
    search.fill()
    (found,) = find(material(search))
    return found


def test_winners_are_those_that_the_search_chose(findings: Findings) -> None:
    won = {row.params: row.targets for row in findings.rows if row.verdict == "winner"}
    assert won == {
        "cache_interval=2,cache_branch_id=0": (1.2, 1.5),
        "cache_interval=3,cache_branch_id=0": (1.8, 2.0),
        "cache_interval=5,cache_branch_id=0": (2.5, 3.0),
    }
    assert findings.entries[replace(KEY, target=4.0)].reason == "speed"


def test_winners_stay_what_was_chosen_when_later_blocks_would_choose_others(search: RecordedSearch) -> None:
    """Blocks of other groups tell about its speed-ups, too; the winners are those of golden until it is searched."""
    search.fill()
    (before,) = find(material(search))
    with Store.open(search.store) as store:
        for winner in before.record.verified.values():
            faster = replace(winner.speedup, value=9.0, high=9.5)
            store.save(replace(winner, speedup=faster, blocks=tuple(at_pace(winner.blocks, 0.5))))
    (after,) = find(material(search))
    assert after.entries == before.entries
    assert len(after.entries) == 7
    assert [row.figures and row.figures.speedup for row in after.rows] == [
        row.figures and row.figures.speedup for row in before.rows
    ]


def test_a_group_that_is_not_decided_yet_has_speedups_and_no_winners(search: RecordedSearch) -> None:
    search.fill()
    made = material(search)
    (found,) = find(replace(made, contents=replace(made.contents, winners=())))
    assert found.entries == {}
    assert found.record.speedups == {key: measurement.speedup for key, measurement in found.record.best_known.items()}


def test_what_a_search_leaves_undecided_now_is_undecided_whatever_golden_has(search: RecordedSearch) -> None:
    search.fill()
    made = material(search)
    known = find(made)[0].entries
    assert known[replace(KEY, target=4.0)].status == "unattainable"
    golden = Golden(search.golden, known, {})
    (won,) = made.contents.winners
    open_now = replace(won, entries={target: entry for target, entry in won.entries.items() if target != 4.0})
    (found,) = find(replace(made, golden=golden, contents=replace(made.contents, winners=(open_now,))))
    assert {key.target for key in found.entries} == set(TARGETS) - {4.0}
    banner = Banner.of(made, [found])
    assert (banner.met, banner.unattainable, banner.undecided) == (6, 0, 1)


def test_every_other_row_says_why_not(findings: Findings) -> None:
    reasons = {row.params: (row.verdict, row.reason) for row in findings.rows}
    assert reasons["cache_interval=2,cache_branch_id=2"] == (
        "beaten",
        "DeepCache cache_interval=2,cache_branch_id=0 is as fast and loses 0.0080",
    )
    assert reasons["cache_interval=9,cache_branch_id=9"] == ("skipped", f"predicted 1.01x: {HOSTILE}")
    assert reasons["cache_interval=8,cache_branch_id=8"][0] == "failed"


def test_a_winner_that_fewer_steps_beat_says_so(findings: Findings) -> None:
    (row,) = (row for row in findings.rows if row.params == "cache_interval=2,cache_branch_id=0")
    entry = findings.entries[KEY]
    assert entry.fewer_steps is not None
    assert ("plain steps are as fast" in row.reason) is (entry.beats_fewer_steps is False)


def test_the_group_is_finished_where_the_store_says_so(findings: Findings) -> None:
    assert findings.unfinished == []
    assert findings.counts == {"winner": 3, "beaten": 6, "skipped": 1, "failed": 1}


# Charts


def test_what_to_use_comes_first(search: RecordedSearch) -> None:
    """The best of all accelerators at each target, once per setting, and how many winners fewer steps beat."""
    search.fill()
    (found,) = find(material(search))
    met = {key: entry for key, entry in found.entries.items() if entry.status == "met"}
    shown = {target: entry for targets, _, entry in found.best for target in targets}
    assert shown.keys() == {key.target for key in met}
    for target, entry in shown.items():
        assert entry.lpips == min(other.lpips or 1.0 for key, other in met.items() if key.target == target)
    settings = [(key.accelerator, str(entry.params)) for _, key, entry in found.best]
    assert all(one != after for one, after in pairwise(settings))
    lost, of = found.beaten
    assert 0 <= lost <= of <= found.counts["winner"]
    banner = Banner.of(material(search), [found])
    assert banner.beaten == (lost, of)


def test_the_plain_pipeline_is_on_the_frontier_and_what_is_slower_is_not(search: RecordedSearch) -> None:
    """It loses nothing: a candidate that is no faster is of no use, however little it loses."""
    grid = deepcache_grid()[:4]
    measured = [search.measurement(Candidate(CELL, "DeepCache", params), environment(), "search") for params in grid]
    speeds = (0.9, 1.0, 1.3, 1.6)  # of losses that rise
    speedups = {measurement.candidate.key: Interval(x, x, x) for measurement, x in zip(measured, speeds, strict=True)}
    assert frontier_of(measured, speedups) == measured[2:]


def test_a_chart_shows_the_plain_pipeline(search: RecordedSearch) -> None:
    search.fill()
    (part,) = cell_parts(material(search), search.path / "report.html", lambda _: None)
    layers = [layer.get("data", {}).get("values", []) for layer in part.pareto[0].chart.spec["layer"]]
    plain = [mark for values in layers for mark in values if (mark.get("speedup"), mark.get("lpips")) == (1.0, 0.0)]
    assert {"speedup": 1.0, "lpips": 0.0} in plain
    assert 20 in [mark.get("steps") for mark in plain]


def test_a_cell_has_a_chart_by_each_metric_that_was_measured(search: RecordedSearch) -> None:
    search.fill()
    search.score(2, 3, 5)
    (part,) = cell_parts(material(search), search.path / "report.html", lambda _: None)
    titles = {one.axis.words: one.axis.titled for one in part.pareto}
    assert titles == {
        "LPIPS": "LPIPS to the unaccelerated picture (lower is better)",
        "PSNR": "PSNR to the unaccelerated picture, dB (higher is better)",
        "SSIM": "SSIM to the unaccelerated picture (higher is better)",
        "clip_score": "clip_score (higher is better)",
        "change of clip_score": "change of clip_score from unaccelerated, % (higher is better)",
    }
    clip = part.pareto[3]
    assert clip.axis.plain == 29.0
    assert [row["quality"] for row in clip.chart.rows if row["quality"] is not None] == [28.0, 27.5, 26.5]
    assert clip.note.startswith("Without clip_score: 6 of 9 measured candidates. Ticks at the bottom ")
    assert clip.note.endswith(" and not drawn: 17 of 20 points of fewer plain steps.")
    assert [bool(one.note) for one in part.pareto] == [False, True, False, True, True]
    assert "rows" in clip.chart.spec["data"]["name"]
    assert clip.chart.svg.startswith("<svg")


def test_a_metrics_unit_is_text_whatever_it_says(search: RecordedSearch) -> None:
    """And one whose direction was not recorded has an axis, but no frontier."""
    search.fill()
    odd = replace(clip_scores(1.0), unit='it\'s "odd"', higher_is_better=None)
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        store.save(replace(next(iter(record.verified.values())), metrics={"faith": odd}))
    (part,) = cell_parts(material(search), search.path / "report.html", lambda _: None)
    shown = next(one for one in part.pareto if one.axis.name == "faith")
    assert shown.axis.titled == 'faith, it\'s "odd"'
    assert shown.chart.svg.startswith("<svg")


@pytest.mark.parametrize(
    ("higher", "plain", "expected"),
    [
        (True, 5.0, [(1.0, 5.0), (2.0, 4.0), (3.0, 1.0)]),
        (True, 3.0, [(2.0, 4.0), (3.0, 1.0)]),  # the unaccelerated pipeline is as bad as one that is faster
        (True, None, [(2.0, 4.0), (3.0, 1.0)]),
        (False, 0.0, [(1.0, 0.0), (3.0, 1.0)]),
        (None, 5.0, []),
    ],
)
def test_the_frontier_is_on_the_better_side(
    higher: bool | None, plain: float | None, expected: list[tuple[float, float]]
) -> None:
    axis = Axis("faith", "faith", "faith", higher, ".2f", plain=plain)
    assert frontier_points(axis, [(0.9, 9.0), (1.5, 2.0), (2.0, 4.0), (2.5, 1.0), (3.0, 1.0)]) == expected


def test_pictures_have_their_own_scores(search: RecordedSearch) -> None:
    search.fill()
    search.score(2, 3, 5)
    (part,) = cell_parts(material(search), search.path / "report.html", lambda _: None)
    worst = part.pictures[0].triples[0]
    assert (worst.rank, worst.scores) == ("worst", ["clip_score 30 (unaccelerated 31)"])
    assert f"LPIPS {worst.lpips:.4f}, clip_score 30 (unaccelerated 31) " in words(report(search))


def test_what_each_metric_took_is_told(search: RecordedSearch) -> None:
    search.fill()
    search.score(2, 3, 5)
    page = report(search)
    assert "Computing metrics of winners and of fewer plain steps took clip_score 12.0 s." in words(page)
    (cell,) = embedded_data(page)["cells"]
    assert cell["scores"]["clip_score"][0][0] == 28.0
    assert cell["scores"]["psnr"] == [[31.5]] * 9
    assert {made["metrics"]["clip_score"]["seconds"] for made in cell["measurements"] if "metrics" in made} == {2.0}


def test_bars_are_as_long_as_the_tables_speedups(findings: Findings) -> None:
    """Though each winner ran when the machine had another speed."""
    won = [(row, findings.record.verified[row.key]) for row in findings.rows if row.verdict == "winner"]
    paces = [0.5, 1.0, 3.0]
    paced = [
        (row, replace(measurement, blocks=at_pace(measurement.blocks, pace)))
        for (row, measurement), pace in zip(won, paces, strict=True)
    ]
    chart = kind_costs_chart("bars", paced)
    assert chart is not None
    ends: dict[int, float] = {}
    for part in chart.spec["data"]["values"]:
        ends[part["place"]] = max(part["end"], ends.get(part["place"], 0.0))
    for place, (row, _) in enumerate(won, start=1):
        assert row.figures is not None
        assert ends[0] / ends[place] == pytest.approx(row.figures.speedup.value, rel=1e-3)


def at_pace(blocks: Sequence[Block], pace: float) -> tuple[Block, ...]:
    def run(timing: RunTiming) -> RunTiming:
        return RunTiming(pace * timing.total_s, tuple(pace * step for step in timing.step_s), timing.kinds)

    return tuple(replace(block, baseline=run(block.baseline), runs=tuple(map(run, block.runs))) for block in blocks)


# Golden


def test_a_change_that_is_faster_and_worse_is_listed_once(search: RecordedSearch) -> None:
    both = replace(MET, lpips=0.06, lpips_ci95=(0.05, 0.07), speedup=1.8, speedup_ci95=(1.75, 1.85))
    slower = replace(MET, speedup=1.5, speedup_ci95=(1.45, 1.55))
    changes = (change(both), Change(replace(KEY, target=2.0), "differs", MET, slower))
    part = golden_part(material(search, changes=changes), [])
    assert [(name, len(own)) for name, own in part.by_category] == [("slower", 1), ("faster and worse", 1)]
    assert part.pending == 2


def change(after: GoldenEntry, before: GoldenEntry = MET) -> Change:
    return Change(KEY, "differs", before, after)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (replace(MET, speedup=1.8, speedup_ci95=(1.75, 1.85)), ["faster"]),
        (replace(MET, speedup=1.5, speedup_ci95=(1.45, 1.55)), ["slower"]),
        (replace(MET, lpips=0.02, lpips_ci95=(0.01, 0.03)), ["better"]),
        (replace(MET, lpips=0.06, lpips_ci95=(0.05, 0.07)), ["worse"]),
        (
            replace(MET, lpips=0.06, lpips_ci95=(0.05, 0.07), speedup=1.8, speedup_ci95=(1.75, 1.85)),
            ["faster", "worse"],
        ),
        (
            replace(MET, environment="0" * 12, speedup=9.0, speedup_ci95=(8.0, 10.0)),
            ["moved to another environment"],
        ),
        (replace(MET, params={"ToMe": {"ratio": 0.5, "max_downsample": 1}}), ["other parameters or status"]),
        (replace(MET, fewer_steps=FewerSteps(12, 1.7, 0.03, (0.02, 0.04))), ["other parameters or status"]),
    ],
)
def test_golden_changes_have_categories(after: GoldenEntry, expected: list[str]) -> None:
    assert list(categories(change(after))) == expected


def test_a_golden_record_is_told_by_both_clocks() -> None:
    waiting = replace(MET, device_speedup=2.1, device_speedup_ci95=(2.0, 2.2), decided_by="device")
    assert entry_words(MET) == "1.67x, LPIPS 0.0410, cache_interval=2, cache_branch_id=0"
    assert entry_words(waiting).startswith("1.67x (GPU 2.10x), LPIPS")


def test_a_golden_record_is_told_with_what_decided_it() -> None:
    decided = replace(MET, quality="psnr", metrics={"psnr": GoldenMetric(20.1626)}, rule="diffbench")
    assert entry_words(decided).endswith("cache_branch_id=0; decided by psnr 20.16; by DiffBench's rule")
    assert entry_words(MET).endswith("cache_branch_id=0")


def test_what_is_new_or_gone() -> None:
    assert categories(Change(KEY, "new", None, MET)) == ("new",)
    assert categories(Change(KEY, "pruned", MET, None)) == ("gone",)


# The command


def report(search: RecordedSearch, *options: str) -> Path:
    page = search.path / "out" / "report.html"
    arguments = ["report", "--store", str(search.store), "--golden", str(search.golden), "-o", str(page), *options]
    assert main(arguments) == 0
    return page


def words(page: Path) -> str:
    """The page's text without its marks."""
    return re.sub(r"<[^<>]*>", "", page.read_text(encoding="utf-8"))


def test_the_page_holds_all_rows_and_the_command_that_accepts(search: RecordedSearch) -> None:
    search.fill()
    with Store.open(search.store) as store:
        (found,) = find(material(search))
        recorded = {key: replace(entry, speedup=9.0, speedup_ci95=(8.9, 9.1)) for key, entry in found.entries.items()}
        merge(search.golden, recorded, update=False, environments=store.environments())
    before = search.golden.read_bytes()
    page = report(search)
    data = embedded_data(page)
    (cell,) = data["cells"]
    assert len(cell["rows"]) == 11
    assert [len(row) for row in cell["rows"]] == [len(data["columns"])] * 9 + [5] * 2
    assert len(cell["measurements"]) == 18
    assert cell["measurements"][0]["lpips"]
    text = page.read_text(encoding="utf-8")
    assert "slower: 7" in text
    assert "cached_steps=10" in cell["rows"][0][data["columns"].index("fired")]
    assert "--update-golden" in text
    assert _SAME_ENVIRONMENT in text
    assert search.golden.read_bytes() == before


def test_what_two_of_goldens_environments_differ_by_is_said_once(search: RecordedSearch) -> None:
    search.fill()
    with Store.open(search.store) as store:
        (found,) = find(material(search))
        (now,) = store.environments().values()
    before = [replace(now, device="another CPU", threads=threads) for threads in (7, 9)]
    entries = {
        key: replace(entry, environment=before[place % 2].id)
        for place, (key, entry) in enumerate(sorted(found.entries.items(), key=str))
    }
    merge(search.golden, entries, update=False, environments={one.id: one for one in before})
    text = words(report(search))
    assert text.count("device another CPU -&gt; ") == 1
    assert text.count("threads 7 -&gt;") == text.count("threads 9 -&gt;") == 1


def test_the_page_says_nothing_of_goldens_environment_where_golden_has_no_entry(search: RecordedSearch) -> None:
    search.fill()
    text = report(search).read_text(encoding="utf-8")
    assert "new: 7" in text
    assert _SAME_ENVIRONMENT not in text


def test_filters_choose_cells_and_name_them_in_the_command(search: RecordedSearch) -> None:
    search.fill(grid=deepcache_grid()[:2])
    search.fill(Cell("SD1.5", "DDIM", 25), deepcache_grid()[:2])
    page = report(search, "--steps", "25", "--sched", "ddim")
    assert [cell["steps"] for cell in embedded_data(page)["cells"]] == [25]
    assert "pytest benches --pipe SD1.5 --sched ddim --steps 25 --search-targets DeepCache --store " in words(page)


def test_the_command_names_the_grid_where_all_groups_were_searched_on_it(search: RecordedSearch) -> None:
    search.fill(grid=deepcache_grid()[:2])
    named = "pytest benches --pipe SD1.5 --sched DDIM --steps 20 --search-targets DeepCache --grid coarse --store "
    coarse = search.sampling().on_terms(["by device time", ON_COARSE_GRID])
    with Store.open(search.store) as store:
        store.save_group(CELL, "DeepCache", environment().id, coarse, "done")
    assert named not in words(report(search))  # the whole grid, too
    with closing(sqlite3.connect(search.store)) as connection, connection:
        connection.execute("DELETE FROM diffaccel_decisions WHERE purpose = 'search'")
    assert named in words(report(search))


def test_the_command_names_no_accelerators_where_all_that_suit_the_pipe_were_searched(search: RecordedSearch) -> None:
    """Those of transformers are none of Stable Diffusion's."""
    search.fill(grid=deepcache_grid()[:1])
    described = environment(CELL.pipe)
    with Store.open(search.store) as store:
        for accelerator in default_registry().suiting(CELL.pipe)[1:]:
            params = accelerator.grid(CELL, coarse=True)[0]
            made = search.measurement(Candidate(CELL, "DeepCache", deepcache_grid()[0]), described, "search")
            store.save(replace(made, candidate=Candidate(CELL, accelerator.name, params), blocks=()))
    assert "pytest benches --pipe SD1.5 --sched DDIM --steps 20 --store " in words(report(search))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "few"], "--steps: 'few' is "),
        (["--pipe", "SDXL"], "holds nothing of the chosen cells"),
        (["--store", "none.sqlite"], "there is no store none.sqlite"),
        (["--max-quality-loss", "-1"], "must be a number above 0"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    search: RecordedSearch, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search.fill(grid=deepcache_grid()[:2])
    page = search.path / "report.html"
    try:
        status = main(["report", "--store", str(search.store), "-o", str(page), *options])
    except SystemExit as refused:
        status = int(str(refused.code))
    assert status == 2
    assert message in capsys.readouterr().err
    assert not page.exists()


def test_a_store_that_is_none_is_refused(search: RecordedSearch, capsys: pytest.CaptureFixture[str]) -> None:
    search.store.write_text("no database", encoding="utf-8")
    assert main(["report", "--store", str(search.store)]) == 2
    assert "diffaccel:" in capsys.readouterr().err


def test_it_keeps_out_of_blocks_that_are_timed(search: RecordedSearch) -> None:
    search.fill(grid=deepcache_grid()[:2])
    page = search.path / "report.html"
    arguments = ["report", "--store", str(search.store), "-o", str(page)]
    script = f"import sys; from pytest_diffaccel.cli.main import main; sys.exit(main({arguments!r}))"
    with TimingLock(search.work / "timing.lock", shareable=True).timing():
        writing = subprocess.Popen([sys.executable, "-c", script])
        with pytest.raises(subprocess.TimeoutExpired):
            writing.wait(timeout=6)
        assert not page.exists()
    assert writing.wait() == 0
    assert page.is_file()


# Charts without a script


def test_a_static_chart_draws_like_symbols_once_and_keeps_its_texts() -> None:
    spec = {
        "data": {"values": [{"x": number, "name": "1.23456"} for number in range(5)]},
        "mark": "point",
        "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "name", "type": "nominal"}},
    }
    drawing = Chart("one", "five points", spec).svg
    ids = re.findall(r' id="([^"]+)"', drawing)
    references = re.findall(r'<use href="#([^"]+)"', drawing)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("one-") for name in ids)
    assert set(references) <= set(ids)
    assert max(Counter(references).values()) >= 5
    assert ">1.23456<" in drawing
    assert "currentColor" in drawing


def test_without_what_draws_charts_the_report_has_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = RecordedSearch(tmp_path)
    search.fill(grid=deepcache_grid()[:4])
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    page = tmp_path / "report.html"
    assert main(["report", "--store", str(search.store), "-o", str(page), "--golden", str(search.golden)]) == 0
    said = "without charts, which need vl-convert-python: pip install 'pytest-diffaccel[report]'"
    assert f"MB, {said})" in capsys.readouterr().out
    assert said in unescape(words(page))
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r'<table class="values">\s*<thead><tr>(.*?)</tr>', text)
    assert [re.findall(r"<th[^>]*>(.*?)</th>", heads) for heads in headings] == [
        ["cache_branch_id", "cache_interval", "LPIPS", "speed-up"],
        ["what", "params", "block", "seconds"],
        ["what", "params", "kind", "steps", "seconds each", "of an unaccelerated step"],
    ]
    assert "<svg" not in text
    assert "vegaEmbed =" not in text
    assert (len(embedded_data(page)["cells"][0]["rows"]), text.count("data:image/webp") > 0) == (6, True)


# Heat maps


def test_lpips_maps_are_bright_where_pictures_differ() -> None:
    plain_image = Image.new("RGB", (64, 64), "grey")
    moved = plain_image.copy()
    moved.paste("red", (40, 40, 60, 60))
    maps = difference_maps([moved, plain_image], [plain_image, plain_image])
    assert maps.kind == "LPIPS"
    assert maps.values[0][40:60, 40:60].mean() > 3 * maps.values[0][:20, :20].mean()
    assert maps.values[1].max() == 0
    assert coloured(maps.values[1], 0.0).getpixel((0, 0)) == (68, 1, 84)


def test_without_lpips_pixels_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("no torch here")

    monkeypatch.setattr("pytest_diffaccel.measure.metrics.lpips.lpips_maps", missing)
    maps = difference_maps([Image.new("RGB", (4, 4), "white")], [Image.new("RGB", (4, 4), "black")])
    assert maps.kind == "absolute difference of pixels"
    assert np.all(maps.values[0] == 1)


def test_what_a_bound_barred_and_metrics_are_among_the_rows(search: RecordedSearch) -> None:
    search.fill()
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        winner, loser = next(iter(record.verified.values())), list(record.searched.values())[-1]
        same = (28.0, 29.0, 28.0, 29.0)
        store.save(replace(winner, metrics={"clip_score": MetricValues("clip", same, same)}))
        store.save_winners(replace(record.winners["DeepCache"], barred={loser.candidate.key: "breaks clip_score=-5%"}))
    (found,) = find(material(search))
    rows = {row.key: row for row in found.rows}
    assert rows[loser.candidate.key].reason.startswith("breaks clip_score=-5%")
    data = row_data(rows[winner.candidate.key])
    assert data["metrics"].endswith(", +0.0% [+0.0%, +0.0%]")
    (cell,) = embedded_data(report(search))["cells"]
    scored = [made["metrics"] for made in cell["measurements"] if "metrics" in made]
    assert scored == [{"clip_score": {"values": list(same), "unaccelerated": list(same)}}]


def test_the_page_says_what_decided(search: RecordedSearch) -> None:
    search.fill()
    rule = "By DiffBench's rule: mean speed-ups decide"
    before = words(report(search))
    assert rule not in before
    assert "--quality" not in before
    with Store.open(search.store) as store:
        (record,) = cells_of(store.contents())
        won = record.winners["DeepCache"]
        entries = {target: replace(entry, rule="diffbench") for target, entry in won.entries.items()}
        store.save_winners(replace(won, entries=entries, quality=QualityRule("psnr", 12.0, higher_is_better=True)))
    text = words(report(search))
    assert rule in text
    assert "the plain pipeline with so many steps is as fast and loses less by psnr." in text
    # Else the command that the page gives would let others win.
    assert "--search-targets DeepCache --quality psnr --rule diffbench --max-quality-loss 12.0 --store " in text


def test_an_earlier_search_by_lpips_is_told_by_lpips(search: RecordedSearch) -> None:
    """Whatever decides the search that is under way: it has not chosen anything yet."""
    search.fill()
    by_psnr = QualityRule("psnr", 12.0, higher_is_better=True)
    (found,) = find(replace(material(search), quality=by_psnr))
    assert found.quality.metric == "lpips"
    assert found.rows == find(material(search))[0].rows


# What GitHub shows


def test_the_step_summary_has_winners_failures_and_golden_changes() -> None:
    entries = {KEY: MET, replace(KEY, target=4.0): replace(MET, status="unattainable", reason="speed")}
    changes = [change(replace(MET, speedup=1.5, speedup_ci95=(1.45, 1.55)))]
    text = "\n".join(
        search_summary(
            entries,
            {},
            changes,
            {"passed": 3, "failed": 1},
            Path("golden.json"),
            failures={("SD1.5-DDIM-20", "ToMe", "RuntimeError: a|b"): 1},
            next_steps=["next: look"],
        )
    )
    assert "1 of 2 targets met; cases: 3 passed, 1 failed." in text
    assert "| SD1.5-DDIM-20 | DeepCache | 1.5x | 1.67x \\[1.65, 1.69\\] | 0.041 \\[" in text
    assert "| 4x | " in text
    assert "unattainable: no candidate is surely fast enough" in text
    assert "| 1 | SD1.5-DDIM-20 | ToMe | RuntimeError: a\\|b |" in text
    assert "- differs:" in text
    assert text.endswith("- next: look")


def test_the_step_summary_has_a_column_of_other_metrics_where_there_are_any() -> None:
    clip = GoldenMetric(28.1, (27.2, 29.1), -0.012, (-0.02, -0.004))
    key = GoldenKey(CELL, "DeepCache", 1.5)

    def text(entry: GoldenEntry) -> str:
        return "\n".join(search_summary({key: entry}, {}, [], Counter(), Path("g"), failures={}, next_steps=[]))

    assert "28.1 \\[27.2, 29.1\\], -1.2% \\[" in text(replace(MET, metrics={"clip_score": clip}))
    assert "other metrics" not in text(MET)


def test_the_gates_step_summary_shows_what_is_not_ok() -> None:
    slower = Verdict((Finding("speed", "regressed", "-5%"),), notes=("no | more",))
    result = GateVerdict(CELL, None, "SD1.5-DDIM-20-DeepCache", (), slower)
    fine = replace(result, case="another", verdict=Verdict((Finding("speed", "ok", ""),)))
    text = "\n".join(gate_summary([result, fine], ["third"], 3, ["next: look"]))
    assert "1 regressed, 1 ok, 1 broke off of 3 cases" in text
    assert "| regressed | SD1.5-DDIM-20-DeepCache | speed regressed: -5%<br>note: no \\| more |" in text
    assert "| broke off | third | |" in text
    assert "another" not in text
    duller = replace(result, verdict=Verdict((Finding("quality", "regressed", "-9%", metric="clip_score"),)))
    assert "quality by clip\\_score regressed: -9%" in "\n".join(gate_summary([duller], [], 1, []))


def test_the_step_summary_is_appended_where_a_workflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    assert write_step_summary(["one"]) == write_step_summary(["two"]) == []
    assert file.read_text(encoding="utf-8") == "one\n\ntwo\n\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert "step summary: could not be written: " in write_step_summary(["three"])[0]


def test_markdown_shows_text_as_it_is() -> None:
    assert plain("a|b\n<script>`x`") == "a\\|b &lt;script&gt;\\`x\\`"


# With pytest


def test_a_search_writes_its_report(finished_search: SmallSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = finished_search.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = finished_search.run("--diffaccel-report", "out/report.html")
    result.stdout.fnmatch_lines(["report: out/report.html (* MB)"])
    page = finished_search.path / "out" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "--diffaccel-report out/report.html" in words(page)
    assert "Echo" in text
    assert "data:image/webp" in text
    assert "7 keys" in text
    assert "## diffaccel search" in summary.read_text(encoding="utf-8")
    assert read_golden(finished_search.golden)


def test_the_command_reports_a_users_own_accelerator_from_golden(finished_search: SmallSearch) -> None:
    assert main(["report"]) == 0
    (cell,) = embedded_data(Path("report.html"))["cells"]
    assert [row[0] for row in cell["rows"]] == ["Echo"] * 3
    assert "winner" in {row[2] for row in cell["rows"]}
    assert "data:image/webp" in Path("report.html").read_text(encoding="utf-8")


def test_an_interrupted_search_writes_its_report(finished_search: SmallSearch) -> None:
    with (finished_search.path / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write("\ndef pytest_runtest_teardown():\n    raise KeyboardInterrupt\n")
    options = ("benches", *SMALL_OPTIONS, "--diffaccel-report", "report.html")
    result = finished_search.pytester.runpytest_inprocess(*options, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["report: report.html (* MB)"])
    assert (finished_search.path / "report.html").is_file()


def test_a_report_that_cannot_be_written_says_so(finished_search: SmallSearch) -> None:
    """Where it could have been written when the session began; else nothing is measured."""
    taking = "def pytest_runtest_setup(): (Path(__file__).parent / 'taken').write_text('a file')"
    finished_search.add_to_conftest(f"\nfrom pathlib import Path\n{taking}\n")
    result = finished_search.run("--diffaccel-report", "taken/report.html")
    result.stdout.fnmatch_lines(["report: taken/report.html could not be written: *"])
    result.assert_outcomes(passed=4)
    result = finished_search.run("--diffaccel-report", "taken/report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--diffaccel-report", "."], "*--diffaccel-report: '.' is a folder; name a file*"),
        (["--gate", "--diffaccel-report", "x.html"], "*--diffaccel-report: it shows a search*"),
        (["--picture-grid", "pictures/"], "*--picture-grid: 'pictures/' is no PNG; name a file, such as pictures.png*"),
    ],
)
def test_bad_report_options_are_refused(small_search: SmallSearch, options: list[str], message: str) -> None:
    result = small_search.run(*options)
    assert result.ret == 4
    result.stderr.fnmatch_lines([message])
