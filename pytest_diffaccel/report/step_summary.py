"""A run in Markdown, on the page that GitHub shows of a workflow's run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from pytest_diffaccel.gate.verdict import GateVerdict
from pytest_diffaccel.matrix import Cell, format_params
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.golden_differences import counts_text
from pytest_diffaccel.report.winners import (
    HEADINGS,
    figures,
    legend,
    metrics_text,
    over_eager_text,
    said_of,
    stack_notes,
)
from pytest_diffaccel.words import counted

#: GitHub names here the file whose Markdown it shows.
VARIABLE = "GITHUB_STEP_SUMMARY"
# GitHub shows no more than 1 MiB; a reader, far less.
_MOST_ROWS = 300
_MOST_CHANGES = 20


def write_step_summary(lines: Iterable[str]) -> list[str]:
    """Append to the summary of this step; nothing where no workflow runs.

    Returns:
        A line that says why it could not be written, if so: verdicts and exit code matter more.
    """
    file = os.environ.get(VARIABLE)
    if not file:
        return []
    try:
        with Path(file).open("a", encoding="utf-8", errors="replace") as summary:
            summary.write("\n".join(lines) + "\n\n")
    except OSError as error:
        return [f"step summary: could not be written: {error}"]
    return []


def search_summary(
    entries: Mapping[GoldenKey, GoldenEntry],
    environments: Mapping[str, Environment],
    changes: Sequence[Change],
    outcomes: Mapping[str, int],
    golden: Path,
    *,
    failures: Mapping[tuple[str, str, str], int],
    next_steps: Sequence[str],
) -> list[str]:
    """A search: counts, winners, failures, what they are to golden, what to do next.

    Args:
        entries: winners, and what comes nearest to targets that none reaches.
        environments: theirs, by id.
        changes: what the search did to golden.
        outcomes: cases by outcome.
        golden: the golden file.
        failures: failed cases, counted, by cell, accelerator and reason.
        next_steps: in words.
    """
    said = [f"{count} {outcome}" for outcome, count in outcomes.items() if count]
    met = sum(entry.status == "met" for entry in entries.values())
    lines = [
        "## diffaccel search",
        "",
        *_sources(environments),
        f"{met} of {counted(len(entries), 'target')} met; cases: {', '.join(said) or 'none'}.",
        "",
    ]
    lines += _winners(entries, environments)
    lines += _failures(failures)
    lines += _changes(changes, golden)
    return [*lines, "", *(f"- {plain(step)}" for step in next_steps)]


def _sources(environments: Mapping[str, Environment]) -> list[str]:
    sources = dict.fromkeys(
        f"{environment.model_source}, on {environment.device}" for environment in environments.values()
    )
    return [f"**Model source: {plain('; '.join(sources))}.**", ""] if sources else []


def _winners(entries: Mapping[GoldenKey, GoldenEntry], environments: Mapping[str, Environment]) -> list[str]:
    if not entries:
        return []
    ordered = sorted(entries, key=lambda key: key.prompt_order)
    rows = []
    notes: list[str] = []
    has_metrics = any(entry.metrics for entry in entries.values())
    for (cell, accelerator, _, _), same in groupby(ordered, key=lambda key: _identity(key, entries[key])):
        keys = list(same)
        entry = entries[keys[0]]
        environment = environments.get(entry.environment)
        scale = environment.scale if environment else None
        # Scales differ from pipe to pipe; what the columns mean does not.
        notes = legend(list(entries.values()), scale if len(environments) == 1 else None)
        targets = ", ".join(f"{key.target:g}x" for key in keys)
        metrics = [metrics_text(entry)] if has_metrics else []
        said = "; ".join(filter(None, (said_of(entry), over_eager_text(entry, environment))))
        rows.append(_row(str(cell), accelerator, targets, *figures(entry, scale), *metrics, said))
    head = ("cell", "accelerator", "targets", *HEADINGS, *(["other metrics"] if has_metrics else []), "parameters")
    notes += dict.fromkeys(note for one in environments.values() for note in stack_notes(one))
    more = [_row(f"and {len(rows) - _MOST_ROWS} more", *[""] * (len(head) - 1))] if len(rows) > _MOST_ROWS else []
    lines = [_row(*head), _row(*["---"] * len(head)), *rows[:_MOST_ROWS], *more]
    return [*lines, "", *map(plain, notes), ""]


def _row(*texts: str) -> str:
    return f"| {' | '.join(plain(text) for text in texts)} |"


def _identity(key: GoldenKey, entry: GoldenEntry) -> tuple[Cell, str, str, str]:
    return key.cell, key.accelerator, entry.status, format_params(entry.params)


def _failures(failures: Mapping[tuple[str, str, str], int]) -> list[str]:
    if not failures:
        return []
    listed = list(failures.items())
    lines = [_row("failed cases", "cell", "accelerator", "reason"), _row(*["---"] * 4)]
    lines += [_row(str(count), *reason) for reason, count in listed[:_MOST_CHANGES]]
    more = len(listed) - _MOST_CHANGES
    return [*lines, *([_row(f"and {more} more", "", "", "")] if more > 0 else []), ""]


def _changes(changes: Sequence[Change], golden: Path) -> list[str]:
    listed = [change for change in changes if change.kind in ("differs", "updated", "pruned")]
    return [f"Golden `{golden}`: {counts_text(changes)}.", *(["", *_items(listed)] if listed else [])]


def _items(listed: Sequence[Change]) -> list[str]:
    items = [f"- {plain(change.describe())}" for change in listed[:_MOST_CHANGES]]
    return items + ([f"- and {len(listed) - _MOST_CHANGES} more"] if len(listed) > _MOST_CHANGES else [])


def gate_summary(
    results: Sequence[GateVerdict], broken: Sequence[str], cases: int, next_steps: Sequence[str]
) -> list[str]:
    """A gate run: counts, every case that is not ok, what to do next.

    Args:
        results: of cases with a verdict.
        broken: cases that broke off.
        cases: how many there were to judge.
        next_steps: in words.
    """
    counts = Counter(result.status for result in results)
    said = [f"{count} {status}" for status, count in counts.items()]
    said += [f"{len(broken)} broke off"] if broken else []
    lines = ["## diffaccel gate", "", f"{', '.join(said) or 'nothing measured'} of {counted(cases, 'case')}.", ""]
    shown = [result for result in results if result.status != "ok"]
    if shown or broken:
        lines += ["| verdict | case | figures |", "| --- | --- | --- |"]
        lines += [
            f"| {result.status} | {plain(result.case)} | {_cell(result.verdict.describe())} |" for result in shown
        ]
        lines += [f"| broke off | {plain(case)} | |" for case in broken]
        lines.append("")
    return lines + [f"- {plain(step)}" for step in next_steps]


def _cell(text: str) -> str:
    return "<br>".join(plain(line) for line in text.splitlines())


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line and inside a table."""
    for letter in "\\`*_<>[]|#":
        text = text.replace(letter, f"\\{letter}" if letter not in "<>" else {"<": "&lt;", ">": "&gt;"}[letter])
    return " ".join(text.split())
