"""Pictures that say nothing: whatever they are compared with, nobody could tell a good one from a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def degenerate(images: Sequence[Image]) -> str | None:
    """What shows that images of different prompts and seeds say nothing, in words; None when nothing does.

    Args:
        images: RGB, at least one. Values that are not finite become one colour.
    """
    plain = sum(not np.ptp(np.asarray(image), axis=(0, 1)).any() for image in images)
    if plain:
        return f"{plain} of {len(images)} pictures have one colour (what is not finite is drawn black)"
    if len(images) > 1 and len({image.tobytes() for image in images}) == 1:
        return f"all {len(images)} pictures are the same, whatever prompt and seed"
    return None
