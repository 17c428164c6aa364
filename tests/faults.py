"""Faults for the gate to find: what a new library, driver or change of code may do to a pipeline.

Each lasts as long as its process, or until :data:`patches` are undone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.deepcache import DeepCache

# Weights of a pipeline, and what is to be in them.
Weights: TypeAlias = list[tuple[Any, Any]]
#: All that faults put in the place of what was there.
patches = pytest.MonkeyPatch()


def judge_quickly(most: int = 24) -> None:
    """Figures of one block each, and at most so many: for tests in which a fault is gross."""
    from pytest_diffaccel.gate import clocks
    from pytest_diffaccel.measure import blocks

    patches.setattr(clocks, "WALL", {"cpu": replace(clocks.WALL["cpu"], most=most, blocks=1)})
    patches.setattr(blocks, "_REPEATS", 0)


def two_clocks(device: float = 1.0, host: float = 1.0) -> None:
    """A GPU with a host, made up: accelerated steps cost what tests/timings.py says, times these factors."""
    from timings import COSTS

    from pytest_diffaccel.gate import timing
    from pytest_diffaccel.measure.measurement import RunTiming

    generator = np.random.default_rng(0)

    def steps(factor: float, noise: float, generate: Generate, count: int) -> RunTiming:
        factors = (factor if generate.params else 1.0) * np.exp(generator.normal(0, noise, count))
        kinds = generate.kinds[:count]
        times = tuple(COSTS[kind] * float(by) for kind, by in zip(kinds, factors, strict=True))
        return RunTiming(sum(times), times, kinds)

    def by_the_gpu(generate: Generate, _prompts: Any, _seeds: Any, count: int, _kernels: Any) -> RunTiming:
        return steps(device, 0.003, generate, count)

    def by_the_host(generate: Generate, _prompts: Any, _seeds: Any, count: int) -> RunTiming:
        return steps(host, 0.05, generate, count)

    patches.setattr(timing, "why_no_device_time", lambda: "")
    patches.setattr(timing, "busy_steps", by_the_gpu)
    patches.setattr(timing, "launched_steps", by_the_host)
    patches.setattr(timing.CaseTimer, "device_type", property(lambda _: "cuda"))
    patches.setattr(timing.CaseTimer, "gpu_use", lambda _: timing.GpuUse(0.5))


def slow_steps(method: type[Method], seconds: float) -> None:
    """An accelerator whose every step takes so much longer."""
    apply = method.apply

    def slowed(self: Method, pipeline: Any, *rest: Any) -> Any:
        pipeline.unet.register_forward_pre_hook(lambda *_: time.sleep(seconds))
        return apply(self, pipeline, *rest)

    patches.setattr(method, "apply", slowed)


def busy_steps(method: type[Method], seconds: float) -> None:
    """An accelerator in whose every step the GPU works so much longer."""
    import torch

    apply = method.apply
    cycles = int(seconds * 1000 * torch.cuda.get_device_properties(0).clock_rate)

    def slowed(self: Method, pipeline: Any, *rest: Any) -> Any:
        pipeline.unet.register_forward_pre_hook(lambda *_: torch.cuda._sleep(cycles))
        return apply(self, pipeline, *rest)

    patches.setattr(method, "apply", slowed)


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

    patches.setattr(Generate, "_generate", slowed)


def other_branch(branch: int) -> None:
    """DeepCache caches at another branch than it is told."""
    apply = DeepCache.apply

    def confused(self: DeepCache, pipeline: Any, call: Any, params: Any) -> Any:
        return apply(self, pipeline, call, {**params, "DeepCache": {**params["DeepCache"], "cache_branch_id": branch}})

    patches.setattr(DeepCache, "apply", confused)


def one_step_less() -> None:
    """A scheduler that makes one step less than it is asked for."""
    _other_number_of_steps(-1)


def one_step_more() -> None:
    """A scheduler that makes one step more than it is asked for."""
    _other_number_of_steps(1)


def _other_number_of_steps(more: int) -> None:
    from diffusers import DDIMScheduler

    set_timesteps = DDIMScheduler.set_timesteps

    def other(self: DDIMScheduler, num_inference_steps: int, *rest: Any, **options: Any) -> None:
        set_timesteps(self, num_inference_steps + more, *rest, **options)

    patches.setattr(DDIMScheduler, "set_timesteps", other)


def no_effect(method: type[Method]) -> None:
    """An accelerator that does nothing any more."""

    def idle(_self: Method, _pipeline: Any, call: Callable[..., Any], _params: Any) -> Any:
        return call

    patches.setattr(method, "apply", idle)


def overflow(method: type[Method]) -> None:
    """An accelerator whose denoiser gives what is not finite."""
    apply = method.apply

    def overflowing(self: Method, pipeline: Any, *rest: Any) -> Any:
        call = apply(self, pipeline, *rest)
        forward = pipeline.unet.forward
        pipeline.unet.forward = lambda *args, **options: tuple(part * np.nan for part in forward(*args, **options))
        return call

    patches.setattr(method, "apply", overflowing)


def black_pictures() -> None:
    """A VAE that is broken in memory; its file is whole."""

    def blackened(pipeline: Any) -> Weights:
        last = pipeline.vae.decoder.conv_out
        return [(last.weight, 0.0 * last.weight.data), (last.bias, 0.0 * last.bias.data - 1.0)]

    _loaded(blackened)


def out_of_memory() -> None:
    """A pipeline that cannot be run here."""

    def broken(_self: Generate, *_arguments: Any) -> Any:
        raise MemoryError("no memory for a picture")

    patches.setattr(Generate, "_generate", broken)


def corrupt_weight() -> None:
    """A weight of the denoiser that is broken in memory; its file is whole."""
    _loaded(lambda pipeline: [(pipeline.unet.conv_in.weight, 0.0 * pipeline.unet.conv_in.weight.data)])


def other_vae() -> None:
    """A VAE that decodes otherwise than the recorded one; its file is whole."""

    def paler(pipeline: Any) -> Weights:
        weight = pipeline.vae.decoder.conv_out.weight
        return [(weight, 0.8 * weight.data)]

    _loaded(paler)


def _loaded(changed: Callable[[Any], Weights]) -> None:
    """Give some weights of every pipeline that is loaded other numbers."""
    from pytest_diffaccel.search import pipelines

    load = pipelines.load_pipeline

    def broken(*arguments: Any, **options: Any) -> Any:
        pipeline = load(*arguments, **options)
        for weight, numbers in changed(pipeline):
            patches.setattr(weight, "data", numbers)
        return pipeline

    patches.setattr(pipelines, "load_pipeline", broken)
