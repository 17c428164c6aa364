"""What failed, and what the search's log says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_diffaccel.records.contents import Failure
from pytest_diffaccel.report.html.content.cells import CellRecord

# The last so many lines of a log tell how it came to the failure.
_LINES = 12
# A log line may hold a whole traceback's message.
_LINE_CHARACTERS = 500
_WORDS: Mapping[str, str] = {
    "oom": "out of memory",
    "timeout": "took too long",
    "not-fired": "the method did not act",
    "missing": "its method missed something",
    "interrupted": "its process ended",
    "crash": "its process ended, more than once",
}


@dataclass(frozen=True)
class FailurePart:
    """A failure and its log.

    Attributes:
        failure: what failed.
        words: its kind in words.
        log: the lines of the cell's log that name the candidate, the last of them.
    """

    failure: Failure
    words: str
    log: tuple[str, ...]


def failure_parts(record: CellRecord, logs: Path) -> list[FailurePart]:
    """The failures of a cell with their logs.

    Args:
        record: the cell.
        logs: folder of logs, a file per cell; it need not be there.
    """
    if not record.failures:
        return []
    file = logs / f"{record.cell}.log"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return [FailurePart(failure, _words(failure), _own_lines(lines, failure)) for failure in record.failures]


def _own_lines(lines: list[str], failure: Failure) -> tuple[str, ...]:
    key = failure.candidate.key
    # A key that goes on is another candidate's, such as that of interval=20 for interval=2.
    own = [line[:_LINE_CHARACTERS] for line in lines if key in line and not _goes_on(line, key)]
    return tuple(own[-_LINES:])


def _goes_on(line: str, key: str) -> bool:
    after = line[line.index(key) + len(key) :][:1]
    return after.isalnum() or after in (".", ",")


def _words(failure: Failure) -> str:
    return _WORDS.get(failure.kind, "error")
