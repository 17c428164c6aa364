"""SSIM: luminance, contrast and structure in small windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.measure.metrics.base import Metric, MetricFault, pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Side of the window in which SSIM compares, pixels, and its constants (Wang et al., IEEE TIP 2004, section III-B).
_WINDOW, _K1, _K2 = 7, 0.01, 0.03


class Ssim(Metric):
    """Structural similarity to the unaccelerated picture; 1 for identical ones."""

    name = "ssim"
    higher_is_better = True
    needs_references = True
    lowest = -1.0
    highest = 1.0

    def score(
        self, images: Sequence[Image], references: Sequence[Image], prompts: Sequence[str], device: str
    ) -> list[float]:
        """One picture after the other: only its windows are in a GPU's memory."""
        width, height = images[0].size
        if min(width, height) < _WINDOW:
            raise MetricFault(f"ssim: pictures of {width} x {height} pixels are smaller than its window of {_WINDOW}")
        pairs = zip(pixels_of(images), pixels_of(references), strict=True)
        return [structural_similarity(one.to(device), other.to(device)) for one, other in pairs]


def structural_similarity(pixels: Tensor, reference: Tensor) -> float:
    """SSIM of two RGB images, the mean over places and channels; at most 1.

    Args:
        pixels: (height, width, 3) uint8, at least 7 pixels per side. A GPU gives the CPU's value, but for the last
            digits.
        reference: another image of this size, on the same device.
    """
    count = _WINDOW**2

    def local_mean(values: Tensor) -> Tensor:
        # One side after the other, seven additions each: torch's pooling adds all 49. Sums of whole numbers are exact.
        columns = values.unfold(1, _WINDOW, 1).sum(-1)
        return columns.unfold(2, _WINDOW, 1).sum(-1) / count

    one, other = (each.permute(2, 0, 1).double() for each in (pixels, reference))
    mean, other_mean = local_mean(one), local_mean(other)
    unbiased = count / (count - 1)
    variance = unbiased * (local_mean(one * one) - mean**2)
    other_variance = unbiased * (local_mean(other * other) - other_mean**2)
    covariance = unbiased * (local_mean(one * other) - mean * other_mean)
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    luminance = (2 * mean * other_mean + c1) / (mean**2 + other_mean**2 + c1)
    contrast_and_structure = (2 * covariance + c2) / (variance + other_variance + c2)
    return float((luminance * contrast_and_structure).mean())
