"""Who verifies a cell: the process that decides its last group, whichever that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_diffaccel.matrix import Cell, slug
from pytest_diffaccel.measure.timing_lock import lock_between_processes
from pytest_diffaccel.records.store import SESSION_PURPOSE
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.settings.options import WORK_DIR


def end_group(
    bench: Workbench, cell: Cell, accelerator: str, left: int, session: str, accelerators: Sequence[str]
) -> Mapping[str, int] | None:
    """Note that a session has decided a group.

    Args:
        bench: the search's workbench.
        cell: the group's cell.
        accelerator: the group's.
        left: promising candidates that there was no time for.
        session: what all processes of this session call it, and no other session.
        accelerators: of all of the cell's groups that the session decides.

    Returns:
        After the last of them, how many candidates each of the cell's groups left; None as long as others are open.
        Of several processes one is told.
    """
    environment = bench.environment(cell).id
    sampling = replace(bench.sampling(cell, "search"), purpose=SESSION_PURPOSE)

    def subject(name: str) -> str:
        return f"{cell}-{slug(name)}"

    with lock_between_processes(WORK_DIR / "in-progress" / f"{cell}.lock").write_lock():
        bench.store.save_decision(subject(accelerator), environment, sampling, f"{session} {left}")
        found = {name: bench.store.decision(subject(name), environment, sampling) for name in accelerators}
    noted = {name: evidence.split() for name, evidence in found.items() if evidence is not None}
    if any(noted.get(name, [""])[0] != session for name in accelerators):
        return None
    return {name: int(words[1]) for name, words in noted.items()}
