"""The controller's side of a search: results come in on reports; the live line, logs and golden go out."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import pytest

from pytest_diffaccel.plugin.case_items import (
    case_id,
    gate_case_of,
    gate_groups_by_case,
    group_of,
    groups_by_case,
    search_cases,
)
from pytest_diffaccel.plugin.case_results import has_result, result_of
from pytest_diffaccel.plugin.fixtures import gate_run, is_searching, search_run
from pytest_diffaccel.plugin.ini_keys import key_like
from pytest_diffaccel.plugin.refusals import refusal
from pytest_diffaccel.plugin.workers import other_session, presence_of
from pytest_diffaccel.settings import options

if TYPE_CHECKING:
    from pytest_diffaccel.records.contents import Holder, RunningSession
    from pytest_diffaccel.records.presence import Presence
    from pytest_diffaccel.report.case_log import CaseLog, Unwritten
    from pytest_diffaccel.report.gate_report import GateReport
    from pytest_diffaccel.report.session import SessionReport
    from pytest_diffaccel.report.terminal import Screen, Terminal
    from pytest_diffaccel.search.results import Broken

#: Category, letter and word of a report, as pytest's hook returns them.
_Status: TypeAlias = tuple[str, str, Any]
#: Outcomes that pytest itself knows.
_Outcome: TypeAlias = Literal["passed", "failed", "skipped"]


def _reason(report: pytest.TestReport) -> str:
    """Why a case failed or was skipped, in one line."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr).strip()
    return text.removeprefix("Failed: ").partition("\n")[0]


def _command(config: pytest.Config) -> str:
    """How this run was started."""
    return options.command_of(list(map(str, config.invocation_params.args)))


def _open_log(path: str | None) -> CaseLog | None:
    if path is None:
        return None
    from pytest_diffaccel.report.case_log import CaseLog

    try:
        return CaseLog(Path(path))
    except OSError as error:
        raise pytest.UsageError(f"--diffaccel-log: {path!r} cannot be written: {error.strerror or error}") from error


class Reporting:
    """Hooks that only the controller has (or the one process, without xdist)."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._made: SessionReport | GateReport | None = None
        # By a place that cannot be written, before the first case: then there is nothing to sum up.
        self._is_refused = False
        self._has_begun = False
        self._misspelt: list[str] = []
        self._log = _open_log(config.option.diffaccel_log)
        self._presence: Presence | None = None

    @cached_property
    def _screen(self) -> Screen:
        from pytest_diffaccel.report.terminal import NoTerminal, Screen

        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        verbosity = getattr(self._config.option, "verbose", 0)  # absent where there is no terminal
        screen = Screen(NoTerminal() if reporter is None else cast("Terminal", reporter), verbosity)
        self._config.add_cleanup(screen.end_live_line)  # whatever ends the session
        return screen

    @cached_property
    def _unwritten(self) -> Unwritten:
        from pytest_diffaccel.report.case_log import Unwritten

        return Unwritten(self._screen)

    @property
    def _report(self) -> SessionReport | GateReport:
        if self._made is None:
            from pytest_diffaccel.report.gate_report import GateReport
            from pytest_diffaccel.report.session import SessionReport

            screen = self._screen
            run, gate = search_run(self._config), gate_run(self._config)
            if gate is not None:
                self._made = GateReport(gate, screen)
            else:
                self._made = SessionReport(
                    run.settings, run.registry, screen, _command(self._config), run.session.workers
                )
        return self._made

    @property
    def _search(self) -> SessionReport | None:
        """The report of a search, once there is one."""
        return None if gate_run(self._config) is not None else cast("SessionReport | None", self._made)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say how much there is to do."""
        items = [item for item in session.items if group_of(item) or gate_case_of(item)]
        if (items or self._config.option.gate) and not session.config.option.collectonly:
            self._announce([item.nodeid for item in items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """The same with xdist, where the workers collect."""
        if is_searching(self._config) and self._made is None:
            gate = gate_run(self._config)
            cases = gate_groups_by_case(gate) if gate else groups_by_case(search_run(self._config))
            nodeids = [nodeid for nodeid in ids if case_id(nodeid) in cases]
            if gate is not None:
                gate.keep({case_id(nodeid) for nodeid in nodeids})
            if nodeids or gate:  # else the project's configuration alone says that there is a search
                self._announce(nodeids)

    def _announce(self, nodeids: Sequence[str]) -> None:
        self._tell_of_cluster()
        from pytest_diffaccel.records.jsonfile import JsonFileError
        from pytest_diffaccel.records.places import NoPlace, try_places

        known = {} if gate_run(self._config) else search_cases(search_run(self._config))
        try:
            self._report.announce({nodeid: known.get(case_id(nodeid)) for nodeid in nodeids})
            if nodeids:
                try_places(search_run(self._config).settings)
        except (JsonFileError, NoPlace) as error:
            self._is_refused = True
            raise refusal(self._config, error) from error
        if nodeids and known:
            self._tell_of_others()

    def _tell_of_cluster(self) -> None:
        if self._config.option.ray is not None:
            from pytest_diffaccel.plugin.ray_cluster import said_of

            self._screen.write_line(f"diffaccel: {said_of(self._config)}")

    def _tell_of_others(self) -> None:
        """Name the sessions that search at the same time: into this store, or in this folder into another one."""
        from pytest_diffaccel.records.presence import session_words
        from pytest_diffaccel.records.tables import StoreError

        others: list[RunningSession] = []
        in_folder = other_session(self._config)
        with suppress(StoreError):  # which the first case will tell
            self._presence = presence_of(self._config, search_run(self._config))
            others = self._presence.begin()
        for other in others:
            self._screen.write_line(
                f"diffaccel: another session searches into this store ({session_words(other)}): "
                "what both look for is shared out"
            )
        if in_folder and not (self._presence and any(map(self._presence.is_here, others))):
            self._screen.write_line(
                f"diffaccel: another session searches in this folder ({in_folder}), into another store: what both look "
                "for is measured twice; stop one of them, or give both the same --store"
            )

    def waits_for(self, holder: Holder) -> None:
        """Say for whom the session waits: what is left of it is what another one is at."""
        if self._search is not None:
            self._search.waits_for(holder)

    def works_on(self, phase: str) -> None:
        """Say what a session without workers begins, in the middle of a case, whose output pytest keeps."""
        if self._search is not None:
            capture = self._config.pluginmanager.get_plugin("capturemanager")
            with capture.global_and_fixture_disabled() if capture else nullcontext():
                self._search.works_on(phase)

    def workers_wait(self) -> None:
        """The same of workers, which keep it in the store."""
        from pytest_diffaccel.records.tables import StoreError

        with suppress(StoreError):  # which a case will tell
            holder = self._presence.waits_for() if self._presence else None
            if holder is not None:
                self.waits_for(holder)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Generator[None, _Status, _Status]:
        """No letter for a case that a line of ours tells more of. With ``-v`` pytest's own line stays."""
        status, verbosity = (yield), self._config.option.verbose
        # Under -q a search tells nothing of a failure before its end, the gate tells of all.
        is_told = not report.failed or verbosity == 0 or gate_run(self._config) is not None
        return (status[0], "", status[2]) if verbosity <= 0 and is_told and has_result(report) else status

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say what takes minutes while it does; with ``-v`` pytest's own line says which case it is."""
        is_quiet = getattr(self._config.option, "verbose", 0) <= 0  # absent where there is no terminal
        self._has_begun = True
        if self._search is not None and is_quiet:
            self._search.case_began(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a case's result as soon as it is there; not that of one that is run again at once (rerunfailures)."""
        if report.outcome not in get_args(_Outcome):
            return
        result = result_of(report) or self._place_of(report)
        if result is not None and (report.when == "call" or report.failed):
            from pytest_diffaccel.plugin.pytest_benchmark_files import add_benchmarks
            from pytest_diffaccel.report.progress import EndedCase

            node = getattr(report, "node", None)  # xdist's
            worker = node.gateway.id if node is not None else ""
            reason = "" if report.passed else _reason(report)
            case = EndedCase(report.nodeid, report.outcome, report.duration, worker, reason)
            if self._log is not None:
                with self._unwritten.told("--diffaccel-log"):
                    self._log.write(case, case_id(report.nodeid), result)
            add_benchmarks(self._config, report.nodeid, result)
            self._report.case_ended(case, result)

    def _place_of(self, report: pytest.TestReport) -> Broken | None:
        """A case that failed before it could say anything: its worker died, or a fixture."""
        if not report.failed or not is_searching(self._config) or gate_run(self._config) is not None:
            return None
        run = search_run(self._config)
        from pytest_diffaccel.search.results import Broken

        group = groups_by_case(run).get(case_id(report.nodeid))
        places = {place.name: place for place in run.groups}
        return None if group is None else Broken(*places[group])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """What pytest's own exit code cannot tell: a gate's verdicts, and a search that did not record its winners."""
        if self._made is None or self._is_refused:
            return
        self._screen.end_live_line()  # pytest's next line would leave it where it is
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            session.exitstatus = self._made.exit_code(exitstatus)
        if not self._config.pluginmanager.has_plugin("terminalreporter"):
            self._sum_up(exitstatus)  # nobody else asks for it; it writes files, too

    def _sum_up(self, exitstatus: int) -> None:
        if self._made is not None and not self._is_refused:
            self._made.summary(stopped=self._has_begun and exitstatus == pytest.ExitCode.INTERRUPTED)

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        """Say of a misspelt key of the project's configuration which one may be meant."""
        if said := key_like(str(warning_message.message)):
            self._misspelt.append(said)

    def pytest_terminal_summary(self, exitstatus: int) -> None:
        """The winners or verdicts, what changed in the golden database, and what to do next."""
        self._sum_up(exitstatus)
        for said in self._misspelt:
            self._screen.write_line(f"diffaccel: {said}")
        asked = options.is_given(self._config.known_args_namespace) and not self._config.option.gate
        if asked and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not options.names_benches(self._config.args):
            said = (
                f"no case of a search was collected; run them with: {options.benches_command()}, and the same options"
            )
            self._screen.write_line(f"diffaccel: {said}")
