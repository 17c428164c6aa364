"""Who verifies a cell, and when: the process that decides its last group, whichever that is; or each its own group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pytest_diffaccel.matrix import Cell, Group
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


def is_verified_ahead(bench: Workbench, group: Group, session: str, wanted: Collection[Group]) -> bool:
    """Whether a group's winners are verified once it is decided, before those of its cell's other groups are.

    All of a cell's winners together take fewer unaccelerated runs, and nothing is verified that other groups' winners
    then change. But one process does that, which takes long: where no more of the pipe's cells are open than there are
    workers, the others would soon have nothing to do. Only the cell's last group has nobody to wait for.

    Args:
        bench: the search's workbench.
        group: the group.
        session: what all processes of this session call it.
        wanted: all groups whose winners the session looks for.
    """
    if not bench.has_company():
        return False
    left = {one for one in wanted if one.cell.pipe == group.cell.pipe}
    for cell in {one.cell for one in left}:
        left -= {Group(cell, name) for name in bench.store.ended_groups(cell, *bench.conditions(cell), session)}
    is_last = not any(one.cell == group.cell for one in left - {group})
    return not is_last and len({one.cell for one in left}) <= max(bench.workers, 2)
