"""Logs of cases, on disk when each ends, so that no crash loses one: JSON (``--diffaccel-log``), a text per cell."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pytest_diffaccel.report.progress import EndedCase
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.report.terminal import Screen
from pytest_diffaccel.search.results import Measured, Skipped, Winners
from pytest_diffaccel.settings.work_folder import WORK

#: Raised when a field changes its meaning.
VERSION = 1
# What only the controller needs: folders of pictures, prompts, and what golden keeps.
_LEFT_OUT = ("skipped", "evidence", "environments", "pictures", "baseline", "prompts", "golden", "text")


class Unwritten:
    """Logs that cannot be written end no search: each is told of once."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._told: set[str] = set()

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Write a log in this context; what goes wrong is told, not raised.

        Args:
            name: what the log is called in the message.
        """
        try:
            yield
        except OSError as error:
            if name not in self._told:
                self._told.add(name)
                self._screen.write_line(f"diffaccel: {name} cannot be written: {error}; the search goes on without")


class CaseLog:
    """A file of JSON lines that grows: a search that goes on after a crash adds to what it had written.

    Args:
        path: the file; it and its folder are made if missing.

    Raises:
        OSError: when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, case: EndedCase, name: str, result: CaseResult) -> None:
        """Add a case.

        Args:
            case: how it ended.
            name: the candidate's key, or the group's name.
            result: what it found.
        """
        line: dict[str, Any] = {
            "version": VERSION,
            "ended_at": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "nodeid": case.name,
            "case": name,
            "worker": case.worker or None,
            "outcome": case.outcome,
            "duration_s": round(case.duration_s, 3),
            "reason": (result.evidence if isinstance(result, Skipped) else case.reason) or None,
            **{name: value for name, value in result.to_json().items() if name not in _LEFT_OUT},
        }
        if isinstance(result, Winners) and result.of_cell:
            line["winners"] = {
                str(decided.key): json.loads(decided.entry.to_json()) for decided in result.of_cell.decided
            }
        # One write of a whole line: a reader that follows the file sees no half of one.
        # Lone surrogates, which UTF-8 lacks, become what JSON escapes them as.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def log_case(case: EndedCase, result: CaseResult) -> None:
    """Add a line to the log of a case's cell, in the working folder.

    Args:
        case: how it ended.
        result: what it found.

    Raises:
        OSError: when the log cannot be written.
    """
    WORK.logs.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with (WORK.logs / f"{result.cell}.log").open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"{stamp} {_line(case, result)}\n")


def _line(case: EndedCase, result: CaseResult) -> str:
    took = f"{case.duration_s:.1f} s"
    if isinstance(result, Winners):
        more = f", {result.explored} more candidates evaluated" if result.explored else ""
        verified = ", the cell's winners verified" if result.of_cell else ""
        return f"winners of {result.accelerator} chosen{verified} in {took}{more}"
    if isinstance(result, Skipped):
        return f"{result.candidate.key} skipped: {result.evidence}"
    if not isinstance(result, Measured):
        why = f": {case.reason}" if case.outcome == "failed" else ""
        return f"{case.outcome}: {case.name} after {took}{why}"
    made, speedup = result.figures, result.figures.speedup
    figures = f"{speedup.value:.3f}x [{speedup.low:.3f}, {speedup.high:.3f}] LPIPS {made.lpips.value:.4f}"
    figures += "".join(f" {name} {metric.value:.4g}" for name, metric in made.metrics.items())
    return f"{made.candidate.key} {figures} ({'stored' if result.stored else took})"
