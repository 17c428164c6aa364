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
_Result = TypeVar("_Result", bound="CaseResult")


def put_result(item: pytest.Item, result: _Result) -> _Result:
    """Put a case's result on its reports from now on, in place of what stood there; and as properties for people."""
    from pytest_diffaccel.report.properties import NAMES, plain_properties
    from pytest_diffaccel.report.sent_results import dump

    item.stash[_RESULT] = dump(result)
    others = [pair for pair in item.user_properties if pair[0] not in (PROPERTY, *NAMES)]
    item.user_properties[:] = [*others, *plain_properties(result), (PROPERTY, json.dumps(result.to_json()))]
    return result


def attach_result(item: pytest.Item, report: pytest.TestReport) -> None:
    """Let a report carry what was put for it, if anything was."""
    if _RESULT in item.stash:
        setattr(report, _ATTRIBUTE, item.stash[_RESULT])


def has_result(report: pytest.TestReport) -> bool:
    """Whether a report is a case's."""
    return hasattr(report, _ATTRIBUTE)


def result_of(report: pytest.TestReport) -> CaseResult | None:
    """What a case found, from its report; None for other tests."""
    if not has_result(report):
        return None
    from pytest_diffaccel.report.sent_results import parse

    return parse(getattr(report, _ATTRIBUTE))
