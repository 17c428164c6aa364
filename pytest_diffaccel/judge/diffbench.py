"""DiffBench's rule beside ours: ten prompts, the mean speed-up, the mean CLIP score, no intervals.

Level 4 of DiffBench (Jiao and others, "DiffBench Meets DiffAgent", AAAI 2026, arXiv:2601.03178): a script passes when
it is at least as much faster as it was asked to be, and its pictures' CLIP score is at most 5% lower than that of the
unaccelerated pipeline's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.judge import DIFFBENCH
from pytest_diffaccel.judge.live_call import LiveCall, ScriptMisbehaved
from pytest_diffaccel.judge.live_speed import PairTimer, timed_images
from pytest_diffaccel.judge.script_verdict import StageResult
from pytest_diffaccel.measure.metrics.base import Metric, MetricFault, scores_of
from pytest_diffaccel.rules import DIFFBENCH_LOSS
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.codegen.lookup import Answer
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.judge.replay import Replay

# Of figures; beyond it a loss of exactly 5% would be more by rounding.
_DECIMALS = 6


class DiffBench:
    """Judges live calls by DiffBench's rule.

    What the script draws is scored here, never in the script's process, and only after the judge made it again.

    Args:
        replay: the judge's own pipelines.
        metric: the CLIP score.
        device: torch device that scores.
    """

    def __init__(self, replay: Replay, metric: Metric, device: str) -> None:
        self._replay, self._metric, self._device = replay, metric, device

    @cached_property
    def fault(self) -> str:
        """Why no script can be judged by this rule; empty when scripts can."""
        try:
            self._metric.prepare(self._device)
            self._identity  # noqa: B018
        except MetricFault as error:
            return str(error)
        return ""

    def judge(self, call: LiveCall, task: Task, prompts: Sequence[str], answer: Answer | None) -> StageResult:
        """Time the script on the prompts beside the unaccelerated pipeline, and score what both draw of the same noise.

        It is timed in whole calls (:func:`.timed_images`): the prompts come round again to fill the last one, and only
        the first picture of each prompt is scored. A target that golden records as unattainable may be missed.

        Args:
            call: the script's, proven.
            task: what it should do.
            prompts: at least one, distinct.
            answer: the golden record that answers the task, if there is one.

        Raises:
            ScriptMisbehaved: when a run gives other images than its call, or images that say nothing.
            TimeoutError: when the script's time is up.
        """
        from pytest_diffaccel.measure.degenerate import degenerate

        size, coming = timed_images(call, answer), cycle(prompts)
        batches = [list(islice(coming, size)) for _ in range(math.ceil(len(prompts) / size))]
        waiting = iter([batches[0], *batches])  # one more, to warm up
        timer = PairTimer(call, task, self._replay, lambda: next(waiting))
        pairs = [timer.pair() for _ in batches]
        drawn = [image for pair in pairs for image in pair.images]
        if complaint := degenerate(drawn):
            raise ScriptMisbehaved(f"draws nothing of {counted(len(prompts), 'prompt')}: {complaint}")
        plain = [image for pair in pairs for image in self._unaccelerated(task, pair.call, pair.seeds)]
        if complaint := degenerate(plain):
            said = f"not judged: the unaccelerated pipeline draws nothing: {complaint}"
            return StageResult(DIFFBENCH, "skipped", said)
        figures: dict[str, Any] = {
            "speedup": sum(pair.baseline_s for pair in pairs) / sum(pair.script_s for pair in pairs),
            "target": task.target,
            "prompts": len(prompts),
            "batch_size": size,
            "metric": self._identity,
        }
        try:
            figures |= self._scores(drawn[: len(prompts)], plain[: len(prompts)], prompts)
        except MetricFault as error:
            return StageResult(DIFFBENCH, "skipped", f"not judged: {error}", figures)
        return verdict(figures, attainable=answer is None or answer.attained)

    @cached_property
    def _identity(self) -> str:
        """Whose weights score; their digest takes a while."""
        return self._metric.identity

    def _unaccelerated(self, task: Task, call: LiveCall, seeds: Sequence[int]) -> list[Image]:
        return self._replay.images(task, call.claim.arguments, {}, seeds)

    def _scores(self, drawn: Sequence[Image], plain: Sequence[Image], prompts: Sequence[str]) -> dict[str, float]:
        def mean(images: Sequence[Image]) -> float:
            return sum(scores_of(self._metric, images, (), prompts, self._device)) / len(images)

        return {"clip_score": mean(drawn), "unaccelerated_clip_score": mean(plain)}


def verdict(figures: Mapping[str, Any], *, attainable: bool) -> StageResult:
    """What the rule says of a script's figures.

    Args:
        figures: ``speedup``, ``target``, ``clip_score`` and ``unaccelerated_clip_score``; they are kept, with
            ``clip_loss``, the share by which the score is lower.
        attainable: whether golden holds the target to be within reach.
    """
    speedup, target = figures["speedup"], figures["target"]
    score, plain = figures["clip_score"], figures["unaccelerated_clip_score"]
    if plain <= 0:
        said = "not judged: the unaccelerated pictures' CLIP score is 0, of which there is no share to lose"
        return StageResult(DIFFBENCH, "skipped", said, dict(figures))
    loss = round(1 - score / plain, _DECIMALS)
    kept = {name: round(value, _DECIMALS) if isinstance(value, float) else value for name, value in figures.items()}
    kept["clip_loss"] = loss
    clip = f"CLIP score {score:.2f}, {abs(loss):.1%} {'lower' if loss > 0 else 'higher'} than {plain:.2f} unaccelerated"
    misses = [f"{speedup:.4f}x in the mean is less than {target:g}x"] if speedup < target else []
    if loss > DIFFBENCH_LOSS:
        misses.append(f"{clip}: more than {DIFFBENCH_LOSS:.0%} is lost")
    if misses:
        return StageResult(DIFFBENCH, "failed" if attainable else "xfailed", "; ".join(misses), kept)
    return StageResult(DIFFBENCH, "passed" if attainable else "xpassed", f"{speedup:.2f}x in the mean; {clip}", kept)
