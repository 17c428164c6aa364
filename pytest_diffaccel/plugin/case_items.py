"""Which tests are cases, what they are called, and which group each belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_diffaccel.gate.case_plan import GateCase
    from pytest_diffaccel.gate.gate_run import GateRun
    from pytest_diffaccel.matrix import Candidate, Group
    from pytest_diffaccel.search.effort import SearchCase
    from pytest_diffaccel.search.search_run import SearchRun

#: Names of the parametrized arguments: one case per candidate, one per group; with ``--gate``, one per winner or
#: baseline.
CANDIDATE, GROUP, GATE_CASE = "diffaccel_candidate", "diffaccel_group", "diffaccel_gate_case"
#: Name of the fixture that a case measures with.
CASE = "diffaccel_search"
_WINNERS = pytest.StashKey["frozenset[Group]"]()


def group_of(item: pytest.Item) -> Group | None:
    """The group that a case belongs to; None for a test that is no case of a search."""
    candidate = _candidate_of(item)
    group: Group | None = _params(item).get(GROUP)
    return candidate.group if candidate else group


def is_winners_case(item: pytest.Item) -> bool:
    """Whether a test is a group's winners' case."""
    return GROUP in _params(item)


def measures(item: pytest.Item) -> bool:
    """Whether a test measures in its group; one of somebody else's may only look at its candidate."""
    return CASE in getattr(item, "fixturenames", ())


def groups_with_winners(session: pytest.Session) -> frozenset[Group]:
    """The groups whose winners a session looks for."""
    if _WINNERS not in session.stash:
        session.stash[_WINNERS] = frozenset(_params(item)[GROUP] for item in session.items if is_winners_case(item))
    return session.stash[_WINNERS]


def others_of(item: pytest.Item, group: Group) -> list[str]:
    """Accelerators of the other groups of a group's cell whose winners the session looks for, too."""
    known = groups_with_winners(item.session)
    return sorted(name for cell, name in known if cell == group.cell and name != group.accelerator)


def _candidate_of(item: pytest.Item) -> Candidate | None:
    candidate: Candidate | None = _params(item).get(CANDIDATE)
    return candidate


def _params(item: pytest.Item) -> Mapping[str, Any]:
    """The arguments that a test is parametrized with; none for a test that is not."""
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def is_out_of_place(function: object, gate: GateRun | None) -> bool:
    """Whether a test function is a search's in a session of the gate, or the gate's where there are no cases for it."""
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()
    hidden = ((CANDIDATE, GROUP) if gate else ()) + (() if gate and gate.cases else (GATE_CASE,))
    return any(name in names for name in hidden)


def gate_case_of(item: pytest.Item) -> GateCase | None:
    """The gate's case that an item is."""
    case: GateCase | None = _params(item).get(GATE_CASE)
    return case


def sort_cases(items: list[pytest.Item], search: Callable[[], SearchRun], gate: GateRun | None) -> None:
    """Put cases in their order, behind all other tests: a group's candidates, then its winners, which need them.

    Args:
        items: the session's tests, sorted in place.
        search: gives the session's search; asked only where there are cases of one.
        gate: the session's gate, or None.
    """
    if gate is not None:
        order = {case.key: place for place, case in enumerate(gate.cases)}
        items.sort(key=lambda item: order[case.key] if (case := gate_case_of(item)) else -1)
    elif any(group_of(item) for item in items):
        run = search()
        groups = {group: place for place, group in enumerate(run.groups)}
        candidates = {candidate.key: place for place, candidate in enumerate(run.candidates)}

        def place(item: pytest.Item) -> tuple[int, int]:
            group, candidate = group_of(item), _candidate_of(item)
            if group is None:
                return -1, -1
            return groups[group], candidates[candidate.key] if candidate else len(candidates)

        items.sort(key=place)


def case_id(nodeid: str) -> str:
    """What stands in a node id's brackets: a candidate's key, or a group's name."""
    return nodeid.partition("[")[2].rpartition("]")[0]


def groups_by_case(run: SearchRun) -> dict[str, str]:
    """The group's name of every case of a search, by what stands in its node id's brackets."""
    names = [group.name for group in run.groups]
    candidates = {candidate.key: candidate.group.name for candidate in run.candidates}
    return candidates | dict(zip(names, names, strict=True))


def search_cases(run: SearchRun) -> dict[str, SearchCase]:
    """What each case of a search is to do, by what stands in its node id's brackets."""
    from pytest_diffaccel.search.effort import SearchCase

    sizes = Counter(candidate.group for candidate in run.candidates)

    def case(group: Group, *, is_winners: bool) -> SearchCase:
        return SearchCase(*group, is_winners=is_winners, in_group=sizes[group])

    candidates = {candidate.key: case(candidate.group, is_winners=False) for candidate in run.candidates}
    return candidates | {group.name: case(group, is_winners=True) for group in run.groups}


def gate_groups_by_case(gate: GateRun) -> dict[str, str]:
    """The pipe of every case of a gate, by what stands in its node id's brackets: one worker loads a pipe."""
    return {case.key: case.cell.pipe for case in gate.cases}
