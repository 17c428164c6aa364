"""The judge: a script and its task in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.composition import default_registry
from pytest_diffaccel.codegen.lookup import Answer
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.devices import computing_gpu
from pytest_diffaccel.judge import STAGES
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.live_call import LiveCall, ScriptMisbehaved
from pytest_diffaccel.judge.live_speed import judge_speed
from pytest_diffaccel.judge.quality_judge import QualityJudge
from pytest_diffaccel.judge.script_verdict import ScriptVerdict, StageResult
from pytest_diffaccel.judge.static import judge_source
from pytest_diffaccel.judge.trial import Court, Trial
from pytest_diffaccel.judge.workplace import Workplace
from pytest_diffaccel.measure.prompts import default_prompts
from pytest_diffaccel.measure.threads import use_one_thread, wait_passively
from pytest_diffaccel.measure.timing_lock import TimingLock
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.pipes import described
from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from pytest_diffaccel.judge.replay import Replay

_NO_RECORD = "no golden record to compare with"
_NOT_JUDGED = "not judged: the script does not run as the task asks"


@dataclass(frozen=True)
class Rules:
    """How scripts are judged.

    Attributes:
        stages: names of :data:`.STAGES`.
        tolerance_ratio: share of a target by which a speedup may miss it.
        models: the model source, as ``--models`` names it.
        seed: of the choice of evaluation prompts.
        lock: file of the timing lock of the machine's processors.
        limits: what a script may use.
    """

    stages: tuple[str, ...] = STAGES
    tolerance_ratio: float = 0.10
    models: str = "embedded"
    seed: int = 0
    lock: Path = WORK.timing_lock
    limits: Limits = field(default_factory=Limits)


class Judge:
    """Judges scripts. Torch is imported, and the fork server started, at the first script that is run.

    Args:
        rules: how.

    Raises:
        ValueError: when the model source cannot be read.
    """

    def __init__(self, rules: Rules) -> None:
        wait_passively()
        self.rules = rules
        self.source = ModelSource.from_option(rules.models)
        self.missing: Sequence[str] = ()

    def judge(self, prompt_id: str, task: Task, script: bytes, answer: Answer | None) -> ScriptVerdict:
        """Judge one script.

        Args:
            prompt_id: the task's id.
            task: what it should do.
            script: its source, as it lies in a file.
            answer: the golden record that answers the task; None: quality is skipped.

        Raises:
            RuntimeError: when scripts cannot be run at all; a failure of the judge, not of the script.
        """
        stages = [judge_source(script, task)] if "static" in self.rules.stages else []
        if any(stage != "static" for stage in self.rules.stages):
            trial = self._try(task, script, answer)
            stages += [trial.result, self._speed(trial), self._quality(trial, answer)]
        return ScriptVerdict(prompt_id, tuple(result for result in stages if result.stage in self.rules.stages))

    def refuse(self, prompt_id: str, why: str, answer: Answer | None) -> ScriptVerdict:
        """The verdict on a script that cannot be read: it fails in every stage, and counts like any other.

        Args:
            prompt_id: the task's id.
            why: what keeps it from being read.
            answer: the golden record that answers the task; None: quality is skipped, as for other scripts.
        """
        stages = []
        for stage in self.rules.stages:
            skipped = stage == "quality" and answer is None
            stages.append(StageResult(stage, "skipped", _NO_RECORD) if skipped else StageResult(stage, "failed", why))
        return ScriptVerdict(prompt_id, tuple(stages))

    def close(self) -> None:
        """End the fork server, if there is one."""
        if "_workplace" in vars(self):
            self._workplace.close()

    def _try(self, task: Task, script: bytes, answer: Answer | None) -> Trial:
        expected = self._replay.expected(task)
        own_size = described(task.cell.pipe).image_size or expected.image_size
        sizes = (own_size, expected.image_size)
        with ExitStack() as sharing:
            sharing.enter_context(self._lock.generating())

            def time_alone(call: LiveCall) -> StageResult:
                sharing.close()
                tolerance_ratio = self.rules.tolerance_ratio
                try:
                    with self._lock.timing():
                        return judge_speed(call, task, self._replay, tolerance_ratio=tolerance_ratio, answer=answer)
                except ScriptMisbehaved as error:
                    return StageResult("speed", "failed", str(error))

            use = time_alone if "speed" in self.rules.stages else None
            with self._workplace.running(script, task.cell.pipe, sizes, self.rules.limits) as process:
                trial = self._court.try_script(process, expected, use)
        self.missing = trial.missing
        return trial

    def _speed(self, trial: Trial) -> StageResult:
        return trial.later if trial.claim and trial.later else StageResult("speed", "failed", _NOT_JUDGED)

    def _quality(self, trial: Trial, answer: Answer | None) -> StageResult:
        if "quality" not in self.rules.stages or answer is None:
            return StageResult("quality", "skipped", _NO_RECORD)
        if trial.claim is None:
            return StageResult("quality", "failed", _NOT_JUDGED)
        prompts = default_prompts(self.source.spec(answer.task.cell.pipe))
        with self._lock.generating():
            return self._quality_judge.judge(trial.claim, answer, prompts)

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _is_embedded(self) -> bool:
        return all(spec.kind == "embedded" for spec in self.source.specs)

    @cached_property
    def _lock(self) -> TimingLock:
        if self._device != "cpu":
            return TimingLock.of_gpu(computing_gpu(None))
        return TimingLock(self.rules.lock, shareable=self._is_embedded)

    @cached_property
    def _replay(self) -> Replay:
        from pytest_diffaccel.judge.replay import Replay

        if self._is_embedded:
            use_one_thread()
        return Replay(self.source, default_registry(), self._device)

    @cached_property
    def _workplace(self) -> Workplace:
        import torch

        return Workplace(self.rules.models, self._device, torch.get_num_threads())

    @cached_property
    def _court(self) -> Court:
        return Court(self._workplace, self._replay, default_registry())

    @cached_property
    def _quality_judge(self) -> QualityJudge:
        return QualityJudge(self._replay, self.rules.seed)
