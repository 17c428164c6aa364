"""How a case's result gets on its reports in the worker, and off them in the controller."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from pytest_diffaccel.report.sent_results import CaseResult

#: Name of the property that shows a case's result to other tools, as JSON.
PROPERTY = "diffaccel"
# The report's attribute that carries it; xdist sends all of a report's attributes.
_ATTRIBUTE = "diffaccel_result"
_RESULT = pytest.StashKey[str]()
# What was put among the properties: a test may have some of its own, also of the same names.
_SHOWN = pytest.StashKey[list[tuple[str, str]]]()
# Exit code: as any internal error.
_VERSIONS_DIFFER = 3
_Result = TypeVar("_Result", bound="CaseResult")


def put_result(item: pytest.Item, result: _Result) -> _Result:
    """Put a case's result on its reports from now on, in place of what stood there; and as properties for people."""
    from pytest_diffaccel.report.properties import plain_properties
    from pytest_diffaccel.report.sent_results import dump

    item.stash[_RESULT] = dump(result)
    before, shown = item.stash.get(_SHOWN, []), [*plain_properties(result), (PROPERTY, json.dumps(result.to_json()))]
    others = [pair for pair in item.user_properties if not any(pair is one for one in before)]
    item.user_properties[:] = [*others, *shown]
    item.stash[_SHOWN] = shown
    return result


def attach_result(item: pytest.Item, report: pytest.TestReport) -> None:
    """Let a report carry what was put for it, if anything was."""
    if _RESULT in item.stash:
        setattr(report, _ATTRIBUTE, item.stash[_RESULT])


def has_result(report: pytest.TestReport) -> bool:
    """Whether a report is a case's."""
    return hasattr(report, _ATTRIBUTE)


def result_of(report: pytest.TestReport) -> CaseResult | None:
    """What a case found, from its report; None for other tests.

    Ends the session where a worker of another version sent it: this one would record nothing.
    """
    if not has_result(report):
        return None
    from pytest_diffaccel.report.sent_results import parse

    try:
        return parse(getattr(report, _ATTRIBUTE))
    except ValueError as error:
        why = f"the result of {report.nodeid} cannot be read: a worker has another version of pytest-diffaccel"
        raise pytest.exit.Exception(f"diffaccel: {why}; install one wherever workers run", _VERSIONS_DIFFER) from error
