"""Sets of images that the processes of a search share: made once, whole or not at all, by whoever comes first."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from searches import SMALL_OPTIONS, SearchFolder, SmallSearch

from pytest_diffaccel.accelerators.composition import default_registry
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.quality import score
from pytest_diffaccel.options import add_options
from pytest_diffaccel.records.images import ImageStore
from pytest_diffaccel.search.run import SearchRun
from pytest_diffaccel.settings import Settings


def pictures(seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)) for _ in range(3)]


def refuse() -> list[Image.Image]:
    raise AssertionError("made again")


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return all(np.array_equal(np.asarray(left), np.asarray(right)) for left, right in zip(one, other, strict=True))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def test_a_set_is_made_once_and_kept_to_the_last_pixel(store: ImageStore) -> None:
    store.make_unless_busy("cell", pictures)
    store.make_unless_busy("cell", refuse)
    assert same(store.find_or_make("cell", refuse), pictures())


def test_nobody_waits_for_a_set_that_another_makes_until_it_is_needed(store: ImageStore) -> None:
    making, may_end = threading.Event(), threading.Event()

    def slowly() -> list[Image.Image]:
        making.set()
        assert may_end.wait(60)
        return pictures()

    other = threading.Thread(target=store.make_unless_busy, args=("cell", slowly))
    other.start()
    try:
        assert making.wait(60)
        store.make_unless_busy("cell", refuse)
        assert store.find("cell") is None
    finally:
        may_end.set()
    images = store.find_or_make("cell", refuse)
    other.join()
    assert same(images, pictures())


def test_who_fails_to_make_a_set_leaves_it_to_others(store: ImageStore) -> None:
    with pytest.raises(AssertionError, match="made again"):
        store.make_unless_busy("cell", refuse)
    assert same(store.find_or_make("cell", pictures), pictures())
    store.save("cell", pictures(1))
    assert same(store.find_or_make("cell", refuse), pictures(1))


# --- reading a baseline's pictures once --------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each set was read from its files."""
    found: Counter[str] = Counter()
    find = ImageStore.find

    def count(store: ImageStore, name: str) -> list[Image.Image] | None:
        images = find(store, name)
        found[name] += images is not None
        return images

    monkeypatch.setattr(ImageStore, "find", count)
    return found


def test_a_search_reads_a_baselines_pictures_once(small_search: SmallSearch, readings: Counter[str]) -> None:
    small_search.race()
    assert len(small_search.stored()) > 2
    assert len(readings) == 2  # the search's pictures, and those that winners are verified on
    assert max(readings.values()) <= 1  # whoever makes them has them


def test_references_are_kept_for_one_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readings: Counter[str], everything_imported: None
) -> None:
    SearchFolder(tmp_path)
    monkeypatch.chdir(tmp_path)
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    options = [one if one != "Echo" else "ToMe" for one in SMALL_OPTIONS]
    registry = default_registry()
    bench = SearchRun(Settings.from_options(parser.parse_known_args(options), registry.names), registry).bench
    cell, other = (Cell("SD1.5", "DDIM", steps) for steps in (20, 15))
    kept = {purpose: bench.pictures.references(cell, purpose) for purpose in ("search", "winner")}
    for purpose, references in kept.items():
        images = bench.pictures.baseline(cell, purpose)
        assert references.score(images) == score(images, images)
        assert bench.pictures.references(cell, purpose) is references
    readings.clear()
    bench.pictures.references(other, "search")
    assert bench.pictures.references(cell, "winner") is not kept["winner"]
    assert sum(readings.values()) == 1
    bench.close()
