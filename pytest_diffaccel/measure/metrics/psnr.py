"""PSNR: the power of the difference of pixels, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.measure.metrics.base import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

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
        """On the CPU, whatever the device: a subtraction takes less than copying pictures there."""
        import numpy as np

        pairs = zip(images, references, strict=True)
        return [peak_signal_to_noise(np.array(image), np.array(reference)) for image, reference in pairs]


def peak_signal_to_noise(pixels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """PSNR of two images of 8 bits per channel, dB, at most 100.

    Args:
        pixels: (height, width, channels).
        reference: another image of this shape.
    """
    import numpy as np

    squared = float(np.mean((pixels.astype(float) - reference) ** 2))
    return min(_CAP_DB, 10 * math.log10(255**2 / squared)) if squared else _CAP_DB
