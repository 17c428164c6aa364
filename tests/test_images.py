"""Sets of images that the processes of a search share: made once, whole or not at all, by whoever comes first."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from searches import SMALL_OPTIONS, SearchFolder, SmallSearch

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.records.images import ImageStore, is_damaged
from pytest_diffaccel.search.search_run import SearchRun
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings


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


# --- sets that are not as they were saved ------------------------------------------------------------------------


def remove_one(folder: Path) -> None:
    (folder / "0000.png").unlink()


def remove_all(folder: Path) -> None:
    for file in folder.glob("*.png"):
        file.unlink()


def cut_short(folder: Path) -> None:
    file = folder / "0001.png"
    file.write_bytes(file.read_bytes()[:200])


def other_pixels(folder: Path) -> None:
    """A whole PNG, of another picture."""
    pictures(7)[1].save(folder / "0001.png")


def one_bit(folder: Path) -> None:
    file = folder / "0002.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def one_more(folder: Path) -> None:
    (folder / "0003.png").write_bytes((folder / "0000.png").read_bytes())


def swapped(folder: Path) -> None:
    (folder / "0000.png").rename(folder / "kept")
    (folder / "0001.png").rename(folder / "0000.png")
    (folder / "kept").rename(folder / "0001.png")


def no_manifest(folder: Path) -> None:
    """As older versions left it."""
    (folder / "manifest.json").unlink()


def half_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"pictures": {"0000.png"')


DAMAGES = [remove_one, remove_all, cut_short, other_pixels, one_bit, one_more, swapped, no_manifest, half_a_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_set_that_is_not_as_it_was_saved_is_made_anew(store: ImageStore, damage: Callable[[Path], None]) -> None:
    store.save("cell", pictures())
    damage(store.path("cell"))
    assert store.find("cell") is None
    assert same(store.find_or_make("cell", lambda: pictures(1)), pictures(1))
    assert same(store.find_or_make("cell", refuse), pictures(1))
    damage(store.path("cell"))
    store.make_unless_busy("cell", lambda: pictures(2))
    assert same(store.find_or_make("cell", refuse), pictures(2))


def test_only_a_set_that_contradicts_its_manifest_is_called_damaged(store: ImageStore) -> None:
    store.save("cell", pictures())
    folder = store.path("cell")
    assert not is_damaged(folder)
    one_bit(folder)
    assert is_damaged(folder)
    no_manifest(folder)
    assert not is_damaged(folder)
    assert not is_damaged(store.path("another"))


def test_leftovers_of_killed_writers_are_swept_and_those_of_living_ones_stay(store: ImageStore) -> None:
    left, living = (store.folder / f".unfinished-{name}" for name in ("left", "living"))
    for folder in (left, living):
        (folder / "new").mkdir(parents=True)
    os.utime(left, (0, 0))
    store.save("cell", pictures())
    assert not left.exists()
    assert living.exists()


def test_who_fails_to_write_a_set_leaves_the_old_one_and_nothing_else(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("cell", pictures())

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        store.save("cell", pictures(1))
    assert same(store.find_or_make("cell", refuse), pictures())
    assert [path.name for path in store.folder.iterdir() if path.is_dir()] == [store.path("cell").name]


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


def test_a_search_reads_a_baselines_pictures_once(steady_search: SmallSearch, readings: Counter[str]) -> None:
    steady_search.race()
    assert len(steady_search.stored()) > 2
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
        assert references.score(images) == References(images).score(images)
        assert bench.pictures.references(cell, purpose) is references
    readings.clear()
    bench.pictures.references(other, "search")
    assert bench.pictures.references(cell, "winner") is not kept["winner"]
    assert sum(readings.values()) == 1
    bench.close()
