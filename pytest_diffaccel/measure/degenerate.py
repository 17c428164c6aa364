"""Pictures that say nothing: whatever they are compared with, nobody could tell a good one from a bad one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

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
    plain = sum(_is_plain(image) for image in images)
    if plain:
        return f"{plain} of {len(images)} pictures have one colour or nearly one (what is not finite is drawn black)"
    if len(images) > 1 and all(same_pictures(image, images[0]) for image in images[1:]):
        return f"all {len(images)} pictures are the same or nearly so, whatever prompt and seed"
    return None


def same_pictures(one: Image, other: Image) -> bool:
    """Whether nobody could tell two pictures of one size apart."""
    from PIL import ImageChops, ImageStat

    return _is_nothing([value**2 for value in ImageStat.Stat(ImageChops.difference(one, other)).rms])


def check_candidate(images: Sequence[Image]) -> None:
    """Refuse what an accelerated pipeline drew, where it says nothing.

    Raises:
        DegeneratePictures: saying what shows it.
    """
    fault = degenerate(images)
    if fault is not None:
        raise DegeneratePictures(f"these parameters draw nothing: {fault}")


def _is_plain(image: Image) -> bool:
    from PIL import ImageStat

    return _is_nothing(ImageStat.Stat(image).var)


def _is_nothing(mean_squares: Sequence[float]) -> bool:
    """Whether differences are none to the eye, by the mean of their squares in each channel."""
    return math.sqrt(fmean(mean_squares)) <= _NOTHING_LEVELS
