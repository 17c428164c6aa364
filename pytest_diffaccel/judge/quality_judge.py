"""How far a script's proven settings move images, on the samples on which golden recorded its winner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.judge.claim import MOST_IMAGES
from pytest_diffaccel.judge.script_verdict import StageResult
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.prompts import select
from pytest_diffaccel.measure.statistics import loss_interval

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.codegen.lookup import Answer
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.judge.claim import Arguments, Claim
    from pytest_diffaccel.judge.replay import Replay


class QualityJudge:
    """Scores settings; baseline images are made once for each kind of call.

    Args:
        replay: the judge's own pipelines.
        prompts: evaluation prompts by pipe.
        seed: of the choice of prompts, as for a search.
    """

    def __init__(self, replay: Replay, seed: int) -> None:
        self._replay = replay
        self._seed = seed
        self._baselines: dict[tuple[object, ...], list[Image]] = {}

    def judge(self, claim: Claim, answer: Answer, prompts: Sequence[str]) -> StageResult:
        """Compare the mean LPIPS with the record's, at the record's guidance, whatever the script's own is.

        It fails only when both disagree: the mean lies above the record's interval, and the record's mean below the
        interval measured here. Pictures that say nothing fail, also where the baseline's say no more.
        """
        from pytest_diffaccel.measure.degenerate import degenerate
        from pytest_diffaccel.measure.metrics.lpips import lpips_distances

        entry, task = answer.entry, answer.task
        if entry.lpips is None or entry.lpips_ci95 is None:
            return StageResult("quality", "skipped", "its golden record holds no LPIPS")
        # Where guidance pulls less, or towards something else, methods lose less than the record allows.
        call = claim.arguments.as_usual(answer.environment.guidance_scale)
        pairs = select(prompts, entry.num_samples, self._seed, "winner")
        drawn: list[Image] = []
        distances: list[float] = []
        size = min(entry.batch_size, MOST_IMAGES)
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            seeds = [seed for _, seed in batch]
            arguments = call.for_prompts([prompt for prompt, _ in batch], negatives=False)
            images = self._replay.images(task, arguments, claim.methods, seeds)
            distances += lpips_distances(images, self._baseline(task, arguments, seeds))
            drawn += images
        if complaint := degenerate(drawn):
            return StageResult("quality", "failed", f"its settings draw nothing: {complaint}")
        lpips, bound = loss_interval(distances), entry.lpips_ci95[1]
        measured = f"LPIPS {lpips.value:.4f} (95% interval {lpips.low:.4f} to {lpips.high:.4f})"
        note = "" if entry.quality == LPIPS else f"; {entry.quality} decided the record, not LPIPS"
        figures = {"lpips": round(lpips.value, 6), "bound": bound, "recorded": entry.lpips, "samples": len(distances)}
        if lpips.value > bound and lpips.low > entry.lpips:
            return StageResult("quality", "failed", f"{measured} is above the record's {bound:.4f}{note}", figures)
        return StageResult("quality", "passed", f"{measured}{note}", figures)

    def _baseline(self, task: Task, arguments: Arguments, seeds: Sequence[int]) -> list[Image]:
        key = (task.cell, repr(arguments), tuple(seeds))
        if key not in self._baselines:
            self._baselines[key] = self._replay.images(task, arguments, {}, seeds)
        return self._baselines[key]
