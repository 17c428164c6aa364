"""What the cases of ``pytest codegen`` use, and the controller's side: verdicts come in, pass rates go out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_diffaccel.judge import judged_stages
from pytest_diffaccel.plugin import judge_options
from pytest_diffaccel.plugin.case_items import case_id
from pytest_diffaccel.plugin.refusals import refusal
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.codegen.lookup import Answer
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.judge.judge import Judge
    from pytest_diffaccel.judge.script_verdict import ScriptVerdict
    from pytest_diffaccel.report.terminal import Terminal

#: Name of the parametrized argument: one case per task.
TASK = "diffaccel_task_id"
#: Name of the report property that carries a case's verdict from worker to controller.
PROPERTY = "diffaccel-verdict"
# Names of the properties of every task asked for, and of one that golden does not answer.
_ASKED, _UNRECORDED = "diffaccel-asked", "diffaccel-unrecorded"
# A longer list of ids is none that anybody types.
_LONGEST_IDS = 60
_BROKEN_OFF = "the judge broke off; the case's error says where"

_SETTINGS = pytest.StashKey[judge_options.JudgeSettings]()


def judge_settings(config: pytest.Config) -> judge_options.JudgeSettings:
    """The session's settings, read at the first use.

    Raises:
        pytest.UsageError: for a bad option or a broken golden file.
    """
    if _SETTINGS not in config.stash:
        try:
            config.stash[_SETTINGS] = judge_options.JudgeSettings.from_options(config.option)
        except ValueError as error:
            raise refusal(config, error) from error
    return config.stash[_SETTINGS]


@pytest.fixture(scope="session")
def diffaccel_bench(pytestconfig: pytest.Config) -> Iterator[Judge]:
    """The session's judge."""
    from pytest_diffaccel.judge.judge import Judge, Rules

    settings = judge_settings(pytestconfig)
    try:
        judge = Judge(
            Rules(
                stages=settings.stages,
                rules=settings.rules,
                diffbench_prompts=settings.diffbench_prompts,
                clip=settings.clip,
                tolerance_ratio=settings.tolerance_ratio,
                models=settings.models,
                seed=settings.seed,
            )
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    yield judge
    judge.close()


@pytest.fixture
def diffaccel_judge(request: pytest.FixtureRequest) -> Callable[[str], ScriptVerdict]:
    """What a case calls with its task's id: judges the script; fails, skips or xfails the case accordingly."""
    # Before anything can fail: what was asked for counts, whatever becomes of it.
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and TASK in callspec.params:
        request.node.user_properties.append((_ASKED, callspec.params[TASK]))
    bench: Judge = request.getfixturevalue("diffaccel_bench")
    return _Case(judge_settings(request.config), bench, request.node).judge


class _Case:
    """One case's work and its report."""

    def __init__(self, settings: judge_options.JudgeSettings, judge: Judge, item: pytest.Item) -> None:
        self._settings, self._judge, self._item = settings, judge, item

    def judge(self, prompt_id: str) -> ScriptVerdict:
        from pytest_diffaccel.codegen.lookup import NoRecord, find, record_command

        task = self._settings.tasks[prompt_id]
        answer: Answer | None = None
        try:
            answer = find(task, self._settings.records)
        except NoRecord:
            if self._settings.code is None:
                self._item.user_properties.append((_UNRECORDED, prompt_id))
                command = record_command([task], self._settings.records)
                pytest.skip(f"no golden record holds for this task; record it: {command}")
        verdict = self._verdict(prompt_id, task, answer)
        self._item.user_properties.append((PROPERTY, json.dumps(verdict.to_json())))
        for warning in self._judge.missing:
            self._item.warn(pytest.PytestWarning(f"scripts are not fully confined here: {warning}"))
        return self._end(verdict, task)

    def _verdict(self, prompt_id: str, task: Task, answer: Answer | None) -> ScriptVerdict:
        from pytest_diffaccel.codegen.script import render

        if self._settings.code is None:
            assert answer is not None
            return self._judge.judge(prompt_id, task, render(answer).encode(), answer)
        path = self._settings.code / f"{prompt_id}.py"
        try:
            script = _read(path)
        except OSError as error:
            why = f"{path} cannot be read: {error.strerror or error}"
            return self._judge.refuse(prompt_id, why, answer)
        return self._judge.judge(prompt_id, task, script, answer)

    def _end(self, verdict: ScriptVerdict, task: Task) -> ScriptVerdict:
        if verdict.failures:
            lines = [f"{result.stage}: {result.detail}" for result in verdict.failures]
            pytest.fail("\n".join([task.sentence, *lines]), pytrace=False)
        if verdict.outcome == "xfailed":
            pytest.xfail(next(result.detail for result in verdict.stages if result.outcome == "xfailed"))
        if verdict.outcome == "skipped":
            pytest.skip(next(result.detail for result in verdict.stages if result.outcome == "skipped"))
        return verdict


def _read(path: Path) -> bytes:
    """A script's bytes.

    Raises:
        OSError: when they cannot be had, or are more than any script's.
    """
    from pytest_diffaccel.judge.static import LONGEST

    if path.exists() and not path.is_file():  # one that waits for a writer would be read for ever
        raise OSError("it is no file")
    with path.open("rb") as file:
        script = file.read(LONGEST + 1)
    if len(script) > LONGEST:
        raise OSError(f"it has more than {LONGEST} bytes, which is no script of the tasks")
    return script


class JudgeReporting:
    """Hooks that only the controller has (or the one process, without xdist)."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: dict[str, ScriptVerdict] = {}
        self._broken: set[str] = set()
        self._unrecorded: list[str] = []
        self._tests: set[str] = set()
        self._crashed: list[str] = []

    def pytest_sessionstart(self) -> None:
        """Refuse a ``--scores`` file that cannot be written now, not after all scripts."""
        if self._config.option.scores and not self._config.option.collectonly:
            from pytest_diffaccel.records.places import NoPlace, try_file

            try:
                try_file("--scores", Path(self._config.option.scores))
            except NoPlace as error:
                raise pytest.UsageError(str(error)) from error

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a case's verdict as soon as it is there."""
        properties = {name: str(value) for name, value in report.user_properties}
        if properties.keys() & {PROPERTY, _ASKED}:
            self._tests.add(report.nodeid.partition("[")[0])
        if PROPERTY in properties:
            from pytest_diffaccel.judge.script_verdict import ScriptVerdict

            verdict = ScriptVerdict.from_json(json.loads(properties[PROPERTY]))
            self._found[verdict.prompt_id] = verdict
        elif report.failed and _ASKED in properties:
            self._broken.add(properties[_ASKED])
        elif str(report.when) == "???":  # xdist's, of a case whose worker died
            self._crashed.append(report.nodeid)
        if _UNRECORDED in properties and report.when == "call":
            self._unrecorded.append(properties[_UNRECORDED])

    def _verdicts(self, settings: judge_options.JudgeSettings) -> Mapping[str, ScriptVerdict]:
        """By id; a script on which the judge broke off has failed, or whoever broke it would score higher."""
        from pytest_diffaccel.judge.script_verdict import ScriptVerdict, StageResult

        crashed = {case_id(nodeid) for nodeid in self._crashed if nodeid.partition("[")[0] in self._tests}
        judged = judged_stages(settings.stages, settings.rules)
        stages = tuple(StageResult(stage, "failed", _BROKEN_OFF) for stage in judged)
        broken = {
            prompt_id: ScriptVerdict(prompt_id, stages, settings.rules, settings.attainable(prompt_id))
            for prompt_id in (self._broken | crashed) & settings.tasks.keys()
        }
        return {**broken, **self._found}

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """With ``-p no:terminal`` nobody asks for a summary; the scores are written all the same."""
        if not self._config.pluginmanager.has_plugin("terminalreporter"):
            from pytest_diffaccel.report.terminal import NoTerminal

            self.pytest_terminal_summary(NoTerminal(), exitstatus)

    def pytest_terminal_summary(self, terminalreporter: Terminal, exitstatus: int) -> None:
        """Pass rates, what golden lacks, and where it is out of date."""
        if not self._tests:
            return
        from pytest_diffaccel.report.terminal import Screen

        settings = judge_settings(self._config)
        verdicts = self._verdicts(settings)
        screen = Screen(terminalreporter, 0)
        screen.section("judged scripts")
        for line in (
            *self._rates(settings, verdicts),
            *self._gaps(settings, verdicts),
            *self._outdated(settings, verdicts),
            *(self._stopped(settings, verdicts) if exitstatus == pytest.ExitCode.INTERRUPTED else ()),
        ):
            screen.write_line(line)

    def _rates(self, settings: judge_options.JudgeSettings, verdicts: Mapping[str, ScriptVerdict]) -> Iterator[str]:
        if not verdicts:
            return
        from pytest_diffaccel.judge.scores import Scores
        from pytest_diffaccel.records.jsonfile import write_text

        scores = Scores.of(list(verdicts.values()))
        yield from scores.lines()
        if settings.scores is not None:
            try:
                settings.scores.parent.mkdir(parents=True, exist_ok=True)
                write_text(settings.scores, scores.to_json())
            except OSError as error:  # the rest is to be shown all the same
                yield f"every verdict: {settings.scores} could not be written: {error}"
            else:
                yield f"every verdict: {settings.scores}"

    def _gaps(self, settings: judge_options.JudgeSettings, verdicts: Mapping[str, ScriptVerdict]) -> Iterator[str]:
        from pytest_diffaccel.codegen.lookup import record_command

        if self._unrecorded:
            tasks = [settings.tasks[prompt_id] for prompt_id in self._unrecorded]
            command = record_command(tasks, settings.records)
            have = counted(len(tasks), "task has", "tasks have")
            yield f"{have} no golden record; record {'it' if len(tasks) == 1 else 'them'} with: {command}"
        if left := len(settings.tasks.keys() - verdicts.keys() - set(self._unrecorded)):
            yield f"{left} of {counted(len(settings.tasks), 'task')} asked for: not judged, and not counted"
        if settings.without_script:
            yield (
                f"{settings.without_script} of the 1134 tasks have no script in {settings.code} and are not counted; "
                "name them with --ids to count them as failed"
            )

    def _stopped(self, settings: judge_options.JudgeSettings, verdicts: Mapping[str, ScriptVerdict]) -> Iterator[str]:
        """What is kept of a session that was stopped, and what goes on."""
        from pytest_diffaccel.codegen.tasks import ids_text

        open_ids = settings.tasks.keys() - verdicts.keys() - set(self._unrecorded)
        left = ids_text(open_ids) if all(map(str.isdecimal, open_ids)) else ""
        kept = f"their verdicts are in {settings.scores}" if settings.scores else "only --scores FILE keeps verdicts"
        other = " and another --scores" if settings.scores else ""
        goes_on = (
            f"--ids {left}{other} judges the others" if 0 < len(left) <= _LONGEST_IDS else "the same command judges all"
        )
        yield f"stopped after {len(verdicts)} of {counted(len(settings.tasks), 'task')}: {kept}; {goes_on}"

    def _outdated(self, settings: judge_options.JudgeSettings, verdicts: Mapping[str, ScriptVerdict]) -> Iterator[str]:
        from pytest_diffaccel.codegen.lookup import update_command

        for verdict in verdicts.values():
            speed = verdict.of("speed")
            if speed is not None and speed.outcome == "xpassed":
                command = update_command(settings.tasks[verdict.prompt_id], settings.records)
                yield f"{verdict.prompt_id}: {speed.detail}; run: {command}"
