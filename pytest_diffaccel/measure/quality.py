"""How far a candidate's images moved: LPIPS, and PSNR and SSIM, which are recorded beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pytest_diffaccel.measure.measurement import Quality
from pytest_diffaccel.measure.metrics.lpips import KEPT_BYTES, KeptSide
from pytest_diffaccel.measure.metrics.psnr import peak_signal_to_noise
from pytest_diffaccel.measure.metrics.ssim import structural_similarity
from pytest_diffaccel.measure.statistics import loss_interval

if TYPE_CHECKING:
    from PIL.Image import Image


class References:
    """Baseline images that many candidates are compared with; their side of LPIPS is computed once.

    Attributes:
        images: those images.
    """

    def __init__(self, images: Sequence[Image], device: str = "cpu", *, keep: int = KEPT_BYTES) -> None:
        """Compare with ``images``, PIL images of equal size, on ``device``, keeping at most ``keep`` bytes."""
        self.images = images
        self._device = device
        self._side = KeptSide(images, device, keep=keep)

    @property
    def kept_bytes(self) -> int:
        """Size of what is kept."""
        return self._side.kept_bytes

    def distances(self, images: Sequence[Image], start: int = 0) -> list[float]:
        """LPIPS of each image to the reference at its place (:meth:`.KeptSide.distances`)."""
        return self._side.distances(images, start)

    def score(self, images: Sequence[Image], start: int = 0) -> Quality:
        """Quality of a candidate's images; takes and raises what :meth:`distances` does."""
        distances = self.distances(images, start)
        pairs = list(zip(map(np.array, images), self._pixels[start:], strict=False))
        return Quality(
            lpips=loss_interval(distances),
            psnr_db=float(np.mean([peak_signal_to_noise(*pair) for pair in pairs])),
            ssim=float(np.mean([structural_similarity(*pair, self._device) for pair in pairs])),
            lpips_per_sample=tuple(distances),
        )

    @cached_property
    def _pixels(self) -> list[NDArray[np.uint8]]:
        return [np.array(image) for image in self.images]


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
