"""Image quality: nothing for identical images, more for more damage, and no comparison of what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pytest_diffaccel.measure.measurement import Quality
from pytest_diffaccel.measure.metrics.lpips import SMALLEST_SIDE, lpips_distances, lpips_model
from pytest_diffaccel.measure.metrics.ssim import structural_similarity
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.measure.statistics import mean_interval


def picture(seed: int, side: int = 64) -> Image.Image:
    """A picture with edges and texture: a noisy disc on a gradient."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    centre = generator.uniform(0.3, 0.7, 2)
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.05
    colours = generator.integers(0, 256, (2, 3))
    pixels = np.where(disc[..., None], colours[0], colours[1] * rows[..., None]) + generator.normal(
        0, 8, (side, side, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PICTURES = [picture(seed) for seed in range(3)]


def blurred(radius: float) -> list[Image.Image]:
    return [image.filter(ImageFilter.GaussianBlur(radius)) for image in PICTURES]


def score(images: list[Image.Image], references: list[Image.Image]) -> Quality:
    """Quality against references of which nothing is kept."""
    return References(references, keep=0).score(images)


def test_identical_images_have_lost_nothing() -> None:
    quality = score(PICTURES, PICTURES)
    assert (quality.lpips.value, quality.lpips.low, quality.lpips.high) == (0.0, 0.0, 0.0)
    assert (quality.psnr_db, quality.ssim) == (100.0, pytest.approx(1.0))
    assert quality.lpips_per_sample == (0.0, 0.0, 0.0)


def test_more_blur_is_more_loss() -> None:
    qualities = [score(blurred(radius), PICTURES) for radius in (0.4, 0.8, 1.6, 3.2)]
    lpips = [quality.lpips.value for quality in qualities]
    psnr = [quality.psnr_db for quality in qualities]
    ssim = [quality.ssim for quality in qualities]
    assert lpips[0] > 0
    assert lpips == sorted(lpips)
    assert psnr == sorted(psnr, reverse=True)
    assert ssim == sorted(ssim, reverse=True)
    assert psnr[0] < 100
    assert ssim[0] < 1


def by_formula(height: int, width: int, noise: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of bands and the same with up to ``noise`` levels more or less, without a random number."""
    rows, columns, channels = np.mgrid[0:height, 0:width, 0:3]
    one = (3 * rows + 5 * columns + 40 * channels + rows * columns // 7) % 256
    other = one + (rows * rows + 11 * columns + 5 * channels) % noise - noise // 2
    return one.astype(np.uint8), other.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "noise", "ssim"),
    [
        (7, 7, 20, 0.9215312961512948),
        (17, 40, 60, 0.7456492288605284),
        (64, 64, 4, 0.9992277946363669),
        (64, 48, 200, 0.4636936825210299),
    ],
)
def test_ssim_is_that_of_scikit_image(height: int, width: int, noise: int, ssim: float) -> None:
    """Recorded from ``skimage.metrics.structural_similarity(one, other, channel_axis=2)`` of scikit-image 0.26.0."""
    one, other = map(torch.from_numpy, by_formula(height, width, noise))
    assert structural_similarity(other, one) == pytest.approx(ssim, abs=1e-12)


def test_psnr_is_that_of_scikit_image() -> None:
    """Recorded from ``skimage.metrics.peak_signal_noise_ratio(one, other)`` of scikit-image 0.26.0."""
    one, other = map(Image.fromarray, by_formula(64, 48, 200))
    assert score([other], [one]).psnr_db == pytest.approx(13.907602942188186, abs=1e-12)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(7, 60), height=st.integers(7, 60), noise=st.integers(1, 256))
def test_ssim_is_that_of_its_definition_window_by_window(seed: int, width: int, height: int, noise: int) -> None:
    """Wang et al., IEEE TIP 2004, equation 13, with windows of 7 pixels and unbiased variances."""
    generator = np.random.default_rng(seed)
    one = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    other = (one + generator.integers(-noise, noise, one.shape)).clip(0, 255).astype(np.uint8)
    x, y = (np.lib.stride_tricks.sliding_window_view(each.astype(float), (7, 7), (0, 1)) for each in (one, other))
    mean_x, mean_y = x.mean((-2, -1)), y.mean((-2, -1))
    covariance = ((x - mean_x[..., None, None]) * (y - mean_y[..., None, None])).sum((-2, -1)) / 48
    variances = x.var((-2, -1), ddof=1) + y.var((-2, -1), ddof=1)
    luminance = (2 * mean_x * mean_y + 2.55**2) / (mean_x**2 + mean_y**2 + 2.55**2)
    expected = luminance * (2 * covariance + 7.65**2) / (variances + 7.65**2)
    found = structural_similarity(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(expected.mean(), abs=1e-12)


def test_other_pictures_are_further_away_than_damaged_ones() -> None:
    others = PICTURES[1:] + PICTURES[:1]
    assert score(others, PICTURES).lpips.value > 2 * score(blurred(0.8), PICTURES).lpips.value


def test_one_changed_pixel_is_seen() -> None:
    changed = PICTURES[0].copy()
    changed.putpixel((10, 10), (255, 0, 255))
    quality = score([changed], PICTURES[:1])
    assert quality.lpips.value > 0
    assert quality.psnr_db < 100


def test_psnr_is_that_of_the_textbook() -> None:
    grey, lighter = (Image.new("RGB", (32, 32), (level,) * 3) for level in (100, 110))
    assert score([lighter], [grey]).psnr_db == pytest.approx(20 * math.log10(255 / 10))


def test_lpips_does_not_hang_on_the_order_of_the_two() -> None:
    there, back = lpips_distances(PICTURES, blurred(1)), lpips_distances(blurred(1), PICTURES)
    assert there == pytest.approx(back, rel=1e-4)


def test_each_sample_is_scored_against_the_one_in_its_place() -> None:
    mixed = [PICTURES[0], blurred(2)[1], PICTURES[2]]
    quality = score(mixed, PICTURES)
    assert [loss > 0 for loss in quality.lpips_per_sample] == [False, True, False]
    assert quality.lpips.value == pytest.approx(sum(quality.lpips_per_sample) / 3)


def test_more_images_than_the_network_takes_at_once_are_scored_alike() -> None:
    """The network runs in batches of eight; the ninth image is scored in another batch."""
    images, references = (blurred(1) * 3)[:9], (PICTURES * 3)[:9]
    distances = lpips_distances(images, references)
    assert len(distances) == 9
    assert distances[6:] == pytest.approx(distances[:3], rel=1e-4)


def test_pictures_too_small_for_the_network_are_refused_in_words() -> None:
    smallest = picture(0, SMALLEST_SIDE)
    assert score([smallest], [smallest]).lpips.value == 0
    small = picture(0, SMALLEST_SIDE - 1)
    with pytest.raises(ValueError, match="pictures of 16 x 16 pixels cannot be compared: LPIPS needs at least 17"):
        score([small], [small])


def test_interval_of_the_loss_is_that_of_its_samples_and_never_negative() -> None:
    quality = score([PICTURES[0], blurred(3)[1]], PICTURES[:2])
    expected = mean_interval(quality.lpips_per_sample)
    assert expected.low < 0
    assert (quality.lpips.low, quality.lpips.value, quality.lpips.high) == (0.0, expected.value, expected.high)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_scores_lie_in_their_ranges(one: int, other: int) -> None:
    quality = score([picture(one, 32)], [picture(other, 32)])
    assert 0 <= quality.lpips.value <= 2
    assert 0 <= quality.psnr_db <= 100
    assert -1 <= quality.ssim <= 1


def test_images_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different sizes .*\(32, 32\).*\(64, 64\)"):
        score([picture(0, 32)], PICTURES[:1])


def test_as_many_references_as_images_are_needed() -> None:
    with pytest.raises(ValueError, match="2 images cannot be compared with 3 references"):
        lpips_distances(PICTURES[:2], PICTURES)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        score([], [])


# --- references that are kept ------------------------------------------------------------------------------------


def as_the_library_has_it(images: list[Image.Image], references: list[Image.Image]) -> list[float]:
    """LPIPS of both sides by the library's own forward, in batches of eight from the first image on."""

    def tensor(part: list[Image.Image]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in part]))
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(images), 8):
            pair = (tensor(part[start : start + 8]) for part in (images, references))
            found += lpips_model("cpu")(*pair).flatten().tolist()
    return found


@contextmanager
def sides_through_the_network() -> Iterator[list[int]]:
    """Collects the number of images of each batch that goes into the network, of either side."""
    sides: list[int] = []
    hook = lpips_model("cpu").scaling_layer.register_forward_pre_hook(lambda _, args: sides.append(len(args[0])))
    try:
        yield sides
    finally:
        hook.remove()


MANY = [picture(seed, 32) for seed in range(20)]


@settings(max_examples=25)
@given(
    shift=st.integers(1, 19), spans=st.lists(st.tuples(st.integers(0, 19), st.integers(1, 20)), min_size=1, max_size=4)
)
def test_kept_references_score_to_the_last_bit_as_new_ones(shift: int, spans: list[tuple[int, int]]) -> None:
    """Whatever was asked of them before, and whether or not there is room to keep anything."""
    kept, little_room, no_room = References(MANY), References(MANY, keep=200_000), References(MANY, keep=0)
    for start, count in spans:
        part = MANY[start : start + count]
        images = (MANY[shift:] + MANY[:shift])[: len(part)]
        expected = score(images, part)
        assert list(expected.lpips_per_sample) == as_the_library_has_it(images, part)
        for references in (kept, little_room, no_room):
            assert references.score(images, start) == expected
            assert references.distances(images, start) == list(expected.lpips_per_sample)
        assert little_room.kept_bytes <= 200_000
    assert no_room.kept_bytes == 0 < kept.kept_bytes


def test_the_references_side_goes_through_the_network_once() -> None:
    references = References(MANY)
    with sides_through_the_network() as sides:
        references.score(MANY[:12])
        assert sorted(sides) == [4, 4, 8, 8]
        sides.clear()
        references.score(MANY[1:13])
        assert sorted(sides) == [4, 8]
        sides.clear()
        references.score(MANY[:8], 12)
        references.score(MANY[:8], 12)
        assert sides == [8, 8, 8]


def test_references_that_do_not_fit_are_computed_anew() -> None:
    """Two pictures of 32 pixels take 0.19 MiB: there is room for the first batch alone."""
    references = References(MANY, keep=1_000_000)
    with sides_through_the_network() as sides:
        references.score(MANY[:16])
        assert 0 < references.kept_bytes <= 1_000_000
        sides.clear()
        references.score(MANY[:16])
    assert len(sides) == 3


def test_a_part_of_the_references_that_is_not_there_is_refused() -> None:
    references = References(PICTURES)
    for start, count, message in (
        (0, 4, "4 images .* 3"),
        (2, 2, "2 images .* 1"),
        (3, 1, "1 images .* 0"),
        (0, 0, "0"),
    ):
        with pytest.raises(ValueError, match=message):
            references.score((PICTURES * 2)[:count], start)
    with pytest.raises(ValueError, match="start=-1"):
        references.distances(PICTURES[:1], -1)
    with pytest.raises(ValueError, match="different sizes"):
        references.score([picture(0, 32)])
