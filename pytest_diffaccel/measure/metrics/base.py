"""What a metric of pictures must say of itself, and what becomes of one that gives no usable value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# How far beyond its range rounding may carry a value, and how many values a message names at most.
_SLACK, _NAMED = 1e-6, 8


class MetricFault(ValueError):
    """A metric that cannot be computed, or gave what is no value for each picture. The message names it."""


class Metric(ABC):
    """One metric of pictures; ``docs/own_metric.md`` shows how one is written.

    An object serves a whole session. It is made in every process before that knows its device, so whatever is heavy
    is loaded by :meth:`prepare` or at the first :meth:`score`.

    Attributes:
        name: as options, records and reports spell it: ASCII letters, digits and ``_``, a letter first.
        unit: of its values, such as ``"dB"``; empty for a number without one.
        higher_is_better: whether more is better.
        needs_references: whether it compares with the unaccelerated pictures: then it may decide a search
            (:meth:`loss`). One that does not may bound it, but never chooses a winner: pictures without anything on
            them can outscore good ones.
        needs_prompts: whether it reads what the pictures were asked to show.
        weights: which weights it needs and where they come from, for people; empty: none.
        lowest: lower end of its range; minus infinity without one.
        highest: upper end of its range; infinity without one.
    """

    name: str
    higher_is_better: bool
    needs_references: bool
    unit: str = ""
    needs_prompts: bool = False
    weights: str = ""
    lowest: float = -math.inf
    highest: float = math.inf

    @property
    def best(self) -> float:
        """Value of a picture that equals its reference: the better end of the range."""
        return self.highest if self.higher_is_better else self.lowest

    def loss(self, value: float) -> float:
        """How much a picture lost, which a search that this metric decides minimises in the mean.

        The search takes losses below 0.005 for none, and about 0.5 for those of unrelated pictures. This is the
        distance to :attr:`best`, as a share of the range where that has two ends. A metric of another shape gives a
        loss of its own, and :meth:`value_at` with it.

        Args:
            value: of the picture, within the range.

        Returns:
            At least 0: 0 at :attr:`best`, more for worse values.
        """
        return max(0.0, (self.best - value if self.higher_is_better else value - self.best) / self._span)

    def value_at(self, loss: float) -> float:
        """The value of a :meth:`loss`."""
        far = loss * self._span
        return self.best - far if self.higher_is_better else self.best + far

    @property
    def _span(self) -> float:
        span = self.highest - self.lowest
        return span if math.isfinite(span) else 1.0

    @property
    def identity(self) -> str:
        """What two values must have in common to be compared, for records: of one without weights, its name.

        A metric with weights adds where they come from and their digest, and may have to load them for that.

        Raises:
            MetricFault: when its weights cannot be had, naming the fix.
        """
        return self.name

    def prepare(self, device: str) -> None:
        """Get whatever scoring needs, such as weights, before anything is measured. Most need nothing.

        Args:
            device: torch device that scores.

        Raises:
            MetricFault: naming what is missing and the fix.
        """
        return None

    @abstractmethod
    def score(
        self, images: Sequence[Image], references: Sequence[Image], prompts: Sequence[str], device: str
    ) -> Sequence[float]:
        """One finite value per picture, in their order, within the metric's range.

        Whoever calls it (:func:`scores_of`) has checked what the metric needs.

        Args:
            images: RGB pictures of one size, at least one.
            references: the unaccelerated picture of each, of the same size; may be empty where the metric needs none.
            prompts: what each was asked to show; may be empty where the metric needs none.
            device: torch device to compute on. Another one gives the same values up to the last digits. A metric
                that computes elsewhere need not look at it.
        """


def scores_of(
    metric: Metric,
    images: Sequence[Image],
    references: Sequence[Image] = (),
    prompts: Sequence[str] = (),
    device: str = "cpu",
) -> tuple[float, ...]:
    """A metric's value of each picture, checked.

    Args:
        metric: what scores.
        images: RGB pictures of one size, at least one.
        references: the unaccelerated picture of each; may be left out where the metric needs none.
        prompts: what each was asked to show; may be left out where the metric needs none.
        device: torch device.

    Raises:
        ValueError: when there are no images, or not as many references or prompts as the metric needs.
        MetricFault: when the metric fails, or gives another number of values, or one that is not finite or outside of
            its range.
    """
    if not images:
        raise ValueError(f"{metric.name}: there are no images to score")
    if metric.needs_references:
        check_pairs(images, references)
    if metric.needs_prompts and len(prompts) != len(images):
        raise ValueError(f"{metric.name}: {len(images)} images cannot be scored with {len(prompts)} prompts")
    try:
        found = [float(value) for value in metric.score(images, references, prompts, device)]
    except MetricFault:
        raise
    except Exception as error:
        pictures = counted(len(images), "picture")
        raise MetricFault(f"{metric.name}: scoring {pictures} failed: {type(error).__name__}: {error}") from error
    _check(metric, found, len(images))
    return tuple(found)


def _check(metric: Metric, found: Sequence[float], pictures: int) -> None:
    values = ", ".join(f"{value:g}" for value in found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    if len(found) != pictures:
        raise MetricFault(
            f"{metric.name}: gave {counted(len(found), 'value')} for {counted(pictures, 'picture')}, not one each"
            + (f": {values}" if found else "")
        )
    for place, value in enumerate(found, 1):
        slack = _SLACK * max(1.0, abs(value))
        if not math.isfinite(value):
            raise MetricFault(f"{metric.name}: gave {value} for picture {place} of {pictures}: {values}")
        if not metric.lowest - slack <= value <= metric.highest + slack:
            raise MetricFault(
                f"{metric.name}: gave {value:g} for picture {place} of {pictures}, outside of its range "
                f"from {metric.lowest:g} to {metric.highest:g}: {values}"
            )


def check_pairs(images: Sequence[Image], references: Sequence[Image]) -> None:
    """Refuse pictures that have no reference each, or of another size.

    Raises:
        ValueError: when there are none, or the numbers or sizes differ.
    """
    if not images or len(images) != len(references):
        raise ValueError(f"{len(images)} images cannot be compared with {len(references)} references")
    sizes = {image.size for image in (*images, *references)}
    if len(sizes) > 1:
        raise ValueError(f"images of different sizes cannot be compared: {sorted(sizes)}")


def pixels_of(images: Sequence[Image]) -> Tensor:
    """Pictures of one size as (count, height, width, 3) uint8 on the CPU.

    A GPU gets such bytes, some pictures at a time: the host would make floats of them while the GPU waits.
    """
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
