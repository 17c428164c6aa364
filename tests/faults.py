"""Faults for the gate to find: what a new library, driver or change of code may do to a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.deepcache import DeepCache


def judge_quickly(most: int = 8) -> None:
    """Figures of one block, and few of them: for tests in which a fault is gross."""
    from pytest_diffaccel.gate import figures, plan
    from pytest_diffaccel.measure import blocks

    plan.MOST_FIGURES = {"cpu": most}
    figures._BLOCKS_A_FIGURE_OTHERWISE = 1
    blocks._REPEATS = 0


def slow_steps(method: type[Method], seconds: float) -> None:
    """An accelerator whose every step takes so much longer."""
    apply = method.apply

    def slowed(self: Method, pipeline: Any, *rest: Any) -> Any:
        pipeline.unet.register_forward_pre_hook(lambda *_: time.sleep(seconds))
        return apply(self, pipeline, *rest)

    method.apply = slowed  # type: ignore[method-assign]


def slow_baseline(seconds: float) -> None:
    """An unaccelerated pipeline whose every step takes so much longer."""
    generate = Generate._generate

    def slowed(self: Generate, *arguments: Any) -> Any:
        if self.params:
            return generate(self, *arguments)
        handle = self.pipeline.unet.register_forward_pre_hook(lambda *_: time.sleep(seconds))
        try:
            return generate(self, *arguments)
        finally:
            handle.remove()

    Generate._generate = slowed  # type: ignore[method-assign]


def other_branch(branch: int) -> None:
    """DeepCache caches at another branch than it is told."""
    apply = DeepCache.apply

    def confused(self: DeepCache, pipeline: Any, call: Any, params: Any) -> Any:
        return apply(self, pipeline, call, {**params, "DeepCache": {**params["DeepCache"], "cache_branch_id": branch}})

    DeepCache.apply = confused  # type: ignore[method-assign]


def one_step_less() -> None:
    """A scheduler that makes one step less than it is asked for."""
    from diffusers import DDIMScheduler

    set_timesteps = DDIMScheduler.set_timesteps

    def fewer(self: DDIMScheduler, num_inference_steps: int, *rest: Any, **options: Any) -> None:
        set_timesteps(self, num_inference_steps - 1, *rest, **options)

    DDIMScheduler.set_timesteps = fewer


def no_effect(method: type[Method]) -> None:
    """An accelerator that does nothing any more."""

    def idle(_self: Method, _pipeline: Any, call: Callable[..., Any], _params: Any) -> Any:
        return call

    method.apply = idle  # type: ignore[method-assign,assignment]


def out_of_memory() -> None:
    """A pipeline that cannot be run here."""

    def broken(_self: Generate, *_arguments: Any) -> Any:
        raise MemoryError("no memory for a picture")

    Generate._generate = broken  # type: ignore[method-assign]


def corrupt_weight() -> None:
    """A weight of the denoiser that is broken in memory; its file is whole."""
    from pytest_diffaccel.search import pipelines

    load = pipelines.load_pipeline

    def broken(*arguments: Any, **options: Any) -> Any:
        pipeline = load(*arguments, **options)
        pipeline.unet.conv_in.weight.data.zero_()
        return pipeline

    pipelines.load_pipeline = broken
