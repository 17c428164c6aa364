"""A metric of one's own, complete: what it says of itself, and its value of each picture.

docs/own_metric.md goes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_diffaccel.measure.metrics.base import Metric

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.measure.metrics.registry import MetricRegistry


class Sharpness(Metric):
    """Variance of the picture's Laplacian: little is left of it where an accelerator blurs. Noise is sharp, too."""

    name = "sharpness"
    higher_is_better = True
    needs_references = False
    lowest = 0.0

    def score(
        self, images: Sequence[Image], references: Sequence[Image], prompts: Sequence[str], device: str
    ) -> list[float]:
        """Each picture by itself, on the CPU: a few additions per pixel."""
        return [float(_laplacian(image).var()) for image in images]


def _laplacian(image: Image) -> np.ndarray:
    """Four times each pixel's brightness less its neighbours', without the pixels at the edge."""
    grey = np.asarray(image.convert("L"), dtype=float)
    return 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]


# Optional: the plugin may be switched off (-p no:diffaccel).
@pytest.hookimpl(optionalhook=True)
def pytest_diffaccel_metrics(registry: MetricRegistry) -> None:
    """Let searches know the metric."""
    registry.register(Sharpness())
