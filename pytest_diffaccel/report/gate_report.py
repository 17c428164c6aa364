"""A gate run as people read it: a line per case as it ends, a table of verdicts, what to do next, and an exit code."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING

from pytest_diffaccel.gate.prospects import as_option, by_remedy, in_words, remedies
from pytest_diffaccel.gate.reference import how_to_record, record_command
from pytest_diffaccel.gate.sequential import LOOKS
from pytest_diffaccel.gate.verdict import GateVerdict, Verdict, percent
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.prompts import used
from pytest_diffaccel.records.gate_sessions import REFERENCE_NAME, GateSession, add_sessions
from pytest_diffaccel.records.golden_file import other_file
from pytest_diffaccel.records.jsonfile import JsonFileError
from pytest_diffaccel.report.progress import EndedCase, duration
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.report.step_summary import gate_summary, write_step_summary
from pytest_diffaccel.search.results import Broken
from pytest_diffaccel.settings.metric_options import deciding_options
from pytest_diffaccel.settings.option_types import spelled
from pytest_diffaccel.settings.options import benches_command, options_of
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.gate.gate_run import GateRun
    from pytest_diffaccel.report.terminal import Screen

#: Exit codes beside pytest's own. Regressed: 1, as any failed test. Not measured: as where no test was collected.
REGRESSED, REFUSED, NOTHING_MEASURED, BROKE_OFF = 1, 4, 5, 6
_NORMAL_95 = 1.96
_LEAST = f"recording times every case {LOOKS[0]} times at the least, whatever the budget is"
# Of a verdict, a finding that says most.
_GRAVEST = {"ok": 0, "improved": 1, "warning": 2, "inconclusive": 3, "regressed": 4, "refused": 5}


class GateReport:
    """Everything the controller shows and records of a gate run."""

    def __init__(self, run: GateRun, screen: Screen) -> None:
        self._run = run
        self._settings = run.settings
        self._gate = run.gate
        self._screen = screen
        self._cases = 0
        self._began = time.monotonic()
        self._results: list[GateVerdict] = []
        self._broken: list[str] = []
        self._recorded: dict[str, GateSession] = {}
        self._told_least = False
        self._unwritten = False

    def announce(self, cases: Collection[str]) -> None:
        """Say what is judged, and against what.

        Args:
            cases: the cases' node ids.
        """
        self._cases = len(cases)
        self._screen.begin()
        if not cases and self._run.holds_winners:
            self._screen.write_line(
                f"diffaccel gate: none of the winners in {self._settings.golden} is among the chosen tests; they are "
                f"judged by: {benches_command('--gate', *self._gate.choice, *self._gate.place)}"
            )
            return
        if not cases:
            cell = self._settings.cells[0]
            command = benches_command(*options_of(cell), *self._gate.place)
            golden = self._settings.golden
            other = None if golden.exists() else other_file(golden)
            advice = f"; name the golden file that is there: --golden {other}" if other else f"; record some: {command}"
            self._screen.write_line(
                f"diffaccel gate: {golden} holds no winner of the chosen cells and accelerators{advice}"
            )
            return
        gate = self._gate
        doing = f"budget {spelled(gate.budget_s)}"
        doing = f"recording references, {doing}" if self._settings.update_golden else doing
        self._screen.tell(
            f"diffaccel gate: {counted(self._cases, 'case')} of {self._settings.golden}, models: "
            f"{self._settings.models}; slowdowns of {gate.slowdown:.1%}, {', '.join(self._losses())}; {doing}"
        )
        if self._settings.prompts is not None:
            samples = max(case.entry.num_samples for case in self._run.cases)
            self._screen.tell(f"diffaccel gate: {used(self._settings.prompts, samples, gate=True)}")
        for line in self._what_recording_takes() if self._run.recording else self._what_can_be_shown():
            self._screen.tell(f"diffaccel gate: {line}")

    def _losses(self) -> Iterator[str]:
        """Which losses of quality matter, by metric."""
        for name, smallest in self._gate.quality.items():
            title = "LPIPS" if name == LPIPS else name
            worse = "decreases" if self._run.metrics[name].higher_is_better else "increases"
            yield f"{title} {worse} of {smallest:.1%}"

    def _what_can_be_shown(self) -> list[str]:
        without = len(self._run.without_reference)
        lines = [
            f"{counted(without, 'winner has', 'winners have')} no gate reference: small slowdowns hide in golden's "
            f"intervals; {how_to_record(self._gate)}"
        ][: bool(without)]
        lacking = [f"{name} of {counted(count, 'winner')}" for name, count in self._run.without_metric.items()]
        if lacking:
            lines.append(f"neither references nor golden hold {', '.join(lacking)}; {how_to_record(self._gate)}")
        return [*lines, *in_words(self._run.prospects, self._gate)]

    def _what_recording_takes(self) -> list[str]:
        """What it takes at the least, once that is known, where the budget is less: at the start, else after a case."""
        least_s, budget_s = self._run.least_to_record_s(self._recorded), self._gate.budget_s
        if self._told_least:
            return []
        self._told_least = least_s is not None
        if least_s is None:
            return [] if self._results else [f"{_LEAST}; how long that takes is told after the first case"]
        if least_s <= budget_s:
            return []
        return [f"{_LEAST}: here about {duration(least_s)} of timing, and --gate-budget is {spelled(budget_s)}"]

    def case_ended(self, case: EndedCase, result: CaseResult) -> None:
        """Take in one case: show it, record its reference.

        Args:
            case: how it ended.
            result: what came of it.
        """
        if isinstance(result, Broken):
            self._broken.append(result.case)
            self._screen.write_line(self._line("broke off", result.case, case.outcome))
        if isinstance(result, GateVerdict):
            self._results.append(result)
            self._screen.write_line(self._line(result.status, result.case, _short(result.verdict)))
            if result.sessions:
                self._add(result.sessions)
            for line in self._what_recording_takes() if self._run.recording else ():
                self._screen.write_line(f"diffaccel gate: {line}")

    def _add(self, found: Mapping[str, GateSession]) -> None:
        """Record references; where that fails, the cases that are left are judged all the same."""
        try:
            add_sessions(self._settings.golden, found, fresh=self._settings.fresh)
        except (OSError, JsonFileError) as error:
            path = self._settings.golden.with_name(REFERENCE_NAME)
            self._screen.write_line(f"diffaccel gate: {path} could not be written: {error}")
            self._unwritten = True
        else:
            self._recorded |= found

    def _line(self, status: str, case: str, text: str) -> str:
        done = len(self._results) + len(self._broken)
        left_s = (time.monotonic() - self._began) / done * (self._cases - done)
        return f"{status:<12} {case}: {text} ({done}/{self._cases}, {duration(left_s)} left)"

    def exit_code(self, exitstatus: int) -> int:
        """0 where nothing regressed, else what went wrong, the gravest first; ``exitstatus`` is pytest's own."""
        counts = Counter(result.status for result in self._results)
        if counts["regressed"]:
            return REGRESSED
        if self._broken or self._unwritten:
            return BROKE_OFF
        if counts["refused"]:
            return REFUSED
        if not any(dict(result.verdict.figures).keys() - {"power"} for result in self._results):
            return NOTHING_MEASURED
        return int(exitstatus)

    def summary(self, *, stopped: bool) -> None:
        """Verdicts that are not ok, in full; how many are; what changed since golden; what to do next.

        Args:
            stopped: whether the run was, by Ctrl-C or the like, before its last case.
        """
        if not self._results and not self._broken and not stopped:
            return
        self._screen.section("diffaccel: gate")
        counts = Counter[str](result.status for result in self._results)
        # What is the same of several cases, as that golden is another machine's, is said once.
        by_text: defaultdict[str, list[GateVerdict]] = defaultdict(list)
        for result in self._results:
            if result.status != "ok":
                by_text[result.verdict.describe()].append(result)
            elif result.verdict.notes:
                self._screen.write_line(f"{result.case}: {'; '.join(result.verdict.notes)}")
        for text, alike in by_text.items():
            for result in alike:
                targets = ", ".join(f"{target:g}x" for target in result.targets)
                self._screen.write_line(result.case + (f" (winner for {targets})" if targets else ""))
            for line in text.splitlines():
                self._screen.write_line(f"  {line}")
        causes = list(dict.fromkeys(cause for result in self._results for cause in result.verdict.causes))
        if causes:
            self._screen.write_line(f"changed since golden was recorded: {'; '.join(causes)}")
        said = [f"{count} {status}" for status, count in counts.items()]
        said += [f"{len(self._broken)} broke off"] if self._broken else []
        self._screen.write_line(f"gate: {', '.join(said) or 'nothing judged'} of {self._cases}")
        steps = [self._stopped()] if stopped else self._next_steps(counts)
        for line in steps:
            self._screen.write_line(line)
        for line in write_step_summary(gate_summary(self._results, self._broken, self._cases, steps)):
            self._screen.write_line(line)

    def _stopped(self) -> str:
        """What is kept of a run that was stopped, and what goes on."""
        ended = f"stopped after {len(self._results) + len(self._broken)} of {counted(self._cases, 'case')}"
        if not self._run.recording:
            return f"{ended}: nothing is kept of their verdicts but what is above; the same command judges all cases"
        path = self._settings.golden.with_name(REFERENCE_NAME)
        return (
            f"{ended}: {counted(len(self._recorded), 'recorded session is', 'recorded sessions are')} kept in {path}; "
            "the same command times all cases again"
        )

    def _next_steps(self, counts: Mapping[str, int]) -> list[str]:
        lines = []
        if self._recorded:
            path = self._settings.golden.with_name(REFERENCE_NAME)
            recorded = counted(len(self._recorded), "session")
            lines.append(f"recorded: {recorded} in {path}; commit it beside the golden file")
            known = sorted(_NORMAL_95 * session.standard_error for session in self._recorded.values())
            least_s = self._run.least_to_record_s(self._recorded) or 0.0
            budget = f"--gate-budget above {as_option(max(least_s, self._gate.budget_s))}"
            lines.append(
                f"their speed-ups are known to {median(known):.1%} in the median, {known[-1]:.1%} at worst (half of "
                f"the 95% interval); a {budget}, or further such runs, tell more"
            )
            hosts = sorted(_NORMAL_95 * one.host.standard_error for one in self._recorded.values() if one.host)
            if hosts:
                lines.append(
                    f"by host time, of {len(hosts)}: {median(hosts):.1%} in the median, {hosts[-1]:.1%} at worst"
                )
        if counts.get("inconclusive") and not self._settings.update_golden:
            strict = "" if self._gate.strict else "warning: "
            undecided = [result for result in self._results if result.status == "inconclusive"]
            lines.append(
                f"{strict}{counted(len(undecided), 'case')} could not be decided; ask for less (--gate-slowdown, "
                "--gate-quality), or give what it takes"
            )
            lines += [f"  {line}" for line in by_remedy(map(self._remedy, undecided))]
        if counts.get("warning"):
            lines.append(
                f"warning: {counted(counts['warning'], 'case')} became slower in a way that fails no run; what it may "
                "be stands above. A host that takes longer to launch accelerated steps: Python or a library "
                "(--gate-host-fails fails such cases)"
            )
        entries = [case.entry for case in self._run.cases]
        decided = deciding_options({entry.quality for entry in entries}, {entry.rule for entry in entries})
        sizes = {("--num-samples", str(entry.num_samples), "--batch-size", str(entry.batch_size)) for entry in entries}
        drawn = sizes.pop() if len(sizes) == 1 else ()
        own = (*decided, *drawn, *self._gate.choice, *self._gate.place)
        record = benches_command("--update-golden", "--fresh", *own)
        changed = list(dict.fromkeys(str(result.cell) for result in self._results if _pipeline_changed(result)))
        if changed:
            # Golden made now would hold the winners of what may be broken.
            lines.append(
                f"next: look at the unaccelerated pipeline of {', '.join(changed)}: are its weights whole, its "
                "scheduler and libraries the wanted ones? All else is judged by it: record nothing before it is right"
            )
        elif counts.get("improved"):
            lines.append(f"next: golden is out of date where winners improved: {record}")
        if any(map(_is_slower, self._results)):
            lines.append(
                "next: judge it in another process before you believe it: the same command with --lf (what became "
                "slower is so in every process, what other work disturbed is not)"
            )
        if counts.get("regressed") and not changed:
            references = record_command(self._gate, "--fresh")
            lines.append(f"next: what is wanted as it is now is recorded by: {record}, then {references}")
        if self._settings.models == "embedded":
            lines.append("note: embedded pipelines are small stand-ins for the real models")
        return lines

    def _remedy(self, result: GateVerdict) -> str:
        """What would decide a case that is not; of its speed the same that the start of the run said."""
        if fix := next((finding.fix for finding in result.verdict.findings if finding.fix), ""):
            return fix
        if ("quality", "inconclusive") in {(finding.subject, finding.status) for finding in result.verdict.findings}:
            return "golden and references of more samples (--num-samples): no time tells a loss from rounding"
        if result.case in self._run.without_reference:
            return how_to_record(self._gate)
        return remedies(self._run.prospects).get(
            result.case, "a quieter machine or a longer --gate-budget: it was noisier here, or slower, than references"
        )


def _is_slower(result: GateVerdict) -> bool:
    """Whether nothing but its speed fails a case."""
    failed = {finding.subject for finding in result.verdict.findings if finding.status in ("regressed", "refused")}
    return failed == {"speed"}


def _pipeline_changed(result: GateVerdict) -> bool:
    """Whether what a case showed is due to the unaccelerated pipeline of its cell."""
    if result.candidate is None:
        return result.status == "regressed"
    return any((finding.subject, finding.status) == ("quality", "refused") for finding in result.verdict.findings)


def _short(verdict: Verdict) -> str:
    """The figures of a verdict in one line."""
    parts = []
    for finding in sorted(verdict.findings, key=lambda finding: -_GRAVEST[finding.status]):
        if finding.change is None or finding.change_ci95 is None:
            parts.append(f"{finding.title} {finding.status}")
            continue
        low, high = finding.change_ci95
        parts.append(f"{finding.title} {percent(finding.change)} [{percent(low)}, {percent(high)}]")
    parts += [f"power {value:.0%}" for name, value in verdict.figures if name == "power"]
    return ", ".join(parts)
