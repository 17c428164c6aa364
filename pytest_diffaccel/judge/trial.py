"""One script's run: its calls as they come in, and the one that is judged beside the judge's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_diffaccel.judge.channel import ChannelClosed, ChannelError, Message
from pytest_diffaccel.judge.claim import Claim, Expected
from pytest_diffaccel.judge.confine.folder import FolderTooFull
from pytest_diffaccel.judge.live_call import LiveCall, ScriptMisbehaved, difference_levels, drawn
from pytest_diffaccel.judge.script_verdict import StageResult

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.judge.replay import Counts, Replay
    from pytest_diffaccel.judge.workplace import ScriptProcess, Workplace

#: What is done with the judged call once it is proven: results by stage.
Use: TypeAlias = Callable[[LiveCall], Mapping[str, StageResult]]

# Calls after this many are not listened to any more.
_MOST_CALLS = 100
_LONGEST_COMPLAINT = 1000


@dataclass
class Trial:
    """What one run of a script showed.

    Attributes:
        result: of the stage ``runs``.
        claim: the judged call, proven; None when there was none.
        later: by stage, the results of what was done with the live call.
        missing: what could not be put in force of the confinement, in words.
    """

    result: StageResult
    claim: Claim | None = None
    later: Mapping[str, StageResult] = field(default_factory=dict)
    missing: Sequence[str] = ()


class Court:
    """Runs scripts and repeats what they claim.

    Args:
        workplace: where they run.
        replay: the judge's own pipelines.
        registry: the methods known.
    """

    def __init__(self, workplace: Workplace, replay: Replay, registry: Registry) -> None:
        self._workplace = workplace
        self._replay = replay
        self._registry = registry

    def try_script(self, process: ScriptProcess, expected: Expected, use: Use | None) -> Trial:
        """Follow a script to its end.

        Args:
            process: the script, just started.
            expected: what the task asks for.
            use: what to do with the judged call once it is proven, while the script waits.
        """
        hearing = _Hearing(process, expected, self._registry, self._replay, use)
        try:
            hearing.listen()
            status = self._workplace.ended(process)
        except TimeoutError:
            return hearing.failed(f"did not end within {process.limits.seconds:g} s")
        except (ScriptMisbehaved, ChannelError, FolderTooFull) as error:
            return hearing.failed(str(error))
        if status != 0:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            words = process.last_words()
            return hearing.failed(f"ended with {how}{': ' + words if words else ''}")
        return hearing.ended()


class _Hearing:
    """Listens to one script's process."""

    def __init__(
        self,
        process: ScriptProcess,
        expected: Expected,
        registry: Registry,
        replay: Replay,
        use: Use | None,
    ) -> None:
        self._process, self._expected, self._use = process, expected, use
        self._registry, self._replay = registry, replay
        self._complaint = "made no image with a pipeline of diffusers"
        self._unjudged = ""
        self._figures: dict[str, Any] = {}
        self._has_begun = False
        self._trial = Trial(StageResult("runs", "failed"))

    def listen(self) -> None:
        """Take calls until the process ends; judge the first that is what the task asks for.

        Others only run, whether or not they could be repeated: what they draw is no part of the verdict.
        """
        for _ in range(_MOST_CALLS):
            try:
                message = self._process.receive()
                self._take(message)
            except ChannelClosed:
                return
        raise ScriptMisbehaved(f"called its pipeline more than {_MOST_CALLS} times")

    def _take(self, message: Message) -> None:
        event = message.header.get("event")
        if event == "confined" and not self._has_begun:
            self._has_begun = True  # whatever says so later is the script
            self._trial.missing = [str(name) for name in message.header.get("missing", ())]
        elif event == "call":
            self._take_call(message)
        else:
            raise ScriptMisbehaved("sent what is no call of a pipeline")

    def _take_call(self, message: Message) -> None:
        try:
            claim = Claim.from_header(message.header)
        except ValueError as error:
            self._pass_over(message, error)
        else:
            mismatches = claim.mismatches(self._expected, self._registry)
            if mismatches or self._trial.claim is not None:
                self._complaint = "; ".join(mismatches)
                if claim.oddities:
                    self._note_unjudged("; ".join(claim.oddities))
                drawn(self._process, {})
            else:
                self._judge(LiveCall(claim, self._process))
        self._process.channel.send({"order": "go on"})

    def _pass_over(self, message: Message, error: ValueError) -> None:
        """Let a call run that cannot be repeated, if the script may be judged by another one."""
        said = self._note_unjudged(error)
        # What names no argument that is not repeated is no call that people make.
        if self._trial.claim is None and not message.header.get("oddities"):
            raise ScriptMisbehaved(said) from error
        self._complaint = said
        drawn(self._process, {})

    def _note_unjudged(self, why: object) -> str:
        """Keep for the verdict that a call could not be judged; what is said of it."""
        said = f"called its pipeline in a way that cannot be judged: {why}"
        self._unjudged = f"beside the call that is judged it {said}"
        return said

    def _judge(self, call: LiveCall) -> None:
        from pytest_diffaccel.measure.degenerate import degenerate

        claim, task = call.claim, self._expected.task
        # Of prompts that it did not choose: what the script has prepared for its own is worth nothing.
        call = call.for_prompts(self._replay.prompts(task, claim.arguments.images))
        images, seeds = call.run()
        try:
            own, counts = self._replay.counted(task, call.claim.arguments, claim.methods, seeds)
        except Exception as error:
            raise ScriptMisbehaved(f"its call cannot be repeated: {type(error).__name__}: {error}") from error
        if (levels := difference_levels(images, own)) > self._replay.same_levels:
            raise ScriptMisbehaved(
                f"its images are not those of its settings: they differ by {levels:.2f} of 255 levels from the same "
                f"call with {claim.methods} repeated by the judge"
            )
        if complaint := degenerate(own):
            raise ScriptMisbehaved(f"its call draws nothing: {complaint}")
        if complaint := _counted_wrongly(counts, task.cell.steps):
            raise ScriptMisbehaved(complaint)
        self._figures = {
            "seconds": round(call.seconds, 3),
            "images": len(images),
            "image_size": [claim.arguments.height, claim.arguments.width],
            "denoiser_calls": counts.fired["denoiser_calls"],
            "scheduler_steps": counts.scheduler_steps,
            "guidance_scale": claim.arguments.guidance_scale,
            "params": claim.methods,
        }
        self._trial.claim = claim
        if self._use is not None:
            self._trial.later = self._use(call)

    def failed(self, why: str) -> Trial:
        """The trial of a script that failed; what was proven before does not count."""
        self._trial.result, self._trial.claim = StageResult("runs", "failed", _printable(why), self._figures), None
        return self._trial

    def ended(self) -> Trial:
        """The trial of a script that ended as it should."""
        if self._trial.claim is None:
            return self.failed(self._complaint)
        self._trial.result = StageResult("runs", "passed", _printable(self._unjudged), self._figures)
        return self._trial


def _printable(said: str) -> str:
    """Words that may be a script's own: nothing that moves a terminal's cursor, and not a book."""
    words = "".join(letter if letter.isprintable() else " " for letter in said)
    return " ".join(words.split())[:_LONGEST_COMPLAINT]


def _counted_wrongly(counts: Counts, steps: int) -> str:
    calls = counts.fired["denoiser_calls"]
    if (calls, counts.scheduler_steps) != (steps, steps):
        return f"{calls} denoiser calls and {counts.scheduler_steps} scheduler steps, not {steps}"
    return f"no effect: {', '.join(counts.silent)} stayed 0" if counts.silent else ""
