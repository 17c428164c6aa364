"""Device time: how long the GPU works on each denoiser step, however slowly the host feeds it.

In eager half precision at small batches a GPU waits for launches: a step lasts as long as the host takes to launch its
kernels, and a method that halves the kernels' work saves nothing. What it saves on the device is the sum of the
kernels' own durations, which the profiler (CUPTI) reads off the GPU. No code has to be captured or changed for that: a
marker kernel at either end of every step says which kernels belong to it.

Copies between the device and memory that is not pinned are left out: the host's processor moves every byte of them,
and takes as long as it takes. The same images of a batch left an H200 in 0.7 ms or in 8 ms.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.measure.set_up import settled

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.acceleration import Generate

#: A generation in which the GPU works for a smaller share of the wall time than this is launch-bound.
LAUNCH_BOUND_SHARE = 0.9
#: Another process uses the GPU where more than this share of its time is cut off (:attr:`KernelTimes.cut_share`):
#: alone, too, 0.7% of two runs was on an H200, by what was probably a copy that the host makes. Such copies are left
#: out since.
SHARED_SHARE = 0.02

# Memory that is not pinned, in the profiler's names of copies from it and to it.
_BY_HOST = "Pageable"
# The kernel of torch.cuda._sleep, and the longest that a marker lasts: it spins for one cycle.
_MARKER, _MARKER_NS = "spin_kernel", 100_000


# A kernel that takes so many times as long as in another run, and so much longer, was cut off: on an H100 slices of
# other processes last 2.0 to 2.6 ms, and undisturbed kernels, of up to 4.4 ms, vary by 0.06 ms.
_CUT_RATIO, _CUT_NS = 1.1, 1_000_000


# A marker that another process's time slice cuts off looks like work: then the run is made again.
_TRIES = 3

# The place of what surrounds the steps.
_SURROUNDS = -1


class MarkersLost(ValueError):
    """The profiler did not see both ends of every step."""


@dataclass(frozen=True)
class Activity:
    """One kernel or copy on the device.

    Attributes:
        start_ns: when it began, on any clock.
        end_ns: when it ended.
        marks: whether it is a marker, which begins or ends a step.
    """

    start_ns: int
    end_ns: int
    marks: bool = False


class KernelTimes:
    """The least time that each kernel of a pipeline's runs has taken so far: what tells time slices of other processes.

    A GPU that several processes use goes from one to the other every 2 ms or so, and the kernel that is cut off seems
    to take so much longer. Runs of one pipeline launch the same kernels in the same order, and other processes cut
    them off elsewhere in each. By four runs nearly all of that is known: of a recorded step (docs/ci.md) the best of
    two was up to 65% too long beside another process, and the best of four within 0.7%.

    Args:
        beside: of the same pipeline, otherwise accelerated, in the same batches: what surrounds the steps is the same
            work where it is as many kernels, and is known by the runs of both.
    """

    def __init__(self, beside: KernelTimes | None = None) -> None:
        self._least_ns: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._surrounds_ns: dict[tuple[int, int], NDArray[np.int64]] = beside._surrounds_ns if beside else {}
        self._cut_ns, self._own_ns = 0, 0
        #: How many kernels surrounded the steps of the last run.
        self.surrounding = 0

    def undisturbed_ns(self, place: int, times_ns: Sequence[int]) -> int:
        """What a part of a run took without the time slices of other processes, nanoseconds.

        Args:
            place: the part's, the same in every run.
            times_ns: of its kernels, in order.
        """
        times = np.array(times_ns, dtype=np.int64)
        known = self._least_ns
        if place == _SURROUNDS:
            known, self.surrounding = self._surrounds_ns, len(times)
        key = place, len(times)
        least = known[key] = np.minimum(times, known.get(key, times))
        own = int(np.where(times > _CUT_RATIO * least + _CUT_NS, least, times).sum())
        self._cut_ns += int(times.sum()) - own
        self._own_ns += own
        return own

    def surrounds_s(self, surrounding: int) -> float:
        """What surrounds the steps takes, seconds: the least of each of its kernels in all runs.

        Args:
            surrounding: how many kernels those are, as :attr:`surrounding` said after such a run.
        """
        return float(self._surrounds_ns[_SURROUNDS, surrounding].sum()) / 1e9

    @property
    def cut_share(self) -> float:
        """What was left out, as a share of what was kept."""
        return self._cut_ns / max(self._own_ns, 1)


class BusyClock:
    """Observer of one generation on a CUDA device; see :class:`pytest_diffaccel.accelerators.observer.Observer`.

    A profiled run is slower on the host than a plain one: take its device time, and wall time from another run.
    """

    def __init__(self) -> None:
        self._profiler: Any = None

    def started(self) -> None:
        """Wait for earlier work and begin to profile."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        make: Any = profile  # torch leaves it untyped
        self._profiler = make(activities=[ProfilerActivity.CUDA])
        with warnings.catch_warnings():
            # One run is one cycle. Events kept for several would all be read in Python, which takes seconds.
            warnings.filterwarnings("ignore", "Warning: Profiler clears events")
            self._profiler.__enter__()

    def denoiser_called(self) -> None:
        """Mark the start of a step in the stream."""
        _mark()

    def step_ended(self) -> None:
        """Mark the end of a step in the stream."""
        _mark()

    def ended(self) -> None:
        """Wait for the run's work and end the profile."""
        import torch

        torch.cuda.synchronize()
        self._profiler.__exit__(None, None, None)

    def abandoned(self) -> None:
        """End the profile of a generation that failed: another could not begin."""
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)

    def timing(self, kinds: Sequence[str], kernels: KernelTimes | None = None) -> RunTiming:
        """Busy seconds of the run and of each step (:func:`busy_timing`).

        Raises:
            MarkersLost: when the profiler did not see every step.
        """
        from torch import autograd

        events = self._profiler.profiler.kineto_results.events()
        cuda = vars(autograd)["DeviceType"].CUDA  # torch's types do not know it
        return busy_timing(activities_of(event for event in events if event.device_type() == cuda), kinds, kernels)


def _mark() -> None:
    import torch

    sleep: Any = torch.cuda._sleep
    sleep(1)


def activities_of(events: Iterable[Any]) -> Iterator[Activity]:
    """Of the profiler's events on a device, without copies that last as long as the host takes.

    Args:
        events: in any order; with ``name()``, ``start_ns()`` and ``duration_ns()``.
    """
    for event in events:
        name, start_ns, duration_ns = event.name(), event.start_ns(), event.duration_ns()
        if _BY_HOST not in name:
            yield Activity(start_ns, start_ns + duration_ns, _MARKER in name and duration_ns < _MARKER_NS)


def busy_timing(activities: Iterable[Activity], kinds: Sequence[str], kernels: KernelTimes | None = None) -> RunTiming:
    """Device time of a run from what occupied the GPU.

    Args:
        activities: in any order; where they overlap, the time counts once.
        kinds: the kind of each step, in order. Two markers per step are expected.
        kernels: of the pipeline's earlier runs, which this run is added to; None where there are none.

    Returns:
        Seconds for which the GPU was busy, in all and in each step, from the end of the one before (the first, from its
        call): what lies between two steps is the later one's. Left out are markers, and the time slices of other
        processes as far as earlier runs show them.

    Raises:
        MarkersLost: when the number of markers is not twice that of the steps.
    """
    marks, busy_until = 0, 0
    # The last part is what surrounds the steps.
    parts_ns: list[list[int]] = [[] for _ in (*kinds, "surrounds")]
    for activity in sorted(activities, key=lambda activity: (activity.start_ns, activity.end_ns)):
        if activity.marks:
            marks += 1
        else:
            place = min(marks // 2, len(kinds)) if marks else len(kinds)
            parts_ns[place].append(max(0, activity.end_ns - max(activity.start_ns, busy_until)))
        busy_until = max(busy_until, activity.end_ns)
    if marks != 2 * len(kinds):
        raise MarkersLost(f"the profiler saw {marks} markers for {len(kinds)} steps; two per step are expected")
    known = kernels or KernelTimes()
    own_s = [
        known.undisturbed_ns(_SURROUNDS if place == len(kinds) else place, part) / 1e9
        for place, part in enumerate(parts_ns)
    ]
    return RunTiming(sum(own_s), tuple(own_s[:-1]), tuple(kinds))


def busy(
    generate: Generate, prompts: Sequence[str], seeds: Sequence[int], kernels: KernelTimes | None = None
) -> tuple[list[Any], RunTiming]:
    """Generate one batch and read how long the GPU was busy with it.

    Args:
        generate: on a CUDA pipeline.
        prompts: what to draw.
        seeds: one per prompt.
        kernels: of this pipeline's earlier runs (:func:`busy_timing`).

    Returns:
        The PIL images and the run's device times.

    Raises:
        MarkersLost: when the profiler did not see every step.
    """

    def run() -> tuple[list[Any], BusyClock]:
        with _profiling() as clock:
            return generate.observed(prompts, seeds, clock), clock

    for _ in range(_TRIES):
        images, clock = settled(generate, run)
        with suppress(MarkersLost):
            return images, clock.timing(generate.kinds, kernels)
    return images, clock.timing(generate.kinds, kernels)


def busy_steps(
    generate: Generate, prompts: Sequence[str], seeds: Sequence[int], steps: int, kernels: KernelTimes | None = None
) -> RunTiming:
    """How long the GPU is busy with each of a batch's first ``steps`` steps; as :func:`busy`, without pictures."""

    def run() -> BusyClock:
        with _profiling() as clock:
            generate.begun(prompts, seeds, clock, steps)
        return clock

    def timing(clock: BusyClock) -> RunTiming:
        return replace(clock.timing(generate.kinds[:steps], kernels), whole=False)

    for _ in range(_TRIES):
        clock = settled(generate, run)
        with suppress(MarkersLost):
            return timing(clock)
    return timing(clock)


@contextmanager
def _profiling() -> Iterator[BusyClock]:
    clock = BusyClock()
    try:
        yield clock
    except BaseException:
        clock.abandoned()
        raise


def why_no_device_time() -> str:
    """Why the GPU's own time cannot be read here, in words; empty where it can.

    Containers without the capability and some virtual machines refuse CUPTI; the profile is then empty.
    """
    import torch

    if not torch.cuda.is_available():
        return "device time cannot be read here: torch sees no CUDA device"
    try:
        with _profiling() as clock:
            clock.started()
            clock.denoiser_called()
            torch.ones(1, device="cuda").add_(1)
            clock.step_ended()
            clock.ended()
        clock.timing(("probe",))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        return f"device time cannot be read here ({error}): allow profiling to this container, or its driver, by CUPTI"
    return ""
