"""Clocks that keep the time of every denoiser step of one generation."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.measure.set_up import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_diffaccel.accelerators.acceleration import Generate


class WallClock:
    """Observer that reads the host's monotonic clock; right where work is done when a call returns (CPU)."""

    def __init__(self) -> None:
        self._begin = self._end = 0.0
        self._called: list[float] = []
        self._stepped: list[float] = []

    def started(self) -> None:
        """Note the start of the whole call."""
        self._begin = time.perf_counter()

    def denoiser_called(self) -> None:
        """Note the start of a step."""
        self._called.append(time.perf_counter())

    def step_ended(self) -> None:
        """Note the end of a step."""
        self._stepped.append(time.perf_counter())

    def ended(self) -> None:
        """Note the end of the whole call."""
        self._end = time.perf_counter()

    def timing(self, kinds: Sequence[str]) -> RunTiming:
        """The run's times; ``kinds`` names each step's kind.

        Raises:
            ValueError: when the number of steps seen is not the number of kinds.
        """
        return _timing(self._end - self._begin, self._called, self._stepped, kinds, lambda a, b: b - a)


class HostClock(WallClock):
    """Observer of what the host takes to launch each step on a CUDA device; no step waits for the GPU.

    Where the GPU waits for launches anyway, this is how long a step lasts.
    """

    def started(self) -> None:
        """Wait for earlier work, then note the start of the whole call."""
        import torch

        torch.cuda.synchronize()
        super().started()

    def timing(self, kinds: Sequence[str]) -> RunTiming:
        """The run's times; a step lasts from the end of the one before it (the first, from its call)."""
        begins = [*self._called[:1], *self._stepped[:-1]]
        return _timing(self._end - self._begin, begins, self._stepped, kinds, lambda a, b: b - a)


class CudaClock(WallClock):
    """Observer that records CUDA events for the steps and wall time for the whole, with one synchronisation per run."""

    def __init__(self) -> None:
        super().__init__()
        self._call_events: list[Any] = []
        self._step_events: list[Any] = []

    def started(self) -> None:
        """Wait for earlier work, then note the start of the whole call."""
        import torch

        torch.cuda.synchronize()
        super().started()

    def denoiser_called(self) -> None:
        """Record the start of a step in the stream."""
        self._call_events.append(_recorded_event())

    def step_ended(self) -> None:
        """Record the end of a step in the stream."""
        self._step_events.append(_recorded_event())

    def ended(self) -> None:
        """Wait for the run's work, then note its end."""
        import torch

        torch.cuda.synchronize()
        super().ended()

    def timing(self, kinds: Sequence[str]) -> RunTiming:
        """The run's times; steps in device time, the whole in wall time."""

        def elapsed_s(begin: Any, end: Any) -> float:
            return float(begin.elapsed_time(end)) / 1000

        return _timing(self._end - self._begin, self._call_events, self._step_events, kinds, elapsed_s)


def _recorded_event() -> Any:
    import torch

    make: Any = torch.cuda.Event  # torch leaves its constructor untyped
    event = make(enable_timing=True)
    event.record()
    return event


def _timing(
    total_s: float,
    called: list[Any],
    stepped: list[Any],
    kinds: Sequence[str],
    elapsed: Callable[[Any, Any], float],
) -> RunTiming:
    if not len(called) == len(stepped) == len(kinds):
        raise ValueError(f"{len(called)} denoiser calls and {len(stepped)} steps seen, {len(kinds)} expected")
    steps = tuple(elapsed(begin, end) for begin, end in zip(called, stepped, strict=True))
    return RunTiming(total_s, steps, tuple(kinds))


def timed(generate: Generate, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[list[Any], RunTiming]:
    """Generate one batch under the clock that suits the pipeline's device.

    Returns:
        The PIL images and the run's times.

    Raises:
        NeverSetUp: when torch compiles something in every run; so do all that time one.
    """

    def run() -> tuple[list[Any], RunTiming]:
        clock = _clock(generate)
        images = generate.observed(prompts, seeds, clock)
        return images, clock.timing(generate.kinds)

    return settled(generate, run)


def timed_steps(generate: Generate, prompts: Sequence[str], seeds: Sequence[int]) -> RunTiming:
    """As :func:`timed`, but the run ends with its last step: no pictures are drawn."""
    return _first_steps(generate, prompts, seeds, generate.steps, lambda: _clock(generate))


def launched_steps(generate: Generate, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> RunTiming:
    """What the host takes to launch each of a batch's first ``steps`` steps on a CUDA device (:class:`HostClock`)."""
    return _first_steps(generate, prompts, seeds, steps, HostClock)


def _first_steps(
    generate: Generate, prompts: Sequence[str], seeds: Sequence[int], steps: int, make: Callable[[], WallClock]
) -> RunTiming:
    """A batch's first ``steps`` steps, under a clock that is made for each run."""

    def run() -> RunTiming:
        clock = make()
        generate.begun(prompts, seeds, clock, steps)
        return replace(clock.timing(generate.kinds[:steps]), whole=False)

    return settled(generate, run)


def _clock(generate: Generate) -> WallClock:
    return CudaClock() if generate.pipeline.device.type == "cuda" else WallClock()
