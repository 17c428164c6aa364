"""Images of a gate run, all made in it, and what of their distances is rounding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.case_plan import GateCase
from pytest_diffaccel.gate.judged_losses import Scores
from pytest_diffaccel.measure.degenerate import check_candidate, degenerate
from pytest_diffaccel.measure.metrics.base import Metric, scores_of
from pytest_diffaccel.measure.metrics.lpips import lpips_distances
from pytest_diffaccel.search.null_control import OTHER_SEEDS, nudged_latents
from pytest_diffaccel.search.workbench import Batch, Workbench

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class CellPictures:
    """What the unaccelerated pipeline draws in a cell.

    Attributes:
        plain: one image per sample.
        nudged: makes the same from start noise one unit in the last place larger, when first called, and keeps it.
        fingerprint: LPIPS of each image to a grey one, then of the first batch's to those of other seeds: numbers that
            tell whether the pictures are still the same ones, without keeping a pixel.
        batch_s: time of one batch, warm.
        fault: what shows that they say nothing, in words; then nothing else was made. Empty where they do.
    """

    plain: list[Image]
    nudged: Callable[[], list[Image]]
    fingerprint: tuple[float, ...]
    batch_s: float
    fault: str = ""

    @classmethod
    def make(cls, bench: Workbench, case: GateCase) -> CellPictures:
        """Make them; the first generation is counted.

        Raises:
            StepCountError: when the denoiser is not called once per step.
        """
        from PIL import Image

        with bench.pipelines.lock.generating(), bench.pipelines.generating(case.cell, {}) as generate:
            plain = _images(bench, case, generate)
            fault = degenerate(plain)
            if fault is not None:
                return cls(plain, list, (), 0.0, fault)
            batch = _batches(bench, case)[0]
            began = time.monotonic()
            others = generate(batch.prompts, [seed + OTHER_SEEDS for seed in batch.seeds])
            batch_s = time.monotonic() - began
            device = str(generate.pipeline.device)
            grey = [Image.new("RGB", image.size, _GREY) for image in plain]
            fingerprint = lpips_distances(plain, grey, device)
            fingerprint += lpips_distances(others, plain[: len(others)], device)
        return cls(plain, cache(partial(_nudged, bench, case)), tuple(fingerprint), batch_s)


def scores(
    bench: Workbench,
    case: GateCase,
    generate: Generate,
    pictures: CellPictures,
    then: Sequence[tuple[Metric, tuple[float, ...]]],
    *,
    first: Sequence[Image],
    recording: bool,
) -> tuple[list[Scores], float]:
    """What metrics say of a winner's samples and of the unaccelerated ones, with the A/A control and what it took.

    The control takes as long as the samples. It is left out where all metrics say of all samples what the reference
    does: then nothing was rounded otherwise.

    Args:
        bench: the workbench.
        case: a winner's.
        generate: with the winner's parameters.
        pictures: of its cell.
        then: the metrics, and the reference's values of each; none where it has none.
        first: the winner's pictures of the first batch, which are not made again.
        recording: whether a reference is recorded, which tells what rounding will hide.

    Returns:
        By metric; and the control's seconds, 0 where it was left out.

    Raises:
        DegeneratePictures: when the winner's pictures say nothing.
        MetricFault: when a metric fails.
    """
    device = str(generate.pipeline.device)
    prompts = [prompt for batch in _batches(bench, case) for prompt in batch.prompts]
    with bench.pipelines.lock.generating():
        images = [*first, *_images(bench, case, generate, after=1)]
        check_candidate(images)
        found = [
            Scores(scores_of(metric, images, pictures.plain, prompts, device), (), recorded, metric)
            for metric, recorded in then
        ]
        if not recording and all(one.is_equal for one in found):
            return found, 0.0
        began = time.monotonic()
        plain = pictures.nudged()
        with nudged_latents(generate.pipeline):
            nudged = _images(bench, case, generate)
        controlled = [replace(one, control=scores_of(one.metric, nudged, plain, prompts, device)) for one in found]
        return controlled, time.monotonic() - began


def _nudged(bench: Workbench, case: GateCase) -> list[Image]:
    with bench.pipelines.generating(case.cell, {}) as generate, nudged_latents(generate.pipeline):
        return _images(bench, case, generate)


def _images(bench: Workbench, case: GateCase, generate: Generate, after: int = 0) -> list[Image]:
    return [image for batch in _batches(bench, case)[after:] for image in generate(batch.prompts, batch.seeds)]


def _batches(bench: Workbench, case: GateCase) -> list[Batch]:
    return bench.batches(case.cell, "winner", case.entry.num_samples)
