"""Who verifies a cell: the process that decides its last group, whichever that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.timing_lock import lock_between_processes
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.settings.work_folder import WORK


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
    sampling = bench.sampling(cell, "search")
    with lock_between_processes(WORK.in_progress / f"{cell}.lock").write_lock():
        bench.store.end_group(cell, accelerator, environment, sampling, session, left)
        ended = bench.store.ended_groups(cell, environment, sampling, session)
    return {name: ended[name] for name in accelerators} if ended.keys() >= set(accelerators) else None
