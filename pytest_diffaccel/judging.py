"""What the cases of ``pytest codegen`` use, and the controller's side: verdicts come in, pass rates go out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_diffaccel import judge_options

if TYPE_CHECKING:
    from pytest_diffaccel.codegen.lookup import Answer
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.judge.judge import Judge
    from pytest_diffaccel.judge.verdict import Verdict
    from pytest_diffaccel.report.terminal import Terminal

#: Name of the parametrized argument: one case a task.
TASK = "diffaccel_task_id"
#: Name of the report property that carries a case's verdict from worker to controller.
PROPERTY = "diffaccel-verdict"
# Name of the property of a task that golden does not answer.
_UNRECORDED = "diffaccel-unrecorded"

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
            raise pytest.UsageError(str(error)) from error
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
def diffaccel_judge(diffaccel_bench: Judge, request: pytest.FixtureRequest) -> Callable[[str], Verdict]:
    """What a case calls with its task's id: judges the script; fails, skips or xfails the case accordingly."""
    return _Case(judge_settings(request.config), diffaccel_bench, request.node).judge


class _Case:
    """One case's work and its report."""

    def __init__(self, settings: judge_options.JudgeSettings, judge: Judge, item: pytest.Item) -> None:
        self._settings, self._judge, self._item = settings, judge, item

    def judge(self, prompt_id: str) -> Verdict:
        from pytest_diffaccel.codegen.lookup import NoRecord, find, record_command

        task = self._settings.tasks[prompt_id]
        answer: Answer | None = None
        try:
            answer = find(task, self._settings.records)
        except NoRecord:
            if self._settings.code is None:
                self._item.user_properties.append((_UNRECORDED, prompt_id))
                command = record_command([task], self._settings.records.path)
                pytest.skip(f"no golden record holds for this task; record it: {command}")
        verdict = self._judge.judge(prompt_id, task, self._script(prompt_id, answer), answer)
        self._item.user_properties.append((PROPERTY, json.dumps(verdict.to_json())))
        for warning in self._judge.missing:
            self._item.warn(pytest.PytestWarning(f"scripts are not fully confined here: {warning}"))
        return self._end(verdict, task)

    def _script(self, prompt_id: str, answer: Answer | None) -> str:
        from pytest_diffaccel.codegen.script import render

        if self._settings.code is None:
            assert answer is not None
            return render(answer)
        path = self._settings.code / f"{prompt_id}.py"
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            pytest.fail(f"{path} cannot be read: {error}", pytrace=False)

    def _end(self, verdict: Verdict, task: Task) -> Verdict:
        if verdict.failures:
            lines = [f"{one.stage}: {one.detail}" for one in verdict.failures]
            pytest.fail("\n".join([task.sentence, *lines]), pytrace=False)
        speed = verdict.of("speed")
        if speed is not None and speed.outcome == "xfailed":
            pytest.xfail(speed.detail)
        return verdict


class JudgeReporting:
    """Hooks that only the controller has (or the one process, without xdist)."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._verdicts: list[Verdict] = []
        self._unrecorded: list[str] = []

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
        if report.when != "call":
            return
        properties = {name: str(value) for name, value in report.user_properties}
        if PROPERTY in properties:
            from pytest_diffaccel.judge.verdict import Verdict

            self._verdicts.append(Verdict.from_json(json.loads(properties[PROPERTY])))
        if _UNRECORDED in properties:
            self._unrecorded.append(properties[_UNRECORDED])

    def pytest_sessionfinish(self) -> None:
        """With ``-p no:terminal`` nobody asks for a summary; the scores are written all the same."""
        if not self._config.pluginmanager.has_plugin("terminalreporter"):
            from pytest_diffaccel.report.terminal import NoTerminal

            self.pytest_terminal_summary(NoTerminal())

    def pytest_terminal_summary(self, terminalreporter: Terminal) -> None:
        """Pass rates, what golden lacks, and where it is out of date."""
        if not self._verdicts and not self._unrecorded:
            return
        settings = judge_settings(self._config)
        terminalreporter.section("judged scripts")
        for line in (*self._rates(settings), *self._gaps(settings), *self._outdated(settings)):
            terminalreporter.write_line(line)

    def _rates(self, settings: judge_options.JudgeSettings) -> Iterator[str]:
        if not self._verdicts:
            return
        from pytest_diffaccel.judge.scores import Scores
        from pytest_diffaccel.records.jsonfile import write_text

        scores = Scores.of(self._verdicts)
        yield from scores.lines()
        if settings.scores is not None:
            try:
                settings.scores.parent.mkdir(parents=True, exist_ok=True)
                write_text(settings.scores, scores.to_json())
            except OSError as error:  # the rest is to be shown all the same
                yield f"every verdict: {settings.scores} could not be written: {error}"
            else:
                yield f"every verdict: {settings.scores}"

    def _gaps(self, settings: judge_options.JudgeSettings) -> Iterator[str]:
        from pytest_diffaccel.codegen.lookup import record_command

        if self._unrecorded:
            tasks = [settings.tasks[prompt_id] for prompt_id in self._unrecorded]
            command = record_command(tasks, settings.records.path)
            yield f"{len(tasks)} tasks have no golden record; record them with: {command}"
        if settings.without_script:
            yield (
                f"{settings.without_script} of the 1134 tasks have no script in {settings.code} and are not counted; "
                "name them with --ids to count them as failed"
            )

    def _outdated(self, settings: judge_options.JudgeSettings) -> Iterator[str]:
        from pytest_diffaccel.codegen.lookup import update_command

        for verdict in self._verdicts:
            speed = verdict.of("speed")
            if speed is not None and speed.outcome == "xpassed":
                yield f"{verdict.prompt_id}: {speed.detail}; run: {update_command(settings.tasks[verdict.prompt_id])}"
