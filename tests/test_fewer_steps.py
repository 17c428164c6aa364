"""The rival with fewer steps: drawn until it is clear that it loses more than a winner, and no further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from echo import NOTHING, Echo
from searches import SearchFolder, open_run

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement, Quality
from pytest_diffaccel.measure.statistics import loss_interval
from pytest_diffaccel.records.golden_parts import FewerSteps
from pytest_diffaccel.report.html.content.cells import cells_of
from pytest_diffaccel.search.decide.select import Choice, Option
from pytest_diffaccel.search.outcome import golden_entry
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.verify.fewer_steps import rival
from pytest_diffaccel.search.verify.verification import Winner
from pytest_diffaccel.search.workbench import Workbench

CELL = Cell("SD1.5", "DDIM", 20)
CANDIDATE = Candidate(CELL, "Echo", {"Echo": {"echo_interval": 2, "mishap": NOTHING}})
#: Nothing is timed: all steps take as long, and what surrounds them as one of them.
COSTS = CostModel.fit(default_registry(), [])
SAMPLES = ("--num-samples", "20", "--batch-size", "4")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything_imported: None) -> Callable[..., Workbench]:
    """Opens workbenches on one store."""
    monkeypatch.chdir(SearchFolder(tmp_path).path)
    return lambda *options: open_run(*SAMPLES, *options, methods=[Echo([(2, NOTHING)])]).bench


def winner(bench: Workbench, losses: Sequence[float]) -> Measurement:
    """One that lost so much on each of the winners' samples."""
    twice = Interval(2.0, 1.9, 2.1)
    quality = Quality(loss_interval(losses), psnr_db=30.0, ssim=0.9, lpips_per_sample=tuple(losses))
    place = bench.environment(CELL).id, bench.sampling(CELL, "winner")
    return Measurement(CANDIDATE, *place, twice, twice, True, quality, ())


def found(bench: Workbench, losses: Sequence[float]) -> Measurement:
    made = rival(bench, CELL, COSTS, 2.0, winner(bench, losses))
    assert made is not None
    return made


def test_what_clearly_loses_more_is_drawn_no_further(opened: Callable[..., Workbench]) -> None:
    """Eight pictures at the least: two batches of four."""
    bench = opened()
    made = found(bench, [0.0] * 20)
    assert (made.candidate.cell.steps, made.sampling.num_samples) == (9, 8)
    assert len(made.quality.lpips_per_sample) == 8
    assert min(made.quality.lpips_per_sample) > 0
    assert bench.store.evaluations(made.environment, made.sampling) == [made]


def test_what_may_lose_less_is_drawn_to_the_end(opened: Callable[..., Workbench]) -> None:
    assert found(opened(), [1.0] * 20).sampling.num_samples == 20


def test_another_winner_takes_up_what_was_drawn(
    opened: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same figures as if all had been drawn at once; and what has all samples draws nothing any more."""
    bench, drawn = opened(), list[str]()
    generating = bench.generating
    monkeypatch.setattr(bench, "generating", lambda *args: drawn.append(args[2]) or generating(*args))
    first, whole = found(bench, [0.0] * 20), found(bench, [1.0] * 20)
    again = found(bench, [0.0] * 20)
    assert again == whole
    assert drawn.count("fewer steps") == 2
    assert whole.quality.lpips_per_sample[:8] == first.quality.lpips_per_sample
    assert whole.quality.lpips == loss_interval(whole.quality.lpips_per_sample)
    (record,) = cells_of(bench.store.contents())
    assert record.rivals == (whole,)
    fresh = found(opened("--fresh"), [1.0] * 20)
    assert fresh.quality.lpips_per_sample == pytest.approx(whole.quality.lpips_per_sample, rel=1e-4)
    assert (fresh.quality.psnr_db, fresh.quality.ssim) == pytest.approx((whole.quality.psnr_db, whole.quality.ssim))


def test_a_difference_that_may_be_chance_is_not_clear(opened: Callable[..., Workbench]) -> None:
    """Pictures of which a few lost much: what lost as much in the others may be as good."""
    bench = opened()
    own = found(bench, [1.0] * 20).quality.lpips_per_sample
    near = [loss * (1.5 if place % 2 else 0.4) for place, loss in enumerate(own)]
    assert found(opened("--fresh"), near).sampling.num_samples == 20


def test_other_metrics_get_all_pictures(opened: Callable[..., Workbench]) -> None:
    made = found(opened("--metrics", "psnr"), [0.0] * 20)
    assert made.sampling.num_samples == len(made.metrics["psnr"].values) == 20


def test_metrics_are_of_all_pictures_whatever_was_drawn_before(opened: Callable[..., Workbench]) -> None:
    few = found(opened("--metrics", "psnr", "--num-samples", "8"), [0.0] * 8)
    made = found(opened("--metrics", "psnr"), [0.0] * 20)
    assert few.sampling.num_samples == 8
    assert made.sampling.num_samples == len(made.metrics["psnr"].values) == 20


def test_what_ends_in_the_middle_of_a_batch_is_drawn_anew(opened: Callable[..., Workbench]) -> None:
    """Its other pictures' batches would be others than the unaccelerated pipeline's."""
    assert found(opened("--num-samples", "10"), [1.0] * 10).sampling.num_samples == 10
    assert found(opened(), [0.0] * 20).sampling.num_samples == 8


def test_golden_says_how_many_pictures_showed_it(opened: Callable[..., Workbench]) -> None:
    bench = opened()
    environment = bench.environment(CELL)

    def fewer_steps(losing: Sequence[float]) -> FewerSteps:
        won = winner(bench, losing)
        choice = Choice(2.0, Option(CANDIDATE, won.speedup, tuple(losing)), None)
        entry = golden_entry(Winner(choice, won, found(bench, losing)), environment)
        assert entry.fewer_steps is not None
        assert entry.beats_fewer_steps is (losing[0] == 0)
        return entry.fewer_steps.rounded()

    few, every = fewer_steps([0.0] * 20), fewer_steps([1.0] * 20)
    assert few.to_json()["num_samples"] == 8
    assert "num_samples" not in every.to_json()
