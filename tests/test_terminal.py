"""What a session shows on a terminal: lines that fit, a live line that leaves nothing behind, nothing under -q."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from searches import SMALL_OPTIONS, SearchFolder

from pytest_diffaccel.report import terminal
from pytest_diffaccel.report.terminal import Screen

LONG = "SD1.5-DDIM-20 DeepCache, T-Gate, and ToMe 12/54, 3 min left; to be verified: LPIPS 0.004 at 1.2x, 0.010 at 1.5x"
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
# Cases that take their time, as a search's do.
MADE_UP = """
import time
from found import measured
from pytest_diffaccel.search.search_run import SearchRun

def measure(self, candidate, **_):
    time.sleep(0.5)
    return measured(candidate, 2.0, 0.1)

SearchRun.measure = measure
SearchRun.take = lambda *_: True
SearchRun.give_up = lambda *_: None
"""
# What a shell starts in the background ignores Ctrl-C, and so does all that it starts, these tests perhaps.
HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


class Written(io.StringIO):
    """Standard output, a terminal or none."""

    def __init__(self, *, isatty: bool) -> None:
        super().__init__()
        self._isatty = isatty

    def isatty(self) -> bool:
        return self._isatty


class Reporter:
    """As much of pytest's as is used."""

    showfspath = True

    def __init__(self, *, isatty: bool) -> None:
        self.isatty = self.hasmarkup = isatty

    def write_line(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")

    def section(self, title: str) -> None:
        self.write_line(f"== {title}")

    def flush(self) -> None:
        sys.stdout.flush()


def shown(written: str, columns: int) -> list[str]:
    """The lines that a terminal of so many columns shows in the end."""
    rows: list[str] = [""]
    row = column = 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.|\n", written.replace("\r\n", "\n"), re.DOTALL):
        if part.endswith("A") and part.startswith("\x1b"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part == "\x1b[2K":
            rows[row] = ""
        elif part in ("\r", "\n"):
            row, column = row + (part == "\n"), 0
        elif not part.startswith("\x1b"):
            row, column = (row + 1, 0) if column == columns else (row, column)
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows]


@pytest.fixture(params=[40, 80])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm-256color")
    return int(request.param)


def written_by(monkeypatch: pytest.MonkeyPatch, *, isatty: bool, verbosity: int) -> tuple[Screen, Written]:
    out = Written(isatty=isatty)
    monkeypatch.setattr(sys, "stdout", out)
    return Screen(Reporter(isatty=isatty), verbosity), out


def test_the_live_line_fits_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen, out = written_by(monkeypatch, isatty=True, verbosity=0)
    screen.show(LONG, 1, 3)
    sys.stdout.write("F")  # pytest's letter of a case that failed
    screen.show(f"second {LONG}", 2, 3)
    (live,) = [line for line in shown(out.getvalue(), columns) if line]
    assert len(live) <= columns
    # How far it is and how long it takes would not fit beside a bar.
    assert live.startswith("second SD1.5-DDIM-20")
    assert live.endswith("\N{HORIZONTAL ELLIPSIS}")
    screen.write_line("one that stays")
    screen.show(LONG, 2, 3)
    screen.section("the end")
    assert [line for line in shown(out.getvalue(), columns) if line] == ["one that stays", "== the end"]


def test_a_short_live_line_has_a_bar(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen, out = written_by(monkeypatch, isatty=True, verbosity=0)
    screen.show("ToMe 1/3; choosing winners", 1, 3)
    (live,) = [line for line in shown(out.getvalue(), columns) if line]
    assert live.startswith(BAR)
    assert " ToMe 1/3; choosing winners" in live


def test_after_the_last_case_there_is_no_live_line(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen, out = written_by(monkeypatch, isatty=True, verbosity=0)
    screen.show(LONG, 1, 2)
    screen.show(LONG, 2, 2)
    assert shown(out.getvalue(), columns) == [""]


@pytest.mark.parametrize(("term", "verbosity"), [("dumb", 0), ("xterm", 1)])
def test_where_a_line_cannot_be_taken_back_there_is_none(
    monkeypatch: pytest.MonkeyPatch, term: str, verbosity: int
) -> None:
    """On a terminal that knows no such thing, and behind pytest's own line of a case."""
    monkeypatch.setenv("TERM", term)
    screen, out = written_by(monkeypatch, isatty=True, verbosity=verbosity)
    screen.show("1/2", 1, 2)
    assert out.getvalue() == "1/2\n"


def test_lines_fit(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen, out = written_by(monkeypatch, isatty=False, verbosity=0)
    screen.write_line(f"diffaccel: {LONG}\n{LONG}")
    assert max(map(len, out.getvalue().splitlines())) <= columns
    assert " ".join(out.getvalue().split()) == f"diffaccel: {LONG} {LONG}"


@pytest.mark.parametrize("isatty", [True, False])
def test_nothing_goes_on_under_quiet(monkeypatch: pytest.MonkeyPatch, isatty: bool) -> None:
    screen, out = written_by(monkeypatch, isatty=isatty, verbosity=-1)
    screen.begin()
    screen.tell("calibrated")
    screen.show(LONG, 1, 2)
    assert out.getvalue() == ""
    screen.write_line("a case failed")
    assert out.getvalue() == "a case failed\n"


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of rich."""
    monkeypatch.setattr("rich.console.Console.__init__", None)
    now = iter([100.0, 100.0, 101.0, 120.0, 120.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    screen, out = written_by(monkeypatch, isatty=False, verbosity=0)
    for done in (1, 2, 3):
        screen.show(f"{done}/4", done, 4)
    assert out.getvalue() == "1/4\n3/4\n"


@pytest.mark.slow
def test_ctrl_c_where_python_knows_no_line_is_ctrl_c(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def interrupted():
            raise KeyboardInterrupt

        interrupted.__code__ = interrupted.__code__.replace(co_linetable=b"")

        def test_one():
            interrupted()
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "INTERNALERROR" not in result.stdout.str()


def test_ctrl_c_leaves_a_terminal_as_it_was(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    SearchFolder(pytester.path).add_to_conftest(MADE_UP + HEARS_CTRL_C)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "benches", *SMALL_OPTIONS]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as search:
        os.close(theirs)
        written = b""
        while BAR.encode() not in written:
            written += os.read(ours, 65536)
        os.kill(search.pid, signal.SIGINT)
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # what Linux says of a terminal that nobody writes to any more
            pass
    text = written.decode()
    assert search.returncode == pytest.ExitCode.INTERRUPTED, text
    lines = shown(text, 80)
    assert not any(BAR in line for line in lines)
    (stopped,) = [number for number, line in enumerate(lines) if line.startswith("diffaccel: stopped after 1 of 4")]
    assert "the same command goes on" in " ".join(lines[stopped : stopped + 2])
