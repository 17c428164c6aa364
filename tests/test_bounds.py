"""Secondary metrics of winners, and bounds on them: who wins within them, and what is recorded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo import NOTHING, Echo
from found import CELL, chosen
from searches import SearchFolder, SmallSearch, drive, open_run, without_scale
from test_select import option
from timings import SteadyClock

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.accelerators.tgate import TGate
from pytest_diffaccel.cli.main import main
from pytest_diffaccel.matrix import TARGETS, Candidate
from pytest_diffaccel.measure.bounds import Barring, MetricBound, barring
from pytest_diffaccel.measure.measurement import Interval, Measurement, MetricFigures, MetricValues
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.statistics import metric_figures, relative_change
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import read_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.report.next_steps import undecided_text
from pytest_diffaccel.search.decide.select import Choice, choose, choose_within
from pytest_diffaccel.search.kept_pictures import KeptPictures
from pytest_diffaccel.search.results import CellWinners
from pytest_diffaccel.search.search_run import SearchRun
from pytest_diffaccel.settings.metric_options import chosen_metrics
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

POINTS = ((2, NOTHING), (3, NOTHING), (10, NOTHING))
#: Two pictures of each, one at a time; nothing beyond the grid.
OPTIONS = ("--num-samples", "2", "--batch-size", "1", "--grid", "coarse")
BOUND = ("--bound", "faith=-5%")


class Faith(Metric):
    """A made-up metric: 28 or so of unaccelerated pictures, and of Echo's as the test says.

    Attributes:
        falls: by which share of the unaccelerated pictures' value each picture falls, by interval.
        scored: the intervals that were scored, in order; 0 of the unaccelerated pictures.
    """

    name = "faith"
    higher_is_better = True
    needs_references = False
    needs_prompts = True

    def __init__(self, falls: Mapping[int, Sequence[float]]) -> None:
        self.falls = falls
        self.scored: list[int] = []
        self.interval = 0
        self._baseline: list[bytes] | None = None

    def score(
        self, images: Sequence[Any], references: Sequence[Any], prompts: Sequence[str], device: str
    ) -> list[float]:
        pictures = [image.tobytes() for image in images]
        self._baseline = self._baseline or pictures  # they are scored first
        plain = [28.0 + len(prompt) % 5 for prompt in prompts]
        is_baseline = pictures == self._baseline
        self.scored.append(0 if is_baseline else self.interval)
        falls = (0.0,) * len(plain) if is_baseline else self.falls.get(self.interval, (0.0,) * len(plain))
        return [value * (1 - fall) for value, fall in zip(plain, falls, strict=True)]

    def note(self, candidate: Candidate) -> None:
        self.interval = int(candidate.params["Echo"]["echo_interval"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, everything_imported: None) -> tuple[SearchFolder, CellWinners]:
    """A finished search without bounds; nobody changes it."""
    folder = SearchFolder(tmp_path_factory.mktemp("plain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.path)
        without_scale(patch)
        SteadyClock(patch)
        (found,) = drive(open_run(*OPTIONS, methods=[Echo(POINTS)]))
    assert found.of_cell is not None
    return folder, found.of_cell


@pytest.fixture
def search_again(
    plain: tuple[SearchFolder, CellWinners], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CellWinners]:
    """Goes on with a copy of it, with a metric and further options."""
    shutil.copytree(plain[0].path, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)

    def again(metric: Faith, *options: str) -> CellWinners:
        kept = KeptPictures.winner

        def winner(pictures: KeptPictures, candidate: Candidate) -> Any:
            metric.note(candidate)
            return kept(pictures, candidate)

        monkeypatch.setattr(KeptPictures, "winner", winner)
        (found,) = drive(open_run(*OPTIONS, *options, methods=[Echo(POINTS)], metrics=[metric]))
        assert found.of_cell is not None
        return found.of_cell

    return again


def intervals(of_cell: CellWinners) -> dict[float, int]:
    """Echo's interval of each target that is met."""
    met = [decided for decided in of_cell.decided if decided.entry.status == "met"]
    return {decided.key.target: int(decided.entry.params["Echo"]["echo_interval"]) for decided in met}


def stored_winners(folder: Any) -> dict[str, Measurement]:
    rows = SearchFolder.query(folder, "SELECT record FROM diffaccel_measurements WHERE purpose = 'winner'")
    made = [Measurement.from_json(json.loads(record)) for (record,) in rows]
    return {measurement.candidate.key: measurement for measurement in made}


# --- searches ---------------------------------------------------------------------------------------------------


def test_a_bound_lets_another_win_than_loss_alone(
    plain: tuple[SearchFolder, CellWinners], search_again: Callable[..., CellWinners]
) -> None:
    before = intervals(plain[1])
    best = before[1.2]
    metric = Faith({best: (0.1, 0.1)})
    found = search_again(metric, *BOUND)
    after = intervals(found)
    assert best not in after.values()
    assert {target: after[target] for target, interval in before.items() if interval != best} == {
        target: interval for target, interval in before.items() if interval != best
    }
    assert 1.2 in after
    (why,) = found.barred.values()
    assert why == "breaks faith=-5%: -10.0% [-10.0%, -10.0%]"
    winner = next(decided.entry for decided in found.decided if decided.key.target == 1.2)
    assert winner.metrics is not None
    assert winner.metrics["faith"].change == 0.0
    assert '"metrics": {"faith": {"value": ' in winner.to_json()
    assert type(winner).from_json(winner.to_json()) == winner.rounded()


def test_what_nothing_keeps_is_out_of_reach_for_its_quality(search_again: Callable[..., CellWinners]) -> None:
    found = search_again(Faith({interval: (0.1, 0.1) for interval, _ in POINTS}), *BOUND)
    assert {decided.key.target: decided.entry.reason for decided in found.decided} == dict.fromkeys(TARGETS, "quality")
    assert found.undecided == ()
    assert len(found.barred) == len(POINTS)


def test_what_nothing_surely_keeps_is_undecided(search_again: Callable[..., CellWinners]) -> None:
    found = search_again(Faith({interval: (0.1, 0.0) for interval, _ in POINTS}), *BOUND)
    assert found.decided == ()
    assert {nearest.key.target for nearest in found.undecided} == set(TARGETS)
    assert all(nearest.barred.startswith("does not surely keep faith=-5%: ") for nearest in found.undecided)


def test_without_a_bound_metrics_choose_nobody(
    plain: tuple[SearchFolder, CellWinners], search_again: Callable[..., CellWinners]
) -> None:
    metric = Faith({intervals(plain[1])[1.2]: (0.9, 0.9)})
    found = search_again(metric)
    assert found.decided == plain[1].decided
    assert metric.scored == []
    found = search_again(metric, "--metrics", "faith,psnr")
    assert intervals(found) == intervals(plain[1])
    entry = next(decided.entry for decided in found.decided if decided.key.target == 1.2)
    assert entry.metrics is not None
    assert entry.metrics["faith"].change == pytest.approx(-0.9)
    assert entry.metrics["psnr"].change is None
    assert found.barred == {}


def test_stored_winners_get_what_they_lack_of_their_pictures(
    plain: tuple[SearchFolder, CellWinners], search_again: Callable[..., CellWinners], tmp_path: Any
) -> None:
    before = stored_winners(plain[0])
    search_again(Faith({}), *BOUND)
    copy = SearchFolder.__new__(SearchFolder)
    copy.store = tmp_path / ".diffaccel" / "search.sqlite"
    after = stored_winners(copy)
    assert {key: made.blocks for key, made in after.items()} == {key: made.blocks for key, made in before.items()}
    assert all("faith" in made.metrics for made in after.values())


def test_stored_winners_whose_pictures_are_gone_are_measured_again(
    plain: tuple[SearchFolder, CellWinners], search_again: Callable[..., CellWinners], tmp_path: Any
) -> None:
    before = stored_winners(plain[0])
    shutil.rmtree(tmp_path / ".diffaccel" / "images")
    search_again(Faith({}), *BOUND)
    copy = SearchFolder.__new__(SearchFolder)
    copy.store = tmp_path / ".diffaccel" / "search.sqlite"
    after = stored_winners(copy)
    assert all(made.blocks != before[key].blocks for key, made in after.items())
    assert all("faith" in made.metrics for made in after.values())


def test_a_metric_of_ones_own_is_recorded_wherever_figures_are(
    small_search: SmallSearch,
    plain: tuple[SearchFolder, CellWinners],
    one_pipeline: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(plain[0].path / ".diffaccel", small_search.path / ".diffaccel")
    small_search.register(*POINTS)
    small_search.add_to_conftest(BRIGHTNESS)
    without_scale(monkeypatch)
    SteadyClock(monkeypatch)
    result = small_search.race(
        *OPTIONS, "--bound", "brightness=-99%", "--junitxml", "junit.xml", "--diffaccel-report", "r.html"
    )
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*brightness * [[]*[]], *% [[]*%, *%[]]*", "metrics: brightness took * s"])
    assert all(entry.metrics is not None for entry in read_golden(small_search.golden).values())
    junit = (small_search.path / "junit.xml").read_text(encoding="utf-8")
    assert 'name="brightness_change SD1.5-DDIM-20-Echo-echo' in junit
    page = (small_search.path / "r.html").read_text(encoding="utf-8")
    assert "other metrics [95%], change" in page
    assert re.search(r"fewer plain steps took brightness \d+\.\d s\.", page)
    assert "brightness (higher is better)" in page
    assert main(["export", "--store", str(small_search.store), "-o", "all.csv"]) == 0
    header = (small_search.path / "all.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"metric_brightness", "metric_brightness_low", "metric_brightness_change_high"} <= set(header)


BRIGHTNESS = """
import numpy as np
from pytest_diffaccel.measure.metrics.base import Metric

class Brightness(Metric):
    name = "brightness"
    higher_is_better = True
    needs_references = False

    def score(self, images, references, prompts, device):
        return [200 + float(np.mean(np.asarray(image))) / 10 for image in images]

def pytest_diffaccel_metrics(registry):
    registry.register(Brightness())
"""


def test_a_metric_that_cannot_be_computed_ends_the_search_before_anything_is_measured(
    small_search: SmallSearch,
) -> None:
    small_search.add_to_conftest(BRIGHTNESS + MISSING)
    result = small_search.race(*OPTIONS, "--metrics", "brightness")
    result.stdout.fnmatch_lines(["*diffaccel: SD1.5-DDIM-20 Echo: *brightness: weights are missing; fetch them"])
    assert small_search.stored() == []


MISSING = """
from pytest_diffaccel.measure.metrics.base import MetricFault

def missing(self, device):
    raise MetricFault("brightness: weights are missing; fetch them")

Brightness.prepare = missing
"""


def test_a_metric_that_fails_costs_no_measurement(
    small_search: SmallSearch, plain: tuple[SearchFolder, CellWinners], one_pipeline: None
) -> None:
    shutil.copytree(plain[0].path / ".diffaccel", small_search.path / ".diffaccel")
    small_search.register(*POINTS)
    small_search.add_to_conftest(BRIGHTNESS + "Brightness.highest = 100.0\n")
    before = small_search.stored()
    result = small_search.race(*OPTIONS, "--metrics", "brightness")
    result.stdout.fnmatch_lines(["*diffaccel: SD1.5-DDIM-20 Echo: *brightness: gave 2* outside of its range *"])
    assert small_search.stored() == before
    assert small_search.failures() == []


def test_what_bounds_leave_undecided_is_told_with_what_helps() -> None:
    key = GoldenKey(CELL, "Echo", 1.5)
    nearest = chosen(CELL, "Echo", 1.5, {"Echo": {"echo_interval": 3}})
    options = pytest.Parser(_ispytest=True)
    add_options(options)
    settings = Settings.from_options(options.parse_known_args([]), ["Echo"])
    bounded = replace(nearest, barred="does not surely keep clip_score=-5%: -4.0% [-6.0%, -2.0%]")
    said = undecided_text({key: bounded}, {}, settings)
    assert "more pictures (--num-samples)" in said[1]
    assert said[2].endswith("; does not surely keep clip_score=-5%: -4.0% [-6.0%, -2.0%]")
    assert "on a quieter machine" in undecided_text({key: nearest}, {}, settings)[1]
    assert "--grid coarse" not in undecided_text({key: nearest}, {}, settings)[1]
    coarse = undecided_text({key: nearest}, {}, replace(settings, coarse=True))[1]
    assert "leave out --grid coarse for other points; with --fresh" in coarse


# --- choices ----------------------------------------------------------------------------------------------------

BROKEN, UNSURE = Barring(True, "breaks it"), Barring(False, "does not surely keep it")


def test_the_next_best_wins_where_a_bound_bars_the_best() -> None:
    best, second = option(2, 1.6, 0.01), option(3, 1.6, 0.02)
    for bar in (BROKEN, UNSURE):
        assert choose_within([best, second], 1.5, 0.25, {best.candidate.key: bar}) == Choice(1.5, second, None)


def test_bounds_tell_what_is_out_of_reach_from_what_is_not_known() -> None:
    fast, faster, slow = option(3, 2.1, 0.02), option(5, 2.2, 0.05), option(2, 1.6, 0.01)
    known, keys = [fast, faster, slow], [fast.candidate.key, faster.candidate.key]
    assert choose_within(known, 2.0, 0.25, dict.fromkeys(keys, BROKEN)) == Choice(2.0, slow, "quality")
    unsure = choose_within(known, 2.0, 0.25, {keys[0]: UNSURE, keys[1]: BROKEN})
    assert unsure == Choice(2.0, fast, "undecided")
    # Too slow all of them: bounds have nothing to do with that.
    assert choose_within(known, 4.0, 0.25, dict.fromkeys(keys, BROKEN)).reason == "speed"


def test_where_all_are_barred_what_comes_nearest_is_told_all_the_same() -> None:
    one = option(2, 1.6, 0.01)
    assert choose_within([one], 1.5, 0.25, {one.candidate.key: BROKEN}) == Choice(1.5, one, "quality")
    assert choose_within([one], 4.0, 0.25, {one.candidate.key: BROKEN}) == choose([one], 4.0, 0.25)


@pytest.mark.parametrize(
    ("low", "high", "kept"), [(-0.04, 0.01, "kept"), (-0.06, -0.01, "open"), (-0.09, -0.051, "broken")]
)
def test_the_end_of_the_interval_judges(low: float, high: float, kept: str) -> None:
    change = Interval((low + high) / 2, low, high)
    assert MetricBound("clip_score", -0.05, higher_is_better=True).judge(change) == kept
    assert MetricBound("error", 0.05, higher_is_better=False).judge(Interval(-change.value, -high, -low)) == kept


def test_a_change_that_is_not_known_keeps_no_bound() -> None:
    bound = MetricBound("clip_score", -0.05, higher_is_better=True)
    zero = ", as the unaccelerated pictures' mean may be 0"
    for figures, why in (({}, ""), ({"clip_score": MetricFigures(0.0, (0.0, 0.0))}, zero)):
        bar = barring([bound], figures)
        assert bar == Barring(False, f"does not surely keep clip_score=-5%: its change is not known{why}")


# --- statistics -------------------------------------------------------------------------------------------------


def test_a_change_is_paired_by_prompt() -> None:
    """Prompts differ by far more than pictures of the same one."""
    before = [20.0, 35.0, 27.0, 24.0, 31.0, 29.0]
    change = relative_change([0.97 * value for value in before], before)
    assert change is not None
    assert change.value == pytest.approx(-0.03)
    assert change.high - change.low == pytest.approx(0.0, abs=1e-6)
    shuffled = relative_change([0.97 * value for value in before[::-1]], before)
    assert shuffled is not None
    assert shuffled.low < -0.2 < 0.1 < shuffled.high


def test_a_change_from_about_nothing_is_not_known() -> None:
    assert relative_change([0.1, -0.2, 0.3], [0.0, 0.0, 0.0]) is None
    assert relative_change([1.0, 1.1, 0.9], [0.1, -0.2, 0.15]) is None
    assert relative_change([1.0], [1.0]) is None


def test_equal_pictures_change_by_exactly_nothing() -> None:
    assert relative_change([28.0, 31.0], [28.0, 31.0]) == Interval(0.0, 0.0, 0.0)
    assert relative_change([2.0, 2.0], [2.0, 2.0]) == Interval(0.0, 0.0, 0.0)


def test_a_metric_below_nothing_rises_where_its_change_is_above_0() -> None:
    change = relative_change([-0.5, -0.6, -0.7], [-1.0, -1.1, -1.2])
    assert change is not None
    assert 0 < change.low < change.value < change.high


@pytest.mark.parametrize("count", [8, 32])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_of_changes_cover_as_often_as_they_say(count: int, kind: str) -> None:
    """As of CLIP scores: prompts differ by 3 around 28, a candidate loses 0.5, most of it on a few prompts."""
    chance, tries, true = np.random.default_rng(7), 2000, -0.5 / 28
    covered = 0
    for _ in range(tries):
        before = chance.normal(28, 3, count)
        loss = chance.normal(0.5, 0.6, count) if kind == "normal" else chance.gamma(2, 0.25, count)
        change = relative_change((before - loss).tolist(), before.tolist())
        covered += change is not None and change.low <= true <= change.high
    assert 0.93 <= covered / tries <= 0.97


def test_a_metric_of_references_has_no_change() -> None:
    figures = metric_figures(MetricValues("psnr", (30.0, 32.0)))
    assert (figures.value, figures.change) == (31.0, None)
    assert GoldenMetric.of(figures).to_json().keys() == {"value", "ci95"}
    assert metric_figures(MetricValues("psnr", (30.0,))) == MetricFigures(30.0)


def test_values_recorded_without_cost_and_direction_are_read(plain: tuple[SearchFolder, CellWinners]) -> None:
    (made, *_) = stored_winners(plain[0]).values()
    known = MetricValues("faith 1", (28.0,), (28.5,), higher_is_better=True, unit="%", seconds=1.5)
    written = replace(made, metrics={"faith": known}).to_json()
    assert Measurement.from_json(written).metrics == {"faith": known}
    for field in ("higher_is_better", "unit", "seconds"):
        del written["metrics"]["faith"][field]
    assert Measurement.from_json(written).metrics == {"faith": MetricValues("faith 1", (28.0,), (28.5,))}


# --- options ----------------------------------------------------------------------------------------------------


class Error(Metric):
    """One where less is better."""

    name = "error"
    higher_is_better = False
    needs_references = False

    def score(
        self, images: Sequence[Any], references: Sequence[Any], prompts: Sequence[str], device: str
    ) -> list[float]:
        raise NotImplementedError


def known() -> MetricRegistry:
    registry = MetricRegistry()
    registry.register(Faith({}))
    registry.register(Error())
    return registry


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (["faith=5%"], "--bound: 'faith=5%' bounds the wrong side: more of faith is better, so write faith=-5% "),
        (["error=-5%"], "--bound: 'error=-5%' bounds the wrong side: less of error is better, so write error=+5% "),
        (["fiath=-5%"], "--bound: there is no metric 'fiath' (did you mean faith?); choose from lpips, "),
        (
            ["psnr=-5%"],
            "so it has no change from them; let it decide, --quality psnr --max-quality-loss VALUE, or bound ",
        ),
        (["lpips=+5%"], "so it has no change from them; --max-quality-loss bounds it"),
        (["faith"], "--bound: 'faith' is no bound; write a metric and the largest change, such as clip_score=-5%"),
        (["faith=-5..%"], "--bound: 'faith=-5..%' is no bound"),
        (["faith=-100%"], "bounds nothing"),
        (["faith=-5%", "faith=-3%"], "--bound: faith is bounded twice: faith=-5% and faith=-3%; keep one"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(bounds: list[str], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        chosen_metrics(None, bounds, 8, known())
    assert said in str(refused.value)


def test_a_bound_needs_two_pictures() -> None:
    with pytest.raises(OptionError, match="a single picture has no interval; give --num-samples 2"):
        chosen_metrics(None, ["faith=-5%"], 1, known())


def test_a_bound_asks_for_its_metric() -> None:
    names, bounds = chosen_metrics(["ssim, lpips"], ["error = 0.05", "faith=-2.5 %"], 8, known())
    assert names == ("ssim", *sorted(("faith", "error"), reverse=True))
    assert [str(bound) for bound in bounds] == ["faith=-2.5%", "error=+5%"]
    with pytest.raises(OptionError, match=r"--metrics: there is no metric 'sim' \(did you mean ssim\?\)"):
        chosen_metrics(["sim"], None, 8, known())


# --- a real one -------------------------------------------------------------------------------------------------


def test_a_bound_on_the_clip_score_lets_another_win_of_real_pictures(
    tmp_path: Path, everything_imported: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-GATE on the embedded SD1.5, scored by the embedded CLIP: one setting moves pictures less, and the other surely
    keeps more of their score. What the two take is the test's.
    """
    monkeypatch.chdir(tmp_path)
    without_scale(monkeypatch)
    clock = SteadyClock(monkeypatch)
    clock.step_s |= dict.fromkeys(("T-Gate:gated", "T-Gate:gated-reuse"), 0.001)
    moves_less, keeps_more = (
        {"gate_step": 15, "sp_interval": sp_interval, "fi_interval": fi_interval, "warm_up": warm_up}
        for sp_interval, fi_interval, warm_up in ((1, 5, 0), (3, 1, 2))
    )
    monkeypatch.setattr(TGate, "grid", lambda *_: (moves_less, keeps_more))

    def search(*options: str) -> GoldenEntry:
        parser = pytest.Parser(_ispytest=True)
        add_options(parser)
        cell = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse")
        given = parser.parse_known_args([*cell, "--search-targets", "tgate", *options])
        registry = default_registry()
        (found,) = drive(SearchRun(Settings.from_options(given, registry.names), registry))
        assert found.of_cell is not None
        return next(decided.entry for decided in found.of_cell.decided if decided.key.target == 1.2)

    by_lpips, bounded = search("--metrics", "clip_score"), search("--bound", "clip_score=-2.5%")
    assert by_lpips.params == {"T-Gate": moves_less}
    assert bounded.params == {"T-Gate": keeps_more}
    (alone, _), (kept, _) = (
        (entry.metrics or {})["clip_score"].change_ci95 or (0.0, 0.0) for entry in (by_lpips, bounded)
    )
    assert alone < -0.025 < kept
    assert by_lpips.lpips is not None
    assert bounded.lpips is not None
    assert by_lpips.lpips < bounded.lpips
