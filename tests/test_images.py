"""Sets of images that the processes of a search share: made once, whole or not at all, by whoever comes first."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pytest_diffaccel.records.images import ImageStore


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
