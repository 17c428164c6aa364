"""What LPIPS means here: how far pictures move that nobody changed, and how far apart unrelated ones are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.degenerate import same_pictures
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.leases import IN_COMMON
from pytest_diffaccel.search.over_eager import measure_over_eager
from pytest_diffaccel.search.sharing import whole_pipe
from pytest_diffaccel.search.workbench import Workbench

if TYPE_CHECKING:
    from PIL.Image import Image

#: Added to a seed to get a picture that has nothing but its prompt in common; no other seed of a search is this far
#: off.
OTHER_SEEDS = 2**31
# Pictures that are made again in a batch of their own: each takes a run.
_ALONE = 4


def scaled_environment(bench: Workbench, cell: Cell, began_at: float = 0.0) -> Environment:
    """The cell's environment with the scale of its losses and its stack's gain, which one process measures for all.

    Args:
        bench: the search's workbench.
        cell: any of the pipe's.
        began_at: a vague gain that is older is measured again; seconds since the epoch.
    """
    if not bench.environment(cell).is_scaled(began_at):
        with bench.shared.together(whole_pipe(cell), [IN_COMMON]):
            environment = bench.reread_environment(cell)
            if environment.scale is None:
                bench.keep_environment(replace(environment, scale=measure_scale(bench, cell)))
            if not bench.environment(cell).is_scaled(began_at):
                over_eager = measure_over_eager(bench, cell)
                bench.keep_environment(replace(bench.environment(cell), over_eager=over_eager))
    return bench.environment(cell)


def measure_scale(bench: Workbench, cell: Cell) -> QualityScale:
    """Measure the scale with the unaccelerated pipeline of ``cell``, on the search's first batch."""
    batch = bench.batches(cell, "search", bench.settings.batch_size)[0]
    references = bench.pictures.references(cell, "search")
    least_s: dict[int, float] = {}
    with bench.generating(cell, {}, "scale of losses") as generate:

        def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
            began, images = time.perf_counter(), generate(prompts, seeds)
            took_s = time.perf_counter() - began
            least_s[len(seeds)] = min(took_s, least_s.get(len(seeds), took_s))
            return images

        def distance(images: Sequence[Image]) -> float:
            return float(np.mean(references.distances(images)))

        repeat = distance(drawn(batch.prompts, batch.seeds))
        pairs = list(zip(batch.prompts, batch.seeds, strict=True))[:_ALONE]
        alone = [drawn([prompt], [seed])[0] for prompt, seed in pairs]
        _check_prompts(bench, cell, generate, alone[0])
        with nudged_latents(generate.pipeline):
            one_ulp = distance(drawn(batch.prompts, batch.seeds))
        unrelated = distance(drawn(batch.prompts, [seed + OTHER_SEEDS for seed in batch.seeds]))
    # The quickest of each: what slows a call down hits the longer ones more often.
    alone_share = min(1.0, least_s[1] / least_s[len(batch.seeds)])
    return QualityScale(repeat, distance(alone), one_ulp, unrelated, alone_share)


def _check_prompts(bench: Workbench, cell: Cell, generate: Generate, first: Image) -> None:
    """Refuse a pipeline that draws the first sample alike whatever its prompt is; its other samples have other noise.

    Raises:
        NoPipeline: naming both prompts.
    """
    samples = [pair for batch in bench.batches(cell, "search") for pair in zip(batch.prompts, batch.seeds, strict=True)]
    prompt, seed = samples[0]
    other = next((other for other, _ in samples if other != prompt), None)
    if other is not None and same_pictures(first, generate([other], [seed])[0]):
        fault = f"the same picture for {shorten(prompt, 60)!r} as for {shorten(other, 60)!r} from the same noise"
        bench.pictures.refuse(cell, fault)


@contextmanager
def nudged_latents(pipeline: Any) -> Iterator[None]:
    """Start from noise that is one unit in the last place larger everywhere."""
    import torch

    prepare = pipeline.prepare_latents

    def nudged(*args: Any, **kwargs: Any) -> Any:
        made = prepare(*args, **kwargs)
        latents, *others = made if isinstance(made, tuple) else (made,)  # beside places of packed ones
        larger = torch.nextafter(latents, torch.full_like(latents, torch.inf))
        return (larger, *others) if others else larger

    pipeline.prepare_latents = nudged
    try:
        yield
    finally:
        del pipeline.prepare_latents
