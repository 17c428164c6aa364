"""Every place that a session will write, tried before its first case: a full disk is no news after hours."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from pytest_diffaccel.accelerators.stack import EAGER
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.jsonfile import LOCK_NAME
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError
from pytest_diffaccel.settings.options import FIRST_SEARCH, benches_command
from pytest_diffaccel.settings.search_settings import Settings
from pytest_diffaccel.settings.work_folder import WORK

# What a session writes between two cases fits into this.
_TRIAL = bytes(1 << 20)
_SQLITE = "sqlite:///"
_ELSEWHERE = "start where you may write, or mend its permissions"


class NoPlace(ValueError):
    """A place that cannot be written; the message says which, why, and what to do."""


def try_places(settings: Settings) -> None:
    """Write a little wherever a session will write, and remove it; the store is made, nothing else stays.

    The file of ``--diffaccel-log`` is not among them: it is opened when the session is configured.

    Args:
        settings: the session's.

    Raises:
        NoPlace: for the first that cannot be written, or a golden file of another stack.
    """
    for folder in WORK.folders:
        _try_folder(f"the working folder {WORK.path}", folder, _ELSEWHERE, locks="*.lock")
    writes_golden = settings.gate is None or settings.update_golden
    if writes_golden:
        try_file("--golden", settings.golden, locks=LOCK_NAME)
    if settings.gate is None:
        _check_stack(settings)
    for option, file in {"--diffaccel-report": settings.report, "--picture-grid": settings.picture_grid}.items():
        if file is not None:
            try_file(option, file)
    if (file := store_file(settings.store)) is not None:
        _try_folder(f"--store: the folder {file.parent}", file.parent, "give another --store")
    try:
        with Store.open(settings.store) as store:
            store.try_writing()
    except StoreError as error:
        raise NoPlace(f"--store: {error}") from error


def store_file(address: str) -> Path | None:
    """The file of an SQLite store; None of a database server's.

    Args:
        address: the file's path, or a database URL.
    """
    path = address.removeprefix(_SQLITE)
    return None if "://" in path else Path(path)


def refuse_missing(address: str) -> None:
    """Refuse an SQLite store that is not there: opening it would make an empty one.

    Args:
        address: its path, or a database URL; servers' are let pass.

    Raises:
        FileNotFoundError: names the file, and what makes one.
    """
    file = store_file(address)
    if file is not None and not file.is_file():
        command = benches_command(*FIRST_SEARCH)
        raise FileNotFoundError(f"there is no store {file}: name another, or make one: {command}")


def _check_stack(settings: Settings) -> None:
    """Refuse a golden file of another stack: each key holds one winner, and theirs cannot be compared."""
    golden = Golden.read(settings.golden)
    if not golden.entries or golden.on_stack == (settings.stack != EAGER):
        return
    other = EAGER if settings.stack != EAGER else "compiled"
    raise NoPlace(
        f"--golden: the winners in {settings.golden} are over the {other} stack, and this search is on the "
        f"{settings.stack} one; give --stack {other}, or another --golden"
    )


def try_file(option: str, file: Path, *, locks: str = "") -> None:
    """Write a little where a file will be written, and remove it.

    Args:
        option: what names the file.
        file: it and its folder need not be there yet.
        locks: pattern of locks beside it that a session holds; empty for none.

    Raises:
        NoPlace: when it cannot be written.
    """
    if os.path.isdir(file):
        raise NoPlace(f"{option}: {str(file)!r} is a folder; name a file")
    _try_folder(f"{option}: {str(file)!r}", Path(os.path.realpath(file)).parent, "name a file elsewhere", locks=locks)


def _try_folder(named: str, folder: Path, advice: str, *, locks: str = "") -> None:
    """Write into a folder, or where it will be made.

    Args:
        named: what is to be written, as the message begins.
        folder: where.
        advice: what to do where it cannot be.
        locks: pattern of the locks in it that a session holds; empty for none.

    Raises:
        NoPlace: when it cannot be.
    """
    whole = folder.absolute()
    # Unlike their counterparts of pathlib these functions answer where nothing may be looked at.
    there = next(place for place in (whole, *whole.parents) if os.path.exists(place))
    try:
        with NamedTemporaryFile(dir=there, prefix=".diffaccel-trial-") as file:
            file.write(_TRIAL)
            file.flush()
        # Written in place, unlike all else: another user's is of no use.
        for lock in there.glob(locks) if locks and there == whole else ():
            if not os.access(lock, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(lock))
    except OSError as error:
        reason = f"{error.strerror or error} ({there})"
        raise NoPlace(f"{named} cannot be written: {reason}; make room, or {advice}") from error
