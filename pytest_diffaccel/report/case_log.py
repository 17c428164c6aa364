"""``--diffaccel-log``: a JSON line a case, on disk when it ends, so that a crash loses nothing; and logs that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pytest_diffaccel.report.progress import EndedCase
from pytest_diffaccel.report.terminal import Terminal

#: Raised when a field changes its meaning.
VERSION = 1
# What only the controller needs: folders of pictures, prompts, and what golden keeps.
_LEFT_OUT = ("skipped", "evidence", "error", "environments", "pictures", "baseline", "prompts", "golden", "text")


class Unwritten:
    """Logs that cannot be written end no search: each is told of once."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
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
                self._terminal.write_line("")
                self._terminal.write_line(f"diffaccel: {name} cannot be written: {error}; the search goes on without")


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

    def write(self, case: EndedCase, name: str, result: Mapping[str, Any]) -> None:
        """Add a case.

        Args:
            case: how it ended.
            name: the candidate's key, or the group's name.
            result: what it found, see :mod:`pytest_diffaccel.search.outcome`; its cell and accelerator if nothing.
        """
        line: dict[str, Any] = {
            "version": VERSION,
            "ended_at": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "nodeid": case.name,
            "case": name,
            "worker": case.worker or None,
            "outcome": case.outcome,
            "duration_s": round(case.duration_s, 3),
            "reason": result.get("evidence") or result.get("error"),
            **{name: value for name, value in result.items() if name not in _LEFT_OUT},
        }
        if "golden" in result:
            line["winners"] = {key: json.loads(text) for key, text in result["golden"].items()}
        # One write of a whole line: a reader that follows the file sees no half of one.
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
