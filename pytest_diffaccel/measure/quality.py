"""How far a candidate's images moved: LPIPS, and PSNR and SSIM, which are recorded beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from pytest_diffaccel.measure.measurement import Quality
from pytest_diffaccel.measure.metrics.base import check_pairs, pixels_of
from pytest_diffaccel.measure.metrics.lpips import KEPT_BYTES, KeptSide, check_size
from pytest_diffaccel.measure.metrics.psnr import peak_signal_to_noise
from pytest_diffaccel.measure.metrics.ssim import structural_similarity
from pytest_diffaccel.measure.statistics import loss_interval

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class References:
    """Baseline images that many candidates are compared with; their side of LPIPS is computed once.

    Attributes:
        images: those images.
    """

    def __init__(self, images: Sequence[Image], device: str = "cpu", *, keep: int = KEPT_BYTES) -> None:
        """Compare with ``images``, PIL images of equal size, on ``device``, keeping at most ``keep`` bytes."""
        self.images = images
        self._device = device
        self._most_bytes = keep

    @property
    def kept_bytes(self) -> int:
        """Size of what is kept of LPIPS."""
        return self._side.kept_bytes

    def distances(self, images: Sequence[Image], start: int = 0) -> list[float]:
        """LPIPS of each image to the reference at its place.

        Args:
            images: PIL images, of the references' size.
            start: place among the references of the first image's.

        Raises:
            ValueError: when there are no images, fewer references from ``start`` on, sizes differ, or LPIPS cannot
                compare what is so small.
        """
        return self._side.distances(self._pixels_of(images, start), start)

    def score(self, images: Sequence[Image], start: int = 0) -> Quality:
        """Quality of a candidate's images; takes and raises what :meth:`distances` does."""
        pixels = self._pixels_of(images, start)
        distances = self._side.distances(pixels, start)
        psnr_db, ssim = [], []
        for pair in zip(pixels, self._pixels[start:], strict=False):
            own, other = (each.to(self._device) for each in pair)
            psnr_db.append(peak_signal_to_noise(own, other))
            ssim.append(structural_similarity(own, other))
        return Quality(loss_interval(distances), fmean(psnr_db), fmean(ssim), tuple(distances))

    def _pixels_of(self, images: Sequence[Image], start: int) -> Tensor:
        if start < 0:
            raise ValueError(f"start={start} must be at least 0")
        check_pairs(images, self.images[start : start + len(images)])
        check_size(*images[0].size)
        return pixels_of(images)

    @cached_property
    def _side(self) -> KeptSide:
        return KeptSide(self._pixels, self._device, keep=self._most_bytes)

    @cached_property
    def _pixels(self) -> Tensor:
        """The references' pixels: in a GPU's memory where they take no more of it than may be kept."""
        pixels = pixels_of(self.images)
        return pixels.to(self._device) if pixels.nbytes <= self._most_bytes else pixels


def pooled_quality(one: Quality, other: Quality) -> Quality:
    """Quality over the samples of both, ``one``'s first."""
    first, second = len(one.lpips_per_sample), len(other.lpips_per_sample)
    distances = one.lpips_per_sample + other.lpips_per_sample

    def mean(left: float, right: float) -> float:
        return (first * left + second * right) / (first + second)

    return Quality(
        lpips=loss_interval(distances),
        psnr_db=mean(one.psnr_db, other.psnr_db),
        ssim=mean(one.ssim, other.ssim),
        lpips_per_sample=distances,
    )
