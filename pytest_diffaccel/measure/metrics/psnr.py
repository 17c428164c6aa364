"""PSNR: the power of the difference of pixels, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.measure.metrics.base import Metric, pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Identical images have infinite PSNR, which JSON cannot say.
_CAP_DB = 100.0


class Psnr(Metric):
    """Peak signal-to-noise ratio to the unaccelerated picture; 100 dB for identical ones."""

    name = "psnr"
    unit = "dB"
    higher_is_better = True
    needs_references = True
    lowest = 0.0
    highest = _CAP_DB

    def loss(self, value: float) -> float:
        """The root of the mean squared error, as a share of the pixels' range: decibels of it are no amounts."""
        return 10 ** (-value / 20) if value < _CAP_DB else 0.0

    def value_at(self, loss: float) -> float:
        """The decibels of such a root."""
        return min(_CAP_DB, -20 * math.log10(loss)) if loss > 0 else _CAP_DB

    def score(
        self, images: Sequence[Image], references: Sequence[Image], prompts: Sequence[str], device: str
    ) -> list[float]:
        """One picture after the other."""
        pairs = zip(pixels_of(images), pixels_of(references), strict=True)
        return [peak_signal_to_noise(one.to(device), other.to(device)) for one, other in pairs]


def peak_signal_to_noise(pixels: Tensor, reference: Tensor) -> float:
    """PSNR of two images of 8 bits per channel, dB, at most 100: computed in whole numbers, the same on every device.

    Args:
        pixels: (height, width, channels) uint8.
        reference: another image of this shape, on the same device.
    """
    difference = pixels.int() - reference.int()
    squared = int((difference * difference).sum()) / difference.numel()
    return min(_CAP_DB, 10 * math.log10(255**2 / squared)) if squared else _CAP_DB
