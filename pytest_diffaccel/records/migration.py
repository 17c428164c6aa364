"""Stores of earlier versions: what their tables said in words becomes this version's identities and states."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, column, delete, func, insert, inspect, select, table, update

from pytest_diffaccel.matrix import Candidate, Cell, Params, slug
from pytest_diffaccel.records.golden_key import ACCELERATORS
from pytest_diffaccel.records.rows import dump_params
from pytest_diffaccel.records.tables import (
    ATTEMPTS,
    DECISIONS,
    ENDED_GROUPS,
    FAILURES,
    MEASUREMENTS,
    METADATA,
    SESSIONS,
)

#: Versions that are read: 3 added what a record may lack, 4 and 5 a table each; up to 5, decisions were of a subject in
#: words, and what was under way was a failure; up to 6, sessions had no leases, and were looked at by their own clocks.
OLDER = ("2", "3", "4", "5", "6")
_IN_WORDS = OLDER[:4]
_CONDITIONS = ("environment", "num_samples", "batch_size", "seed", "prompts_digest", "purpose")
_OLD_DECISIONS = table("diffaccel_decisions", *map(column, ("candidate_key", *_CONDITIONS, "created_at", "evidence")))
#: Evidence that was a group's state.
_STATES = {"explored": "explored", "winners found": "done", "something new was evaluated": "reopened"}
#: Purpose of rows on sessions that were under way.
_SESSION = "session"
#: Methods of the parameters that keys named then, without their methods.
_METHODS = {
    **dict.fromkeys(("cache_interval", "cache_branch_id"), "DeepCache"),
    **dict.fromkeys(("gate_step", "sp_interval", "fi_interval", "warm_up"), "T-Gate"),
    **dict.fromkeys(("ratio", "max_downsample"), "ToMe"),
}
_CELL = re.compile(r"(?P<pipe>.+?)-(?P<scheduler>.+?)-(?P<steps>\d+)")
_ENDED = re.compile(r"the process ended during this (?P<what>.+?)(, twice|; it is tried once more)")


def migrate(connection: Connection, version: str) -> None:
    """Make the tables of an older version this one's, within the connection's transaction.

    What was kept of sessions under way is dropped; so is a decision that cannot be read, which is then made anew.
    """
    for table_of_sessions in (ENDED_GROUPS, SESSIONS):
        table_of_sessions.drop(connection, checkfirst=True)
    if version in _IN_WORDS:
        _migrate_words(connection)
    else:
        METADATA.create_all(connection)


def _migrate_words(connection: Connection) -> None:
    has_decisions = inspect(connection).has_table(_OLD_DECISIONS.name)
    decisions = connection.execute(select(_OLD_DECISIONS)).all() if has_decisions else []
    DECISIONS.drop(connection, checkfirst=True)
    METADATA.create_all(connection)
    known = _Known.of(connection)
    made = [values for row in decisions if row.purpose != _SESSION and (values := _decision(row, known)) is not None]
    if made:
        connection.execute(insert(DECISIONS), made)
    _migrate_failures(connection)


class _Known(NamedTuple):
    """What other rows spell out: cells and accelerators by the names that subjects begin with, and parameters' methods.

    Attributes:
        groups: cell and accelerator by the group's name.
        accelerators: by slug.
        methods: by parameter.
    """

    groups: Mapping[str, tuple[Cell, str]]
    accelerators: Mapping[str, str]
    methods: Mapping[str, str]

    @classmethod
    def of(cls, connection: Connection) -> _Known:
        rows = [candidate for candidate in _candidates(connection) if candidate.accelerator]  # rivals have none
        accelerators = {slug(name): name for name in (*ACCELERATORS, *(candidate.accelerator for candidate in rows))}
        methods = {name: method for candidate in rows for method, point in candidate.params.items() for name in point}
        cells = dict.fromkeys(candidate.cell for candidate in rows)
        groups = {f"{cell}-{short}": (cell, name) for cell in cells for short, name in accelerators.items()}
        return cls(groups, accelerators, {**_METHODS, **methods})

    def group(self, subject: str) -> tuple[Cell, str] | None:
        """The group that a subject names or is in; None where that cannot be told."""
        # The longest that fits: names may begin alike.
        for name in sorted(self.groups, key=len, reverse=True):
            if f"{subject}-".startswith(f"{name}-"):
                return self.groups[name]
        for short in sorted(self.accelerators, key=len, reverse=True):
            head, found, _ = f"{subject}-".partition(f"-{short}-")
            cell = _CELL.fullmatch(head)
            if found and cell is not None:
                return Cell(cell["pipe"], cell["scheduler"], int(cell["steps"])), self.accelerators[short]
        return None

    def params(self, accelerator: str, words: str) -> Params:
        """Parameters by method, from ``name=value`` pairs."""
        params: dict[str, dict[str, Any]] = {}
        for pair in words.split(","):
            name, _, value = pair.partition("=")
            params.setdefault(self.methods.get(name, accelerator), {})[name] = json.loads(value)
        return params


def _candidates(connection: Connection) -> Iterable[Candidate]:
    """One candidate of each group that was measured, and all that failed."""
    place = [MEASUREMENTS.c[name] for name in ("pipe", "scheduler", "steps", "accelerator")]
    for record in connection.scalars(select(func.min(MEASUREMENTS.c.record)).group_by(*place)):
        yield _candidate(json.loads(record)["candidate"])
    for record in connection.scalars(select(FAILURES.c.candidate)):
        yield _candidate(json.loads(record))


def _candidate(data: Mapping[str, Any]) -> Candidate:
    return Candidate(Cell(**data["cell"]), data["accelerator"], data["params"])


def _decision(row: Row[Any], known: _Known) -> dict[str, Any] | None:
    """A decision's row; None where its subject cannot be told."""
    group = known.group(row.candidate_key)
    if group is None:
        return None
    cell, accelerator = group
    words = row.candidate_key.removeprefix(f"{cell}-{slug(accelerator)}").removeprefix("-")
    try:
        params = known.params(accelerator, words) if words else {}
    except ValueError:
        return None
    if words and Candidate(cell, accelerator, params).key != row.candidate_key:
        return None
    if not words and row.evidence not in _STATES:
        return None
    return {
        **asdict(cell),
        "accelerator": accelerator,
        "params": dump_params(params),
        **{name: getattr(row, name) for name in _CONDITIONS},
        "state": "skipped" if words else _STATES[row.evidence],
        "evidence": row.evidence if words else "",
        "created_at": row.created_at,
    }


def _migrate_failures(connection: Connection) -> None:
    """What was under way, and may have ended its process, becomes attempts; what was missing has its own kind."""
    rows = connection.execute(select(FAILURES).where(FAILURES.c.kind.in_(("interrupted", "crash")))).all()
    attempts = []
    for row in rows:
        ended = _ENDED.fullmatch(row.message)
        if ended is not None:
            kept = {name: value for name, value in row._mapping.items() if name not in ("kind", "message")}
            sessions = ("unknown",) if row.kind == "interrupted" else ("unknown", "unknown too")
            unknown = {"host": "an unknown host", "process": 0, "what": ended["what"]}
            attempts += [{**kept, **unknown, "session": session} for session in sessions]
            keys = [column == getattr(row, column.name) for column in FAILURES.primary_key]
            connection.execute(delete(FAILURES).where(*keys))
    if attempts:
        connection.execute(insert(ATTEMPTS), attempts)
    connection.execute(update(FAILURES).where(FAILURES.c.kind == "interrupted").values(kind="missing"))
