"""``--quality``: another metric than LPIPS decides a search, and what is recorded and told of that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo import NOTHING, Echo
from searches import SearchFolder, SmallSearch, drive, open_run, without_scale
from test_select import option
from timings import SteadyClock

from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import TARGETS
from pytest_diffaccel.measure.bounds import MetricBound
from pytest_diffaccel.measure.deciding import BY_LPIPS, LPIPS, Deciding
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.lpips import Lpips
from pytest_diffaccel.measure.metrics.psnr import Psnr
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.metrics.ssim import Ssim
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.search.decide.select import Choice, choose
from pytest_diffaccel.search.results import CellWinners
from pytest_diffaccel.settings.metric_options import deciding_metric, deciding_options
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

POINTS = ((2, NOTHING), (3, NOTHING), (10, NOTHING))
#: Four pictures in two batches; nothing beyond the grid.
OPTIONS = ("--grid", "coarse")
#: Captions that the embedded CLIP knows.
KNOWN_PROMPTS = tuple(
    f"{colour} {thing} on a {other} background"
    for colour, other in (("red", "blue"), ("yellow", "green"))
    for thing in ("apple", "ball", "cup", "star")
)
ODDITY = ("--quality", "oddity", "--max-quality-loss", "0.001")


class Oddity(Metric):
    """A made-up metric that likes what LPIPS does not: the further from the unaccelerated picture, the better."""

    name = "oddity"
    higher_is_better = True
    needs_references = True
    lowest, highest = 0.0, 1.0

    def __init__(self) -> None:
        self.scored = 0

    def score(
        self, images: Sequence[Any], references: Sequence[Any], prompts: Sequence[str], device: str
    ) -> list[float]:
        self.scored += len(images)
        pairs = zip(images, references, strict=True)
        far = [np.abs(np.asarray(one, dtype=float) - np.asarray(other)).mean() / 255 for one, other in pairs]
        return [float(np.sqrt(each)) for each in far]


@pytest.fixture(scope="module")
def by_lpips(tmp_path_factory: pytest.TempPathFactory, everything_imported: None) -> tuple[SearchFolder, CellWinners]:
    """A finished search that LPIPS decided; nobody changes it."""
    return _search(SearchFolder(tmp_path_factory.mktemp("lpips")))


@pytest.fixture(scope="module")
def by_oddity(
    tmp_path_factory: pytest.TempPathFactory, by_lpips: tuple[SearchFolder, CellWinners]
) -> tuple[SearchFolder, CellWinners]:
    """The search that goes on with it, and that another metric decided; nobody changes it."""
    folder = SearchFolder(tmp_path_factory.mktemp("oddity"))
    shutil.copytree(by_lpips[0].path / ".diffaccel", folder.path / ".diffaccel")
    return _search(folder, *ODDITY)


def _search(folder: SearchFolder, *options: str, metric: Metric | None = None) -> tuple[SearchFolder, CellWinners]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.path)
        without_scale(patch)
        SteadyClock(patch)
        (found,) = drive(open_run(*OPTIONS, *options, methods=[Echo(POINTS)], metrics=[metric or Oddity()]))
    assert found.of_cell is not None
    return folder, found.of_cell


@pytest.fixture
def go_on(by_oddity: tuple[SearchFolder, CellWinners], tmp_path: Path) -> Callable[..., CellWinners]:
    """Goes on with a copy of both searches."""
    folder = SearchFolder(tmp_path / "copy")
    shutil.copytree(by_oddity[0].path / ".diffaccel", folder.path / ".diffaccel")
    return lambda *options, **named: _search(folder, *options, **named)[1]


def intervals(of_cell: CellWinners) -> dict[float, int]:
    """Echo's interval of each target that is met."""
    met = [decided for decided in of_cell.decided if decided.entry.status == "met"]
    return {decided.key.target: int(decided.entry.params["Echo"]["echo_interval"]) for decided in met}


def measurements(folder: SearchFolder) -> list[Measurement]:
    rows = folder.query("SELECT record FROM diffaccel_measurements ORDER BY created_at")
    return [Measurement.from_json(json.loads(record)) for (record,) in rows]


# --- searches ---------------------------------------------------------------------------------------------------


def test_the_metric_that_decides_lets_another_win(
    by_lpips: tuple[SearchFolder, CellWinners], by_oddity: tuple[SearchFolder, CellWinners]
) -> None:
    before, after = intervals(by_lpips[1]), intervals(by_oddity[1])
    assert after.keys() == before.keys()
    assert before[1.2] == 2
    assert after[1.2] == 10
    entry = next(decided.entry for decided in by_oddity[1].decided if decided.key.target == 1.2)
    assert entry.quality == "oddity"
    assert entry.metrics is not None
    measured = {one.candidate.key: one for one in measurements(by_oddity[0]) if one.sampling.purpose == "winner"}
    (won,) = (one for one in measured.values() if one.candidate.params["Echo"]["echo_interval"] == 10)
    assert entry.metrics["oddity"].value == pytest.approx(np.mean(won.metrics["oddity"].values), abs=1e-5)
    assert entry.lpips == pytest.approx(won.quality.lpips.value, abs=1e-5)
    assert entry.selection_lpips is None
    assert entry.selection_quality == pytest.approx(entry.metrics["oddity"].value, rel=0.5)
    assert GoldenEntry.from_json(entry.to_json()) == entry


def test_fewer_steps_are_judged_by_what_decides(by_oddity: tuple[SearchFolder, CellWinners]) -> None:
    compared = [decided.entry for decided in by_oddity[1].decided if decided.entry.fewer_steps is not None]
    assert compared
    for entry in compared:
        assert entry.metrics is not None
        assert entry.fewer_steps is not None
        assert entry.fewer_steps.quality is not None
        assert entry.beats_fewer_steps == (entry.metrics["oddity"].value > entry.fewer_steps.quality)


def test_every_picture_of_every_candidate_is_scored(by_oddity: tuple[SearchFolder, CellWinners]) -> None:
    scored = [one for one in measurements(by_oddity[0]) if "oddity" in one.metrics]
    assert {one.sampling.purpose for one in scored} >= {"search", "winner"}
    assert all(len(one.metrics["oddity"].values) == one.sampling.num_samples for one in scored)
    assert len({one.candidate.key for one in scored if one.sampling.purpose == "search"}) == len(POINTS)


def test_both_searches_find_what_they_measured_again(
    by_lpips: tuple[SearchFolder, CellWinners],
    by_oddity: tuple[SearchFolder, CellWinners],
    go_on: Callable[..., CellWinners],
) -> None:
    metric = Oddity()
    assert intervals(go_on(*ODDITY, metric=metric)) == intervals(by_oddity[1])
    assert intervals(go_on(metric=metric)) == intervals(by_lpips[1])
    assert metric.scored == 0


def test_winners_are_no_worse_than_the_worst(go_on: Callable[..., CellWinners]) -> None:
    found = go_on(*ODDITY, "--max-quality-loss", "0.99")
    assert {decided.key.target: decided.entry.reason for decided in found.decided} == dict.fromkeys(TARGETS, "quality")


def test_a_metric_that_fails_is_no_failure_of_a_candidate(go_on: Callable[..., CellWinners], tmp_path: Path) -> None:
    class Broken(Oddity):
        name = "broken"

        def score(self, *_: Any) -> list[float]:
            raise RuntimeError("an accident")

    with pytest.raises(RuntimeError, match="broken: scoring 2 pictures failed: RuntimeError: an accident"):
        go_on("--quality", "broken", "--max-quality-loss", "0.001", metric=Broken())
    folder = SearchFolder.__new__(SearchFolder)
    folder.store = tmp_path / "copy" / ".diffaccel" / "search.sqlite"
    assert folder.query("SELECT * FROM diffaccel_failures WHERE kind = 'error'") == []


def test_what_decides_is_told_wherever_winners_are(
    small_search: SmallSearch, one_pipeline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_search.register(*POINTS)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)
    result = small_search.race(
        *OPTIONS,
        *("--quality", "psnr", "--max-quality-loss", "5"),
        *("--diffaccel-report", "r.html", "--diffaccel-log", "log.jsonl"),
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "diffaccel: psnr decides; psnr below 5 cannot win",
            "*decided by psnr * [[]*[]], fewer steps *",
            "Where another metric than LPIPS decided, !: by that.",
        ]
    )
    entries = read_golden(small_search.golden)
    assert {entry.quality for entry in entries.values()} == {"psnr"}
    logged = [json.loads(line) for line in (small_search.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["metrics"]["psnr"]["value"] > 0 for line in logged if "lpips" in line)
    assert "loses least by psnr, which decided" in (small_search.path / "r.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["explain", str(next(iter(entries)))]) == 0
    said = capsys.readouterr().out
    assert "decided by psnr " in said
    assert " on the pictures that it was chosen on" in said
    assert "contender: " in said
    assert all(", psnr " in line for line in said.splitlines() if line.startswith("  contender: "))
    assert "says the same" in said


# --- options ----------------------------------------------------------------------------------------------------


class Endless(Oddity):
    """One that does not say what equal pictures score."""

    name = "endless"
    highest = np.inf


def known() -> MetricRegistry:
    registry = MetricRegistry()
    registry.register(Oddity())
    registry.register(Endless())
    return registry


@pytest.mark.parametrize(
    ("quality", "worst", "said"),
    [
        ("clip_score", None, "--quality: clip_score does not compare with the unaccelerated pictures, so it cannot "),
        ("clip_score", None, "; choose from lpips, lpips_alex, lpips_vgg, psnr, ssim, oddity, and keep clip_score by "),
        ("clip_score", None, "--bound clip_score=-5%"),
        ("endless", None, "--quality: endless does not say what a picture scores that equals the unaccelerated one; "),
        ("endless", None, "give its class that value as highest, or choose from lpips, "),
        ("sim", None, "--quality: there is no metric 'sim' (did you mean ssim?); choose from lpips, "),
        ("PSNR", None, "--quality: there is no metric 'PSNR' (did you mean psnr?); choose from lpips, "),
        (None, "0", "--max-quality-loss: '0' must be a number above 0"),
        (
            "ssim",
            "1",
            "'1' is no mean ssim that a winner may be as bad as; write a number below 1, at least -1",
        ),
        ("ssim", "much", "--max-quality-loss: 'much' is no mean ssim "),
        ("lpips_alex", "-0.1", "'-0.1' is no mean lpips_alex that a winner may be as bad as; write a number above 0"),
    ],
)
def test_what_cannot_decide_is_refused(quality: str | None, worst: str | None, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        deciding_metric(quality, worst, known())
    assert said in str(refused.value)


def test_the_worst_that_may_win_is_a_value_of_the_metric() -> None:
    assert deciding_metric(None, None) == BY_LPIPS
    assert deciding_metric(None, None).max_loss == 0.25
    assert deciding_metric("lpips", "0.1").max_loss == 0.1
    assert deciding_metric("psnr", "20").max_loss == pytest.approx(0.1)
    assert deciding_metric("ssim", "0.9").max_loss == pytest.approx(0.05)
    assert deciding_metric("ssim", None).worst == 0.5


@pytest.mark.parametrize("metric", [Lpips(), Lpips("alex"), Psnr(), Ssim(), Oddity()])
def test_losses_are_none_for_equal_pictures_and_grow_with_worse_ones(metric: Metric) -> None:
    assert metric.loss(metric.best) == 0
    losses = [0.001, 0.05, 0.3]
    values = [metric.value_at(loss) for loss in losses]
    assert values == sorted(values, reverse=metric.higher_is_better)
    assert [metric.loss(value) for value in values] == pytest.approx(losses)


def test_an_expected_value_stays_within_the_metrics_range() -> None:
    assert Deciding(Ssim(), 0.5).value_text(0.1) == "0.8"
    assert Deciding(Ssim(), 0.5).value_text(2.3) == "-1"
    assert Deciding(Psnr(), 12.0).value_text(1.5) == "0"
    assert BY_LPIPS.value_text(2.3) == "2.3000"


@pytest.mark.parametrize(
    ("qualities", "rules", "options"),
    [
        ({"lpips"}, {"ours"}, []),
        ({"psnr"}, {"ours"}, ["--quality", "psnr"]),
        ({"psnr"}, {"diffbench"}, ["--quality", "psnr", "--rule", "diffbench"]),
        ({"psnr", "lpips"}, {"ours", "diffbench"}, []),
        ((), (), []),
    ],
)
def test_commands_repeat_what_decided(qualities: set[str], rules: set[str], options: list[str]) -> None:
    assert deciding_options(qualities, rules) == options


def test_lpips_is_its_own_loss() -> None:
    by_default = Deciding(Lpips(), 0.25)
    assert by_default.name == LPIPS
    assert [by_default.metric.loss(value) for value in (0.0, 0.0123, 1.5)] == [0.0, 0.0123, 1.5]


def test_an_entry_names_what_decided_it_only_with_its_value() -> None:
    entry = '{"status": "met", "params": {"ToMe": {"ratio": 0.5}}, "speedup": 1.5, "speedup_ci95": [1.4, 1.6], '
    entry += '"wall_speedup": 1.5, "wall_speedup_ci95": [1.4, 1.6], "lpips": 0.1, "lpips_ci95": [0.1, 0.1], '
    entry += '"num_samples": 2, "batch_size": 1, "environment": "0123456789ab"'
    assert GoldenEntry.from_json(entry + "}").quality == "lpips"
    with pytest.raises(ValueError, match="quality is ssim, of which metrics has no value"):
        GoldenEntry.from_json(entry + ', "quality": "ssim"}')
    with pytest.raises(ValueError, match="String should match pattern"):
        GoldenEntry.from_json(entry + r', "quality": "a\n\"b", "metrics": {"a\n\"b": {"value": 0.9}}}')
    with pytest.raises(ValueError, match="selection_quality without quality"):
        GoldenEntry.from_json(entry + ', "selection_quality": 0.9}')
    decided = GoldenEntry.from_json(entry + ', "quality": "ssim", "metrics": {"ssim": {"value": 0.9}}}')
    assert '"quality": "ssim"' in decided.to_json()
    assert GoldenEntry.from_json(entry + "}").difference(decided).startswith("quality lpips -> ssim")


# --- DiffBench's rule -------------------------------------------------------------------------------------------


def test_means_decide_by_diffbenchs_rule() -> None:
    vague = option(2, 1.5, 0.01, margin=0.3)
    slow = option(3, 1.499, 0.02, margin=0.0)
    assert choose([vague, slow], 1.5, 0.25) == Choice(1.5, slow, None)  # within our tolerance, and sure
    by_mean = [replace(each, by_mean=True) for each in (vague, slow)]
    assert choose(by_mean, 1.5, 0.25) == Choice(1.5, by_mean[0], None)
    # A mean is below its target, or it is not: nothing is undecided.
    assert choose(by_mean, 1.6, 0.25).reason == "speed"
    assert choose([vague], 1.6, 0.25).reason == "undecided"


def test_a_mean_change_is_kept_or_broken() -> None:
    bound = MetricBound("clip_score", -0.05, higher_is_better=True, by_mean=True)
    assert bound.judge(Interval(-0.05, -0.2, 0.1)) == "kept"
    assert bound.judge(Interval(-0.051, -0.2, 0.1)) == "broken"
    assert bound.judge(None) == "open"
    assert str(bound) == "clip_score=-5% in the mean"


def test_the_rule_asks_for_ten_prompts_and_bounds_the_clip_score() -> None:
    def settings(*given: str) -> Settings:
        parser = pytest.Parser(_ispytest=True)
        add_options(parser)
        return Settings.from_options(parser.parse_known_args([*given]), ["Echo"])

    by_rule = settings("--rule", "diffbench")
    assert (by_rule.num_samples, by_rule.metrics, by_rule.by_mean) == (10, ("clip_score",), True)
    assert by_rule.terms == ("by mean speed-ups", "with clip_score=-5% in the mean")
    assert settings("--rule", "diffbench", "--num-samples", "6").num_samples == 6
    for ours in ((), ("--rule", "ours"), ("--rule", "both")):
        assert settings(*ours) == settings()
    assert settings().terms == ()
    with pytest.raises(OptionError, match="--bound: --rule diffbench bounds clip_score itself, to -5%; leave one out"):
        settings("--rule", "diffbench", "--bound", "clip_score=-3%")
    with pytest.raises(OptionError, match="--rule diffbench: the change of a single picture has no interval"):
        settings("--rule", "diffbench", "--num-samples", "1")


def test_a_search_by_diffbenchs_rule_records_what_meets_it(
    small_search: SmallSearch, one_pipeline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_search.register(*POINTS)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)
    (small_search.path / "prompts.txt").write_text("\n".join(KNOWN_PROMPTS), encoding="utf-8")
    result = small_search.race(*OPTIONS, "--rule", "diffbench", "--clip-model", "embedded", "--prompts", "prompts.txt")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "diffaccel: DiffBench's rule decides: mean speedups, CLIP scores at most 5% lower",
            "By DiffBench's rule: means decide, not intervals; CLIP score at most 5% lower.",
        ]
    )
    entries = read_golden(small_search.golden)
    assert {entry.rule for entry in entries.values()} == {"diffbench"}
    met = {key: entry for key, entry in entries.items() if entry.status == "met"}
    assert met
    for key, entry in met.items():
        assert entry.speedup is not None
        assert entry.metrics is not None
        assert entry.metrics["clip_score"].change is not None
        assert entry.speedup >= key.target
        assert entry.metrics["clip_score"].change >= -0.05
