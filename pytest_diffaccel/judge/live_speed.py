"""Times a script's live call against the judge's own baseline, in turns, by the judge's clock."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.judge.claim import MOST_IMAGES
from pytest_diffaccel.judge.live_call import LiveCall, ScriptMisbehaved, difference_levels
from pytest_diffaccel.judge.script_verdict import StageResult
from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import wall_speedup

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.codegen.lookup import Answer
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.judge.replay import Replay

# Pairs after which the interval may tell, and after which it must do. What may be wrong is spent over these looks.
_LOOKS = (4, 8)
_ERROR_RATE = 0.05


@dataclass(frozen=True)
class Pair:
    """A run of the script and one of the judge's baseline, of the same prompts.

    Attributes:
        baseline_s: time of the baseline's run.
        script_s: time of the script's.
        images: the script's, as the judge made them again.
        call: what was drawn.
        seeds: of the start noise of the script's images.
    """

    baseline_s: float
    script_s: float
    images: list[Image]
    call: LiveCall
    seeds: list[int]


class PairTimer:
    """Times a live call beside the baseline, by the judge's clocks, in random order; the first pair is for warming up.

    Args:
        call: the script's, proven.
        task: what it should do.
        replay: the judge's own pipelines.
        prompts: gives those of the next pair.
    """

    def __init__(self, call: LiveCall, task: Task, replay: Replay, prompts: Callable[[], list[str]]) -> None:
        self._call, self._task, self._replay, self._prompts = call, task, replay, prompts
        self._order = random.Random(0)
        warming = self._next_call()
        warming.run_again()
        _baseline_s(warming, task, replay)

    def pair(self) -> Pair:
        """The next pair.

        Raises:
            ScriptMisbehaved: when the script gives other images than its call.
            TimeoutError: when the script's time is up.
        """
        call, task, replay = self._next_call(), self._task, self._replay
        first = self._order.random() < 0.5
        baseline_s = _baseline_s(call, task, replay) if first else 0.0
        images, seeds = call.run_again()
        script_s = call.seconds
        if not first:
            baseline_s = _baseline_s(call, task, replay)
        own = replay.images(task, call.claim.arguments, call.claim.methods, seeds)
        if (levels := difference_levels(images, own)) > replay.same_levels:
            raise ScriptMisbehaved(f"gives other images when it is timed: they differ by {levels:.2f} of 255 levels")
        return Pair(baseline_s, script_s, own, call, seeds)

    def _next_call(self) -> LiveCall:
        return self._call.for_prompts(self._prompts(), negatives=False)


def timed_images(call: LiveCall, answer: Answer | None) -> int:
    """How many images at once a call is timed with: its record's number, for what a method saves depends on it."""
    return call.claim.arguments.images if answer is None else min(answer.entry.batch_size, MOST_IMAGES)


def judge_speed(
    call: LiveCall, task: Task, replay: Replay, *, tolerance_ratio: float, answer: Answer | None
) -> StageResult:
    """Time pairs of runs until it is clear whether the target is reached.

    Each run of the script draws prompts of the judge's choice from new noise, and its images are made again by the
    judge: time cannot be saved by not working, and not in one run alone, and the baseline takes what it takes for
    usual prompts. A target counts as missed when the whole 95% interval lies below it, less the tolerance;
    where golden says that it is unattainable, only an interval wholly above it counts as reached. The interval is right
    at whichever look the timing ends.

    Raises:
        ScriptMisbehaved: when a run gives other images than its call, or images that say nothing.
        TimeoutError: when the script's time is up.
    """
    from pytest_diffaccel.gate.sequential import portion
    from pytest_diffaccel.measure.degenerate import degenerate

    attainable = answer is None or answer.attained
    batch_size = timed_images(call, answer)
    threshold = task.target * (1 - tolerance_ratio) if attainable else task.target
    blocks: list[Block] = []
    drawn: list[Image] = []
    timer = PairTimer(call, task, replay, lambda: replay.prompts(task, batch_size))
    while True:
        pair = timer.pair()
        drawn.append(pair.images[0])
        if complaint := degenerate(drawn):
            raise ScriptMisbehaved(f"draws nothing when it is timed: {complaint}")
        blocks.append(Block(RunTiming(pair.baseline_s, (), ()), (RunTiming(pair.script_s, (), ()),)))
        if len(blocks) not in _LOOKS:
            continue
        speedup = wall_speedup(blocks, confidence=1 - portion(_LOOKS, len(blocks), _ERROR_RATE))
        if not speedup.low < threshold <= speedup.high or len(blocks) == _LOOKS[-1]:
            break
    return _result(speedup, len(blocks), batch_size, task, threshold, answer if not attainable else None)


def _baseline_s(call: LiveCall, task: Task, replay: Replay) -> float:
    arguments = call.claim.arguments
    clock = replace(call.clock, process=os.getpid())
    began = clock.read()
    replay.images(task, arguments, {}, range(arguments.images))
    return clock.since(began)


def _result(
    speedup: Interval, pairs: int, batch_size: int, task: Task, threshold: float, unattained: Answer | None
) -> StageResult:
    figures: dict[str, Any] = {
        "speedup": round(speedup.value, 3),
        "speedup_ci95": [round(speedup.low, 3), round(speedup.high, 3)],
        "pairs": pairs,
        "batch_size": batch_size,
        "target": task.target,
    }
    measured = f"{speedup.value:.2f}x (95% interval {speedup.low:.2f} to {speedup.high:.2f})"
    if unattained is not None:
        why = unattained.entry.reason
        recorded = f"as unattainable ({why})" if why else "as reached by the GPU's own time only"
        if speedup.low >= threshold:
            said = f"{measured} reaches {task.target}x, which golden records {recorded}: golden is out of date"
            return StageResult("speed", "xpassed", said, figures)
        reason = f"{task.target}x is recorded {recorded}; measured {measured}"
        return StageResult("speed", "xfailed", reason, figures)
    if speedup.high < threshold:
        return StageResult("speed", "failed", f"{measured} lies below {threshold:.2f}x", figures)
    return StageResult("speed", "passed", measured, figures)
