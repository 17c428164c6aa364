"""How many pictures a candidate's first evaluation draws: few where calls of a few are cheap, else whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from echo import NOTHING, Echo
from searches import SearchFolder, drive, open_run, without_scale
from timings import SteadyClock

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.measurement import Measurement
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search import null_control
from pytest_diffaccel.search.workbench import Workbench

CELL = Cell("SD1.5", "DDIM", 20)
POINTS = ((2, NOTHING), (10, NOTHING))
#: Eight pictures in batches of four.
OPTIONS = ("--num-samples", "8", "--batch-size", "4")
CHEAP = 0.25


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_pipeline: None) -> SearchFolder:
    """A folder in which nothing was searched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pytest_diffaccel.measure.blocks._REPEATS", 0)
    SteadyClock(monkeypatch)
    return SearchFolder(tmp_path)


@contextmanager
def scaled(*options: str) -> Iterator[Workbench]:
    """The workbench of a search that knows the scale of its losses."""
    run = open_run(*OPTIONS, *options, methods=[Echo(POINTS)])
    null_control.scaled_environment(run.bench, CELL)
    yield run.bench
    run.close()


def measurements(folder: SearchFolder) -> list[Measurement]:
    with Store.open(folder.store) as store:
        return [recorded.measurement for recorded in store.contents().measurements]


# --- where it is worth it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "first"),
    [
        (0.25, 2),  # nothing but pictures
        (0.39, 2),  # what a call takes beside its pictures is worth 0.9 of them
        (0.41, 4),  # 1.1
        (1.0, 4),
    ],
)
def test_few_are_drawn_where_a_call_takes_little_beside_its_pictures(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch, share: float, first: int
) -> None:
    without_scale(monkeypatch, alone_share=share)
    with scaled() as bench:
        assert bench.first_samples(CELL, "Echo") == first


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (("--batch-size", "1"), 2),
        (("--batch-size", "2"), 2),
        (("--num-samples", "1"), 1),
        (("--exhaustive",), 8),
        (("--stack", "compiled"), 4),  # another size would be compiled anew
    ],
)
def test_what_settings_say_of_it(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], first: int
) -> None:
    monkeypatch.setattr("pytest_diffaccel.accelerators.stack.BACKEND", "eager")
    monkeypatch.setattr(null_control, "measure_over_eager", lambda *_: None)
    without_scale(monkeypatch, alone_share=CHEAP)
    with scaled(*options) as bench:
        assert bench.first_samples(CELL, "Echo") == first


def test_whole_batches_are_drawn_where_the_size_of_a_batch_shows_in_pictures(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_scale(monkeypatch, batch=0.006, alone_share=CHEAP)
    with scaled() as bench:
        assert bench.first_samples(CELL, "Echo") == 4


def test_whole_batches_are_drawn_where_the_pictures_of_one_decide_together(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_scale(monkeypatch, alone_share=CHEAP)
    with scaled() as bench:
        monkeypatch.setattr("pytest_diffaccel.accelerators.composition.Accelerator.deciding", Echo(POINTS))
        assert bench.first_samples(CELL, "Echo") == 4


def test_as_long_as_nothing_is_known_of_calls_batches_are_whole(folder: SearchFolder) -> None:
    run = open_run(*OPTIONS, methods=[Echo(POINTS)])
    assert run.bench.first_samples(CELL, "Echo") == 4
    run.close()


# --- what a search makes of it -----------------------------------------------------------------------------------


def test_a_search_begins_with_two_pictures_and_verifies_with_all(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two are those of a whole batch, and what a batch takes of memory is seen when batches are whole."""
    drawn: list[int] = []
    generate = Generate._generate

    def noted(self: Generate, prompts: Sequence[str], *args: Any) -> Any:
        drawn.append(len(prompts))
        return generate(self, prompts, *args)

    monkeypatch.setattr(Generate, "_generate", noted)
    without_scale(monkeypatch, alone_share=CHEAP)
    (found,) = drive(open_run(*OPTIONS, methods=[Echo(POINTS)]))
    few = {one.candidate.key: one for one in measurements(folder) if one.sampling.num_samples == 2}
    won = [one for one in measurements(folder) if one.sampling.purpose == "winner"]
    assert found.of_cell is not None
    assert few
    assert {one.sampling.purpose for one in few.values()} == {"search"}
    assert {one.peak_memory_mb for one in few.values()} == {None}
    assert won
    assert all(one.sampling.num_samples == 8 and one.peak_memory_mb for one in won)
    assert {1, 2, 4} >= set(drawn) >= {2, 4}

    without_scale(monkeypatch)
    for table in ("measurements", "environments"):
        folder.execute(f"DELETE FROM diffaccel_{table}")
    drive(open_run(*OPTIONS, "--fresh", methods=[Echo(POINTS)]))
    whole = {one.candidate.key: one for one in measurements(folder) if one.sampling.num_samples == 4}
    for key in few.keys() & whole.keys():
        losses = whole[key].quality.lpips_per_sample
        assert few[key].quality.lpips_per_sample == pytest.approx(losses[:2], abs=1e-4)
    assert few.keys() & whole.keys()
    assert {bool(one.peak_memory_mb) for one in whole.values()} == {True}


def test_a_search_tells_how_long_calls_of_one_picture_take(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the quickest of each: here a call takes a second, and two per picture."""
    now = 0.0
    call = Generate.__call__

    def timed(self: Generate, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        nonlocal now
        now += 1 + 2 * len(prompts) + (seeds[0] % 2)
        return call(self, prompts, seeds)

    monkeypatch.setattr(Generate, "__call__", timed)
    monkeypatch.setattr(null_control, "time", SimpleNamespace(perf_counter=lambda: now))
    with scaled() as bench:
        scale = bench.environment(CELL).scale
        assert scale is not None
        assert scale.alone_share == pytest.approx(3 / 9)
        assert bench.first_samples(CELL, "Echo") == 2
