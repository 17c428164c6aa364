"""The results of cases: what each may be, and how it travels from a worker to the controller."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import Annotated, TypeAlias

from pydantic import Field, TypeAdapter

from pytest_diffaccel.gate.verdict import GateVerdict
from pytest_diffaccel.search.results import Broken, Measured, SearchResult, Skipped, Winners

CaseResult: TypeAlias = SearchResult | GateVerdict


def dump(result: CaseResult) -> str:
    """The result as a text, which :func:`parse` reads back equal.

    Of lone surrogates, which messages have of files whose names are no UTF-8, and JSON's readers refuse, "?" is left.
    """
    return json.dumps(asdict(result), ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def parse(text: str) -> CaseResult:
    """The result that :func:`dump` wrote.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) when it wrote none such.
    """
    return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[CaseResult]:
    union = Measured | Skipped | Winners | Broken | GateVerdict
    return TypeAdapter(Annotated[union, Field(discriminator="kind")])
