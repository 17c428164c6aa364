"""Hooks for the tests; what they share lies in ``shared_fixtures.py``, which is loaded with the first file of tests.

pytest reads this file before any search in this clone that names no folder, too (``diffaccel search``,
``pytest --update-golden``). Those must need none of the tests' packages, and run in an environment that is not changed.
"""

from __future__ import annotations

import os
import time

import pytest

pytest_plugins = ["pytester"]

# The file whose tests take longest altogether.
_LONGEST = "test_accelerators.py"
_MINUTES = float(os.environ.get("DIFFACCEL_TEST_MINUTES", "inf"))
_ENDS_AT = time.monotonic() + 60 * _MINUTES
_TOO_LATE = f"the session's {_MINUTES:g} minutes are over"


def pytest_pycollect_makemodule(parent: pytest.Collector) -> None:
    """Load what the tests share, before the first of them is imported."""
    parent.config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick ones first: a session that has to end by a time comes to more of them."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, item.path.name == _LONGEST))


def pytest_runtest_setup() -> None:
    """Skip what the session has no time for."""
    if time.monotonic() > _ENDS_AT:
        pytest.skip(_TOO_LATE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was left out: who reads that tests passed must not think that all did."""
    late = sum(_TOO_LATE in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if late:
        terminalreporter.write_line(f"{late} tests were not run: {_TOO_LATE}", yellow=True)
