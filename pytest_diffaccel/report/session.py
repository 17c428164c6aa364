"""One session's results: taken in as cases end, shown live, kept in golden and logs, summed up at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.records.contents import Holder
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change, merge, read_environments, read_golden
from pytest_diffaccel.records.golden_key import GoldenKey, stale_keys
from pytest_diffaccel.records.jsonfile import JsonFileError
from pytest_diffaccel.report.case_log import Unwritten, log_case
from pytest_diffaccel.report.golden_differences import changes_text
from pytest_diffaccel.report.next_steps import (
    announcement,
    barred_text,
    finer_text,
    group_of,
    left_out,
    next_steps,
    stopped_text,
    undecided_text,
    unfit_text,
    unrecorded_text,
)
from pytest_diffaccel.report.picture_grid import PictureFolders, write_picture_grid
from pytest_diffaccel.report.progress import EndedCase, Progress
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.report.step_summary import search_summary, write_step_summary
from pytest_diffaccel.report.terminal import Screen, width
from pytest_diffaccel.report.time_left import Lanes, TimeLeft
from pytest_diffaccel.report.winners import (
    calibration_text,
    provisional_text,
    slowdown_text,
    store_away_text,
    winners_table,
)
from pytest_diffaccel.search.effort import Effort, SearchCase
from pytest_diffaccel.search.news import News
from pytest_diffaccel.search.results import CellWinners, Chosen, Measured, Winners
from pytest_diffaccel.settings.search_settings import Settings

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry

# Exit code: as any failed test.
_NOT_RECORDED = 1


class SessionReport:
    """Everything the controller shows and records of a search.

    Args:
        settings: the search's settings.
        registry: the methods known.
        screen: what to write to.
        command: how the run was started.
        workers: processes that run its cases at once.
    """

    def __init__(self, settings: Settings, registry: Registry, screen: Screen, command: str, workers: int) -> None:
        self._settings = settings
        self._registry = registry
        self._command = command
        self._workers = workers
        self._screen = screen
        self._progress: Progress | None = None
        self._calibrated: set[str] = set()
        self._entries: dict[GoldenKey, GoldenEntry] = {}
        self._undecided: dict[GoldenKey, Chosen] = {}
        self._changes: dict[GoldenKey, Change] = {}
        self._environments: dict[str, Environment] = {}
        self._pictures: dict[GoldenKey, PictureFolders] = {}
        self._outcomes: Counter[str] = Counter()
        self._left: dict[str, int] = {}
        self._unfit: dict[str, str] = {}
        self._launch_bound: Counter[str] = Counter()
        self._failures: Counter[tuple[str, str, str]] = Counter()
        #: Groups whose winners' cases ended without failing, and why they may have no record; and those that have one.
        self._asked: dict[str, str] = {}
        self._recorded: set[str] = set()
        self._barred: dict[str, str] = {}
        self._unfinished: set[str] = set()
        self._metrics_s: defaultdict[str, float] = defaultdict(float)
        self._waited_for: set[str] = set()
        self._unwritten = Unwritten(screen)
        self._cases = 0
        self._is_stopped = False

    def announce(self, cases: Mapping[str, SearchCase | None]) -> None:
        """Say how many cases there are, before the first; how long they take is known once something was measured.

        Refuses a golden file that cannot be read now, not after hours of searching.

        Args:
            cases: what each case is to do, by its node id; None where that is not known.
        """
        settings = self._settings
        golden = read_golden(settings.golden)
        self._cases = len(cases)
        known = {name: case for name, case in cases.items() if case is not None}
        time_left = TimeLeft(
            known,
            Effort.of(settings),
            Lanes.of(settings, self._workers),
            embedded=settings.models == "embedded",
            budget_s=settings.search_budget_s,
        )
        winners = {name: case for name, case in known.items() if case.is_winners}
        self._progress = Progress(len(cases), time_left, winners, settings.quality.rule)
        self._screen.begin()
        for said in (*announcement(settings, len(cases)), *finer_text(golden, settings, self._registry)):
            self._screen.tell(f"diffaccel: {said}")

    def case_began(self, name: str) -> None:
        """Show what takes minutes, while it does: choosing and verifying winners.

        Args:
            name: the case's node id.
        """
        if self._progress and self._progress.case_began(name):
            self._show(self._progress)

    def waits_for(self, holder: Holder) -> None:
        """Say for whom the session waits: on the live line, and once in a line that stays."""
        said = f"waiting for {holder.in_words()}"
        if holder.session.name not in self._waited_for:
            self._waited_for.add(holder.session.name)
            self._screen.tell(f"diffaccel: {said}; Ctrl-C loses nothing")
        if self._progress:
            self._progress.waits(said)
            self._show(self._progress)

    def works_on(self, phase: str) -> None:
        """Show what goes on in the middle of a case, and what is left of the time by now.

        Args:
            phase: as :class:`.Spent` names it.
        """
        if self._progress and self._progress.works_on(phase):
            self._show(self._progress)

    def case_ended(self, case: EndedCase, result: CaseResult) -> None:
        """Take in one case: log it, record its winners, move the live line.

        Args:
            case: how it ended.
            result: what it found.
        """
        self._outcomes[case.outcome] += 1
        with self._unwritten.told(f"log of {result.cell}"):
            log_case(case, result)
        failed = result.failed if isinstance(result, Winners) else ()
        for error in [case.reason] if case.outcome == "failed" else failed:
            self._tell_failure((str(result.cell), result.accelerator, error))
        news = result.news if isinstance(result, Measured | Winners) else News()
        if news.store_away_s:
            self._screen.write_line(f"diffaccel: {store_away_text(news.store_away_s, case.worker)}")
        if self._progress:
            self._progress.case_ended(case, result)
            self._tell_time(self._progress, news)
        if isinstance(result, Winners):
            for metric, seconds in result.news.metrics_s.items():
                self._metrics_s[metric] += seconds
            self._take_winners(case, result)
        if self._progress:
            self._show(self._progress)

    def _take_winners(self, case: EndedCase, result: Winners) -> None:
        """Tell a group's winners, note why it may have none, and record those of its cell."""
        group, refused = f"{result.cell} {result.accelerator}", result.refused
        if result.provisional and result.of_cell is None:  # else those that are verified come at once
            self._screen.tell(f"diffaccel: {provisional_text(result)}")
        if case.outcome != "failed":
            self._asked.setdefault(group, refused.text if refused else "its cell's winners were not verified")
        if result.left:
            self._left[group] = result.left
        if refused and refused.why == "unfit":
            self._unfit[group] = refused.text
        if result.of_cell:
            self._record(result.of_cell)

    def _tell_time(self, progress: Progress, news: News) -> None:
        """Say how long the search takes when a pipe is calibrated, and when the machine has become slower since."""
        for pipe, calibration in news.calibrated.items():
            if pipe not in self._calibrated:  # each worker tells of it
                self._calibrated.add(pipe)
                self._screen.tell(f"diffaccel: {calibration_text(pipe, calibration, progress.left())}")
        pace = progress.slowdown()
        if pace is not None:
            self._screen.tell(f"diffaccel: {slowdown_text(pace, progress.left())}")

    def _tell_failure(self, reason: tuple[str, str, str]) -> None:
        """Say at once why a case failed, or a candidate among the winners' case's: a search of hours ends long after.

        Each reason once per group.
        """
        self._failures[reason] += 1
        if self._failures[reason] == 1:
            self._screen.write_line("diffaccel: {} {}: {}".format(*reason))

    def _record(self, of_cell: CellWinners) -> None:
        found = {decided.key: decided.entry for decided in of_cell.decided}
        environments = {of_cell.environment.id: of_cell.environment}
        self._barred |= of_cell.barred
        keys = [*(one.key for one in of_cell.decided), *(one.key for one in of_cell.undecided)]
        self._unfinished |= {group_of(key) for key in keys if key.accelerator in of_cell.unfinished}
        self._launch_bound.update(
            verified.figures.candidate.accelerator for verified in of_cell.verified if verified.bound == "launch"
        )
        undecided = {choice.key: choice for choice in of_cell.undecided}
        try:
            changes = merge(
                self._settings.golden,
                found,
                update=self._settings.update_golden,
                # What a coarse grid leaves open says nothing against what a whole one found.
                undecided=[key for key, choice in undecided.items() if choice.may_reach],
                environments=environments,
            )
        except (OSError, JsonFileError) as error:  # hours of measurements are stored: the search goes on
            self._screen.write_line(f"diffaccel: {self._settings.golden} could not be written: {error}")
            why = f"{self._settings.golden} could not be written; what was measured is stored"
            self._asked |= dict.fromkeys(map(group_of, {**found, **undecided}), why)
            return
        self._recorded |= {group_of(key) for key in (*found, *undecided)}
        self._entries |= found
        self._undecided |= undecided
        self._changes |= {change.key: change for change in changes}
        self._environments |= environments
        for decided in of_cell.decided:
            if decided.pictures is not None:
                self._pictures[decided.key] = PictureFolders(
                    of_cell.prompts, Path(of_cell.baseline), Path(decided.pictures)
                )

    def _show(self, progress: Progress) -> None:
        self._screen.show(progress.line(), progress.ended, self._cases)

    def exit_code(self, exitstatus: int) -> int:
        """``exitstatus``, pytest's own; that of failed tests where all is well but a group was not recorded.

        What a budget left out, what stays undecided and what the model cannot take is no failure.
        """
        return _NOT_RECORDED if self._not_recorded and not exitstatus else int(exitstatus)

    @property
    def _not_recorded(self) -> dict[str, str]:
        if self._is_stopped:  # the rest of the session would have recorded them
            return {}
        known = {*self._recorded, *self._left, *self._unfit}
        return {group: why for group, why in self._asked.items() if group not in known}

    def summary(self, *, stopped: bool) -> None:
        """Winners, changes to the golden database, pictures, the report, and what to do next.

        Args:
            stopped: whether the session was, by Ctrl-C or the like, before its last case.
        """
        self._is_stopped = stopped
        if self._settings.golden_prune:
            self._prune()
        if self._entries or self._undecided or self._left or self._unfit or self._not_recorded:
            self._show_winners()
        if stopped:
            self._write(self._next_steps())
        if self._progress:
            self._write_step_summary()
        if self._settings.report:
            self._write_report(self._settings.report)

    def _write_step_summary(self) -> None:
        lines = search_summary(
            self._entries,
            self._environments,
            list(self._changes.values()),
            self._outcomes,
            self._settings.golden,
            failures=self._failures,
            next_steps=[*map(str.strip, unrecorded_text(self._not_recorded)), *self._next_steps()],
        )
        self._write(write_step_summary(lines))

    def _write_report(self, path: Path) -> None:
        from pytest_diffaccel.report.html.from_session import write_session_report

        changes = list(self._changes.values())
        self._screen.write_line(write_session_report(path, self._settings, self._registry, changes, self._command))

    def _show_winners(self) -> None:
        self._screen.section("diffaccel: winners")
        self._write(winners_table(self._entries, self._environments, width()))
        without = [
            *left_out(self._left, self._settings),
            *unfit_text(self._unfit),
            *unrecorded_text(self._not_recorded),
            *barred_text(self._barred),
        ]
        said = undecided_text(self._undecided, self._left, self._settings, self._unfinished)
        self._write([*said, *without])
        if self._metrics_s:
            took = ", ".join(f"{metric} took {seconds:.1f} s" for metric, seconds in self._metrics_s.items())
            self._write(["", f"metrics: {took}"])
        self._write(self._golden_changes())
        if self._settings.picture_grid:
            self._show_pictures(self._settings.picture_grid)
        if not self._is_stopped:
            self._write(self._next_steps())

    def _golden_changes(self) -> list[str]:
        golden, known = self._settings.golden, self._environments
        with suppress(OSError, JsonFileError):  # those of before are told by their ids then
            known = {**read_environments(golden), **known}
        return changes_text(list(self._changes.values()), golden, known, width())

    def _write(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._screen.write_line(line)

    def _next_steps(self) -> list[str]:
        if self._is_stopped:
            ended = self._outcomes.total()
            written = sum(change.kind in ("new", "updated") for change in self._changes.values())
            return [stopped_text(ended, self._cases, written, self._settings)]
        changes, failed = list(self._changes.values()), self._outcomes["failed"]
        return next_steps(
            self._settings, changes, failed=failed, launch_bound=self._launch_bound, entries=self._entries
        )

    def _show_pictures(self, path: Path) -> None:
        try:
            written = write_picture_grid(path, self._entries, self._pictures)
        except OSError as error:  # the rest is to be shown and written all the same
            self._screen.write_line(f"pictures: {path} could not be written: {error}")
        else:
            self._screen.write_line(f"pictures: {path}" if written else "pictures: no winner has any")

    def _prune(self) -> None:
        """Remove keys of the chosen cells that no search can find any more: an accelerator or target that is gone."""
        try:
            golden = read_golden(self._settings.golden)
            chosen = [key for key in golden if key.cell in self._settings.cells]
            stale = stale_keys(chosen, self._registry.names)
            changes = merge(self._settings.golden, {}, update=False, prune=stale)
        except (OSError, JsonFileError) as error:
            self._screen.write_line(f"golden: {self._settings.golden} could not be pruned: {error}")
        else:
            self._changes |= {change.key: change for change in changes}
