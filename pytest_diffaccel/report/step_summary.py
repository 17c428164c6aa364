"""A run in Markdown, on the page that GitHub shows of a workflow's run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pytest_diffaccel.matrix import Cell, format_params
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.records.golden_key import GoldenKey

#: GitHub names here the file whose Markdown it shows.
VARIABLE = "GITHUB_STEP_SUMMARY"
# GitHub shows no more than 1 MiB; a reader, far less.
_MOST_ROWS = 300
_MOST_CHANGES = 20


def write_step_summary(lines: Iterable[str]) -> None:
    """Append to the summary of this step; nothing where no workflow runs."""
    file = os.environ.get(VARIABLE)
    if not file:
        return
    with Path(file).open("a", encoding="utf-8") as summary:
        summary.write("\n".join(lines) + "\n\n")


def search_summary(
    entries: Mapping[GoldenKey, GoldenEntry],
    environments: Mapping[str, Environment],
    changes: Sequence[Change],
    outcomes: Mapping[str, int],
    golden: Path,
) -> list[str]:
    """A search: counts, winners, what they are to golden.

    Args:
        entries: winners, and what comes nearest to targets that none reaches.
        environments: theirs, by id.
        changes: what the search did to golden.
        outcomes: cases by outcome.
        golden: the golden file.
    """
    counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    met = sum(entry.status == "met" for entry in entries.values())
    lines = [
        "## diffaccel search",
        "",
        *_sources(environments),
        f"{met} targets met, {len(entries) - met} unattainable; cases: {counted or 'none'}.",
        "",
    ]
    lines += _winners(entries)
    return lines + _changes(changes, golden)


def _sources(environments: Mapping[str, Environment]) -> list[str]:
    sources = dict.fromkeys(f"{one.model_source}, on {one.device}" for one in environments.values())
    return [f"**Model source: {plain('; '.join(sources))}.**", ""] if sources else []


def _winners(entries: Mapping[GoldenKey, GoldenEntry]) -> list[str]:
    if not entries:
        return []
    ordered = sorted(entries, key=lambda key: key.prompt_order)
    rows = []
    for (cell, accelerator, status, _), same in groupby(ordered, key=lambda key: _identity(key, entries[key])):
        keys = list(same)
        entry = entries[keys[0]]
        targets = ", ".join(f"{key.target:g}x" for key in keys)
        if entry.speedup is None or entry.lpips is None:
            speedup, lpips = "-", "-"
        else:
            speedup, lpips = f"{entry.speedup:.2f}x", f"{entry.lpips:.4f}"
        missed = "" if status == "met" else " (unattainable)"
        params = plain(format_params(entry.params).replace(",", ", "))
        rows.append(f"| {cell} | {plain(accelerator)} | {targets}{missed} | {speedup} | {lpips} | {params} |")
    more = [f"| and {len(rows) - _MOST_ROWS} more | | | | | |"] if len(rows) > _MOST_ROWS else []
    head = ["| cell | accelerator | targets | speed-up | LPIPS | parameters |", "| --- | --- | --- | --- | --- | --- |"]
    return [*head, *rows[:_MOST_ROWS], *more, ""]


def _identity(key: GoldenKey, entry: GoldenEntry) -> tuple[Cell, str, str, str]:
    return Cell(key.pipe, key.scheduler, key.steps), key.accelerator, entry.status, format_params(entry.params)


def _changes(changes: Sequence[Change], golden: Path) -> list[str]:
    counts = Counter(change.kind for change in changes)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing to record"
    listed = [change for change in changes if change.kind in ("differs", "updated", "pruned")]
    lines = [f"Golden `{golden}`: {said}.", *(["", *_items(listed)] if listed else [])]
    if counts["differs"]:
        lines += ["", "What differs was kept; write it with `--update-golden`."]
    return lines


def _items(listed: Sequence[Change]) -> list[str]:
    items = [f"- {plain(change.describe())}" for change in listed[:_MOST_CHANGES]]
    return items + ([f"- and {len(listed) - _MOST_CHANGES} more"] if len(listed) > _MOST_CHANGES else [])


def gate_summary(
    results: Sequence[Mapping[str, Any]], broken: Sequence[str], cases: int, next_steps: Sequence[str]
) -> list[str]:
    """A gate run: counts, every case that is not ok, what to do next.

    Args:
        results: of cases with a verdict, see :meth:`.GateRun.judge`.
        broken: cases that broke off.
        cases: how many there were to judge.
        next_steps: in words.
    """
    counts = Counter(result["verdict"]["status"] for result in results)
    counted = [f"{count} {status}" for status, count in counts.items()]
    counted += [f"{len(broken)} broke off"] if broken else []
    lines = ["## diffaccel gate", "", f"{', '.join(counted) or 'nothing measured'} of {cases} cases.", ""]
    shown = [result for result in results if result["verdict"]["status"] != "ok"]
    if shown or broken:
        lines += ["| verdict | case | figures |", "| --- | --- | --- |"]
        lines += [
            f"| {result['verdict']['status']} | {plain(result['case'])} | {_cell(result['text'])} |" for result in shown
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
