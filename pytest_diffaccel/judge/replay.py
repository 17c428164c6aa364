"""The judge's own pipelines, on which no script's code ever ran: claims are repeated on them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.calls import guidance_scale_of, own_size, text_length
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.counters import FiredCounters
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.accelerators.restoration import restored
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.judge.claim import Arguments, Expected, plain_settings
from pytest_diffaccel.matrix import Params
from pytest_diffaccel.measure.prompts import default_prompts
from pytest_diffaccel.models.registry import ModelSource

if TYPE_CHECKING:
    from PIL.Image import Image

#: Mean absolute difference, in levels of 255, within which images are the same, by type of device: GPUs do not repeat
#: the last bit, and on a CPU another number of threads rounds otherwise. Leaving out one of 20 steps moves them by more
#: (tests/test_judge.py).
SAME_LEVELS: Mapping[str, float] = {"cuda": 0.25, "cpu": 0.02}


@dataclass(frozen=True)
class Counts:
    """What a repeated call did.

    Attributes:
        scheduler_steps: steps that the scheduler made.
        fired: the methods' counters (:class:`.FiredCounters`).
        silent: counters that the methods should have moved, and did not.
    """

    scheduler_steps: int
    fired: Mapping[str, int]
    silent: tuple[str, ...]


class Replay:
    """Repeats calls.

    Args:
        source: where weights come from, the same as for scripts.
        registry: the methods known, which have what they must know of a task's cell.
        device: torch device; None: CUDA where there is any, else the CPU.
    """

    def __init__(self, source: ModelSource, registry: Registry, device: str) -> None:
        self._source = source
        self._registry = registry
        self._device = device
        self._pipelines: dict[str, Any] = {}

    @property
    def same_levels(self) -> float:
        """Of :data:`SAME_LEVELS`, what holds here."""
        return SAME_LEVELS["cpu" if self._device == "cpu" else "cuda"]

    def pipeline(self, task: Task) -> Any:
        """The pipe's pipeline with the task's scheduler."""
        from pytest_diffaccel.models.loading import load_pipeline
        from pytest_diffaccel.models.schedulers import set_scheduler

        pipe = task.cell.pipe
        if pipe not in self._pipelines:
            self._pipelines[pipe] = load_pipeline(pipe, models=self._source, device=self._device)
        set_scheduler(self._pipelines[pipe], task.cell.scheduler)
        return self._pipelines[pipe]

    def expected(self, task: Task) -> Expected:
        """What the task's call must be."""
        pipeline, spec = self.pipeline(task), self._source.spec(task.cell.pipe)
        size = spec.image_size or own_size(pipeline)
        scale = guidance_scale_of(pipeline, spec.guidance_scale)
        return Expected(task, size, plain_settings(pipeline.scheduler.config), scale, text_length(pipeline))

    def prompts(self, task: Task, count: int) -> list[str]:
        """Evaluation prompts of the task's pipe, drawn at random; different ones where there are so many."""
        known = default_prompts(self._source.spec(task.cell.pipe))
        chance = random.SystemRandom()
        return chance.sample(known, count) if count <= len(known) else chance.choices(known, k=count)

    def images(self, task: Task, arguments: Arguments, params: Params, seeds: Sequence[int]) -> list[Image]:
        """The call's images.

        Args:
            task: whose pipeline and scheduler to use.
            arguments: the call's.
            params: of the methods that accelerate it; none for the baseline.
            seeds: of the start noise, one per image.
        """
        pipeline = self.pipeline(task)
        with self._applied(pipeline, arguments, self._accelerator(task, params), params, seeds) as run:
            images: list[Image] = run()
        return images

    def counted(
        self, task: Task, arguments: Arguments, params: Params, seeds: Sequence[int]
    ) -> tuple[list[Image], Counts]:
        """The call's images, and what it did.

        Raises:
            InvalidParams: when the pipeline cannot take the parameters.
        """
        pipeline, accelerator = self.pipeline(task), self._accelerator(task, params)
        accelerator.check_pipeline(params, pipeline, arguments.height, arguments.width)
        counters = FiredCounters(self._registry.methods_for(pipeline), full_batch=2 * arguments.images)
        with (
            self._applied(pipeline, arguments, accelerator, params, seeds) as run,
            _counting_steps(pipeline.scheduler) as steps,
            counters.attached(pipeline),
        ):
            images = run()
        expected = accelerator.counters(params, arguments.num_inference_steps)
        silent = tuple(sorted(name for name in expected if not counters.counts[name]))
        return images, Counts(len(steps), counters.counts, silent)

    def _accelerator(self, task: Task, params: Params) -> Accelerator:
        return self._registry.at(task.cell, params).for_params(params)

    @staticmethod
    @contextmanager
    def _applied(
        pipeline: Any, arguments: Arguments, accelerator: Accelerator, params: Params, seeds: Sequence[int]
    ) -> Iterator[Any]:
        import torch

        devices = [pipeline.device] if pipeline.device.type == "cuda" else []
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with restored(pipeline), torch.random.fork_rng(devices):
            torch.manual_seed(seeds[0])
            call = accelerator.apply(pipeline, pipeline.__call__, params)
            yield lambda: call(**arguments.options, generator=generators).images


@contextmanager
def _counting_steps(scheduler: Any) -> Iterator[list[int]]:
    """Collects one entry per step that ``scheduler`` makes."""
    steps: list[int] = []
    original = scheduler.step

    def step(*args: Any, **options: Any) -> Any:
        steps.append(1)
        return original(*args, **options)

    # diffusers reads the signature of the step to learn which options it takes.
    vars(step)["__signature__"] = inspect.signature(original)
    scheduler.step = step
    try:
        yield steps
    finally:
        del scheduler.step
