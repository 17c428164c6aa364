"""Pictures that say nothing: whatever they are compared with, nobody could tell a good one from a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

#: What an unaccelerated pipeline usually draws nothing by, and what to do.
USUAL_CAUSES = (
    "Usual causes: a VAE that overflows in float16 (in the --models file, name another with vae = ... or set dtype = "
    '"float32"); a scheduler_config.json that does not fit the weights (prediction_type, timestep_spacing, '
    "rescale_betas_zero_snr); a tokenizer without its vocabulary"
)
# Root mean square of differences, in levels of 255: rounding leaves less, and no eye sees it.
_NOTHING_LEVELS = 1.0


class DegeneratePictures(RuntimeError):
    """A pipeline, unaccelerated or accelerated, draws pictures that say nothing; the message says what shows it."""


def degenerate(images: Sequence[Image]) -> str | None:
    """What shows that images of different prompts and seeds say nothing, in words; None when nothing does.

    Args:
        images: RGB of one size, at least one. Values that are not finite become one colour.
    """
    first = _levels(images[0])
    plain = sum(_is_plain(_levels(image)) for image in images)
    if plain:
        return f"{plain} of {len(images)} pictures have one colour or nearly one (what is not finite is drawn black)"
    if len(images) > 1 and all(_is_nothing(_levels(image) - first) for image in images[1:]):
        return f"all {len(images)} pictures are the same or nearly so, whatever prompt and seed"
    return None


def same_pictures(one: Image, other: Image) -> bool:
    """Whether nobody could tell two pictures of one size apart."""
    return _is_nothing(_levels(one) - _levels(other))


def check_candidate(images: Sequence[Image]) -> None:
    """Refuse what an accelerated pipeline drew, where it says nothing.

    Raises:
        DegeneratePictures: saying what shows it.
    """
    fault = degenerate(images)
    if fault is not None:
        raise DegeneratePictures(f"these parameters draw nothing: {fault}")


def _levels(image: Image) -> NDArray[np.float32]:
    return np.asarray(image, dtype=np.float32)


def _is_plain(levels: NDArray[np.float32]) -> bool:
    return _is_nothing(levels - levels.mean(axis=(0, 1)))


def _is_nothing(differences: NDArray[np.float32]) -> bool:
    return bool(np.sqrt(np.mean(np.square(differences))) <= _NOTHING_LEVELS)
