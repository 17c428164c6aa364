"""Where a picture differs from another: a map to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

# Viridis (van der Walt and Smith, matplotlib 1.5) at equal distances, red, green and blue.
_VIRIDIS = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)


# A map of a larger picture is made of the picture at this size: LPIPS of many megapixels takes minutes.
_LARGEST_SIDE = 512


@dataclass(frozen=True)
class Maps:
    """Maps of pairs of pictures.

    Attributes:
        kind: what they show, in words.
        values: one per pair, (height, width), at most 512 to a side; 0 for no difference.
    """

    kind: str
    values: tuple[NDArray[np.float32], ...]


def difference_maps(images: Sequence[Image], references: Sequence[Image]) -> Maps:
    """LPIPS at each place of each pair; the absolute difference of pixels where LPIPS cannot be computed.

    Args:
        images: PIL images, at least one.
        references: as many, each of its image's size.
    """
    images, references = ([_shrunk(image) for image in part] for part in (images, references))
    try:
        from pytest_diffaccel.measure.metrics.lpips import lpips_maps

        return Maps("LPIPS", tuple(lpips_maps(images, references)))
    except (ImportError, OSError, RuntimeError):
        return Maps("absolute difference of pixels", tuple(map(_absolute, images, references)))


def _shrunk(image: Image) -> Image:
    from PIL import Image as pillow

    longest = max(image.size)
    if longest <= _LARGEST_SIDE:
        return image
    size = [max(1, round(side * _LARGEST_SIDE / longest)) for side in image.size]
    return image.resize((size[0], size[1]), pillow.Resampling.LANCZOS)


def _absolute(image: Image, reference: Image) -> NDArray[np.float32]:
    difference = np.asarray(image, dtype=np.float32) - np.asarray(reference, dtype=np.float32)
    mean: NDArray[np.float32] = np.abs(difference).mean(axis=2) / 255
    return mean


def coloured(values: NDArray[np.float32], top: float) -> Image:
    """A map in viridis colours: dark for 0, yellow for ``top`` and above."""
    from PIL import Image

    place = np.clip(values / top if top > 0 else values, 0, 1) * (len(_VIRIDIS) - 1)
    table: Any = np.array(_VIRIDIS, dtype=float)
    channels = [np.interp(place, range(len(_VIRIDIS)), table[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8), "RGB")
