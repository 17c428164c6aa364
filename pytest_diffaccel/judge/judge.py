"""The judge: a script and its task in, a verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.codegen.lookup import Answer
from pytest_diffaccel.codegen.tasks import Task
from pytest_diffaccel.devices import computing_gpu
from pytest_diffaccel.judge import DIFFBENCH, DIFFBENCH_PROMPTS, OURS, STAGES, judged_stages
from pytest_diffaccel.judge.confine.limits import Limits
from pytest_diffaccel.judge.diffbench import DiffBench
from pytest_diffaccel.judge.live_call import LiveCall, ScriptMisbehaved
from pytest_diffaccel.judge.live_speed import judge_speed
from pytest_diffaccel.judge.quality_judge import QualityJudge
from pytest_diffaccel.judge.script_verdict import ScriptVerdict, StageResult
from pytest_diffaccel.judge.static import judge_source
from pytest_diffaccel.judge.trial import Court, Trial
from pytest_diffaccel.judge.workplace import Workplace
from pytest_diffaccel.matrix import Cell, Lesson
from pytest_diffaccel.measure.metrics.clip_score import ClipScore
from pytest_diffaccel.measure.prompts import default_prompts
from pytest_diffaccel.measure.threads import use_one_thread, wait_passively
from pytest_diffaccel.measure.timing_lock import TimingLock
from pytest_diffaccel.models.clip import EMBEDDED, ClipSource
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
        rules: by which, :data:`.OURS`, :data:`.DIFFBENCH` or both; the first decides whether a script passed.
        diffbench_prompts: on how many prompts DiffBench's rule judges, 1 to 10.
        clip: what DiffBench's rule asks for the CLIP score.
        tolerance_ratio: share of a target by which a speedup may miss it.
        models: the model source, as ``--models`` names it.
        seed: of the choice of evaluation prompts.
        lock: file of the timing lock of the machine's processors.
        limits: what a script may use.
    """

    stages: tuple[str, ...] = STAGES
    rules: tuple[str, ...] = (OURS,)
    diffbench_prompts: int = DIFFBENCH_PROMPTS
    clip: ClipSource = field(default_factory=lambda: ClipSource.from_option(EMBEDDED))
    tolerance_ratio: float = 0.10
    models: str = "embedded"
    seed: int = 0
    lock: Path = WORK.timing_lock
    limits: Limits = field(default_factory=Limits)

    @property
    def judged(self) -> tuple[str, ...]:
        """The stages that verdicts hold, in the order judged."""
        return judged_stages(self.stages, self.rules)


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
        self._lessons: dict[Cell, Mapping[str, Lesson]] = {}

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
        asked = self.rules.judged
        if answer is not None:
            self._lessons[task.cell] = answer.environment.lessons(answer.key.cell)
        found = {stage: StageResult(stage, "skipped", why) for stage, why in self._not_judged(answer).items()}
        if "static" in asked:
            found["static"] = judge_source(script, task)
        if left := [stage for stage in asked if stage not in found]:
            found |= self._run(task, script, answer, left)
        return self._verdict(prompt_id, found, answer)

    def refuse(self, prompt_id: str, why: str, answer: Answer | None) -> ScriptVerdict:
        """The verdict on a script that cannot be read: it fails in every stage, and counts like any other.

        Args:
            prompt_id: the task's id.
            why: what keeps it from being read.
            answer: the golden record that answers the task; None: quality is skipped, as for other scripts.
        """
        found = {stage: StageResult(stage, "failed", why) for stage in self.rules.judged}
        found |= {stage: StageResult(stage, "skipped", said) for stage, said in self._not_judged(answer).items()}
        return self._verdict(prompt_id, found, answer)

    def close(self) -> None:
        """End the fork server, if there is one."""
        if "_workplace" in vars(self):
            self._workplace.close()

    def _verdict(self, prompt_id: str, found: Mapping[str, StageResult], answer: Answer | None) -> ScriptVerdict:
        stages = tuple(found[stage] for stage in self.rules.judged)
        return ScriptVerdict(prompt_id, stages, self.rules.rules, None if answer is None else answer.attained)

    def _not_judged(self, answer: Answer | None) -> dict[str, str]:
        """By stage, why it cannot be judged, whatever the script."""
        said = {"quality": _NO_RECORD} if answer is None else {}
        if DIFFBENCH in self.rules.judged:
            left_out = [stage for stage in ("speed", "quality") if stage not in self.rules.stages]
            why = f"--stages leaves out {' and '.join(left_out)}" if left_out else self._diffbench.fault
            said |= {DIFFBENCH: f"not judged: {why}"} if why else {}
        return said

    def _run(self, task: Task, script: bytes, answer: Answer | None, stages: Sequence[str]) -> dict[str, StageResult]:
        """What running a script shows, by stage."""
        trial = self._try(task, script, answer, [stage for stage in ("speed", DIFFBENCH) if stage in stages])
        if trial.claim is None:
            return {**{stage: StageResult(stage, "failed", _NOT_JUDGED) for stage in stages}, "runs": trial.result}
        found = {**trial.later, "runs": trial.result}
        if "quality" in stages:
            assert answer is not None  # or quality would be skipped
            with self._lock.generating():
                found["quality"] = self._quality_judge.judge(trial.claim, answer, self._prompts(answer.task))
        return found

    def _try(self, task: Task, script: bytes, answer: Answer | None, timed: Sequence[str]) -> Trial:
        expected = self._replay.expected(task)
        own_size = described(task.cell.pipe).image_size or expected.image_size
        sizes = (own_size, expected.image_size)
        with ExitStack() as sharing:
            sharing.enter_context(self._lock.generating())

            def time_alone(call: LiveCall) -> dict[str, StageResult]:
                sharing.close()
                with self._lock.timing():
                    return self._time(call, task, answer, timed)

            use = time_alone if timed else None
            with self._workplace.running(script, task.cell.pipe, sizes, self.rules.limits) as process:
                trial = self._court.try_script(process, expected, use)
        self.missing = trial.missing
        return trial

    def _time(self, call: LiveCall, task: Task, answer: Answer | None, stages: Sequence[str]) -> dict[str, StageResult]:
        """Whatever needs the machine for itself, by stage; where a script cheats, it fails in all that is left."""
        found: dict[str, StageResult] = {}
        try:
            if "speed" in stages:
                tolerance_ratio = self.rules.tolerance_ratio
                found["speed"] = judge_speed(call, task, self._replay, tolerance_ratio=tolerance_ratio, answer=answer)
            if DIFFBENCH in stages:
                prompts = self._prompts(task)[: self.rules.diffbench_prompts]
                found[DIFFBENCH] = self._diffbench.judge(call, task, prompts, answer)
        except ScriptMisbehaved as error:
            found |= {stage: StageResult(stage, "failed", str(error)) for stage in stages if stage not in found}
        return found

    def _prompts(self, task: Task) -> tuple[str, ...]:
        return default_prompts(self.source.spec(task.cell.pipe))

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
        registry = default_registry().learning(
            lambda cell, names: {name: told for name, told in self._lessons.get(cell, {}).items() if name in names}
        )
        return Replay(self.source, registry, self._device)

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

    @cached_property
    def _diffbench(self) -> DiffBench:
        return DiffBench(self._replay, ClipScore(self.rules.clip), self._device)
