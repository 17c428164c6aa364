"""The picture grid: a column for the baseline and each accelerator, of one cell, each with its own pictures."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from entries import MET
from PIL import Image
from searches import SmallSearch

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.images import ImageStore
from pytest_diffaccel.report.picture_grid import PictureFolders, write_picture_grid

UNATTAINABLE = replace(MET, status="unattainable", reason="speed")
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
Colour = tuple[int, int, int]


def key(accelerator: str, target: float, *, steps: int = 20) -> GoldenKey:
    return GoldenKey(Cell("SD1.5", "DDIM", steps), accelerator, target)


@pytest.fixture
def folder(tmp_path: Path) -> object:
    """Makes a folder of pictures of one colour."""

    def make(colour: Colour, count: int = 2) -> Path:
        path = tmp_path / f"{colour}x{count}"
        path.mkdir(exist_ok=True)
        for number in range(count):
            Image.new("RGB", (32, 32), colour).save(path / f"{number:04d}.png")
        return path

    return make


def pictures(baseline: Path, winner: Path) -> PictureFolders:
    prompts = tuple(f"prompt {number}" for number in range(len(list(winner.glob("*.png")))))
    return PictureFolders(prompts, baseline, winner)


def columns(path: Path) -> list[Colour]:
    """The colours of the pictures in the grid's first row, from left to right."""
    with Image.open(path) as grid:
        row = [grid.getpixel((left, 160)) for left in range(grid.width)]
    return [colour for colour, _ in groupby(row) if colour in (RED, GREEN, BLUE, GREY)]


def rows(path: Path) -> int:
    """How many pictures stand above each other in the last column."""
    with Image.open(path) as grid:
        column = [grid.getpixel((grid.width - 100, top)) for top in range(grid.height)]
    return sum(colour == RED for colour, _ in groupby(column))


def test_a_column_for_the_baseline_and_each_accelerator_in_prompt_order(folder, tmp_path: Path) -> None:
    baseline = folder(GREY)
    entries = {key("ToMe", 1.2): MET, key("DeepCache", 1.2): MET}
    folders = {
        key("ToMe", 1.2): pictures(baseline, folder(RED)),
        key("DeepCache", 1.2): pictures(baseline, folder(GREEN)),
    }
    assert write_picture_grid(tmp_path / "new" / "grid.png", entries, folders)
    assert columns(tmp_path / "new" / "grid.png") == [GREY, GREEN, RED]


def test_an_accelerator_is_shown_at_twice_the_speed_or_the_nearest_met_below(folder, tmp_path: Path) -> None:
    colours = {1.2: RED, 1.8: GREEN, 3.0: BLUE}
    entries = {key("ToMe", target): MET for target in colours}
    folders = {key("ToMe", target): pictures(folder(GREY), folder(colour)) for target, colour in colours.items()}
    write_picture_grid(tmp_path / "grid.png", entries, folders)
    assert columns(tmp_path / "grid.png") == [GREY, GREEN]


def test_an_accelerator_that_meets_nothing_is_shown_at_its_best(folder, tmp_path: Path) -> None:
    entries = {key("ToMe", target): UNATTAINABLE for target in (1.2, 1.5)}
    folders = {one: pictures(folder(GREY), folder(RED)) for one in entries}
    write_picture_grid(tmp_path / "grid.png", entries, folders)
    assert columns(tmp_path / "grid.png") == [GREY, RED]


def test_cells_are_not_mixed(folder, tmp_path: Path) -> None:
    entries = {key("ToMe", 1.2): MET, key("DeepCache", 1.2, steps=50): MET}
    folders = {
        key("ToMe", 1.2): pictures(folder(GREY), folder(RED)),
        key("DeepCache", 1.2, steps=50): pictures(folder(BLUE), folder(GREEN)),
    }
    write_picture_grid(tmp_path / "grid.png", entries, folders)
    assert columns(tmp_path / "grid.png") == [GREY, RED]


@pytest.mark.parametrize(("made", "shown"), [(1, 1), (2, 2), (9, 6)])
def test_as_many_rows_as_pictures_but_no_more_than_six(folder, tmp_path: Path, made: int, shown: int) -> None:
    entries = {key("ToMe", 1.2): MET}
    folders = {key("ToMe", 1.2): pictures(folder(GREY, made), folder(RED, made))}
    write_picture_grid(tmp_path / "grid.png", entries, folders)
    assert rows(tmp_path / "grid.png") == shown


def test_pictures_that_are_not_as_they_were_saved_are_left_out(folder, tmp_path: Path) -> None:
    """With one gone, the others would stand beside other prompts."""
    images = ImageStore(tmp_path / "images")
    for name, colour in (("ToMe", RED), ("DeepCache", GREEN)):
        images.save(name, [Image.new("RGB", (32, 32), colour)] * 3)
    (images.path("DeepCache") / "0000.png").unlink()
    entries = {key("ToMe", 1.2): MET, key("DeepCache", 1.2): MET}
    folders = {one: pictures(folder(GREY, 3), images.path(one.accelerator)) for one in entries}
    write_picture_grid(tmp_path / "grid.png", entries, folders)
    assert columns(tmp_path / "grid.png") == [GREY, RED]


def test_without_pictures_nothing_is_written(tmp_path: Path) -> None:
    assert not write_picture_grid(tmp_path / "grid.png", {key("ToMe", 1.2): MET}, {})
    assert not (tmp_path / "grid.png").exists()


def test_a_search_writes_the_grid_of_its_winners(finished_search: SmallSearch) -> None:
    """Found stored or measured now, the pictures are there."""
    result = finished_search.run("--picture-grid", "out/grid.png")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["pictures: out/grid.png"])
    with Image.open(finished_search.path / "out" / "grid.png") as grid:
        right, top = grid.width - 8, 64
        winner, baseline = (grid.crop((end - 192, top, end, top + 192)) for end in (right, right - 200))
    for picture in (winner, baseline):
        assert len(picture.getcolors(1 << 20)) > 100
    assert baseline.tobytes() != winner.tobytes()
