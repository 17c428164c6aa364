"""Which tests are cases, what they are called, and which group each belongs to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from pytest_diffaccel.gate.plan import GateCase
    from pytest_diffaccel.gate.run import GateRun
    from pytest_diffaccel.matrix import Candidate, Cell
    from pytest_diffaccel.search.effort import SearchCase
    from pytest_diffaccel.search.run import SearchRun

#: Names of the parametrized arguments: one case a candidate, one a group; with ``--gate``, one a winner or baseline.
CANDIDATE, GROUP, GATE_CASE = "diffaccel_candidate", "diffaccel_group", "diffaccel_gate_case"
#: Name of the report property that carries a case's result from worker to controller.
PROPERTY = "diffaccel"
Group: TypeAlias = "tuple[Cell, str]"


def group_of(item: pytest.Item) -> Group | None:
    """The group that a case belongs to; None for a test that is no case of a search."""
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec else {}
    candidate: Candidate | None = params.get(CANDIDATE)
    group: Group | None = params.get(GROUP)
    return (candidate.cell, candidate.accelerator) if candidate else group


def is_out_of_place(function: object, gate: GateRun | None) -> bool:
    """Whether a test function is a search's in a session of the gate, or the gate's where there are no cases for it."""
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()
    hidden = ((CANDIDATE, GROUP) if gate else ()) + (() if gate and gate.cases else (GATE_CASE,))
    return any(name in names for name in hidden)


def gate_case_of(item: pytest.Item) -> GateCase | None:
    """The gate's case that an item is."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(GATE_CASE) if callspec else None


def group_name(group: Group) -> str:
    """``"SD1.5-DDIM-20-DeepCache+ToMe"``."""
    from pytest_diffaccel.matrix import slug

    return f"{group[0]}-{slug(group[1])}"


def case_id(nodeid: str) -> str:
    """What stands in a node id's brackets: a candidate's key, or a group's name."""
    return nodeid.partition("[")[2].rpartition("]")[0]


def groups_by_case(run: SearchRun) -> dict[str, str]:
    """The group's name of every case of a search, by what stands in its node id's brackets."""
    names = [group_name(group) for group in run.groups]
    candidates = {one.key: group_name((one.cell, one.accelerator)) for one in run.candidates}
    return candidates | dict(zip(names, names, strict=True))


def search_cases(run: SearchRun) -> dict[str, SearchCase]:
    """What each case of a search is to do, by what stands in its node id's brackets."""
    from pytest_diffaccel.search.effort import SearchCase

    sizes = Counter((one.cell, one.accelerator) for one in run.candidates)

    def case(group: Group, *, is_winners: bool) -> SearchCase:
        return SearchCase(*group, is_winners=is_winners, in_group=sizes[group])

    candidates = {one.key: case((one.cell, one.accelerator), is_winners=False) for one in run.candidates}
    return candidates | {group_name(group): case(group, is_winners=True) for group in run.groups}


def gate_groups_by_case(gate: GateRun) -> dict[str, str]:
    """The pipe of every case of a gate, by what stands in its node id's brackets: one worker loads a pipe."""
    return {case.key: case.cell.pipe for case in gate.cases}
