"""Every place that a session will write, tried before its first case: a full disk is no news after hours."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from sqlalchemy.exc import SQLAlchemyError

from pytest_diffaccel.options import WORK_DIR
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.records.tables import StoreError, database_reason
from pytest_diffaccel.settings import Settings

# What a session writes between two cases fits into this.
_TRIAL = bytes(1 << 20)
#: Folders of the working folder that a session writes into, where they are there already.
_WORK_FOLDERS = ("", "images", "in-progress", "logs")


class NoPlace(ValueError):
    """A place that cannot be written; the message says which, why, and what to do."""


def try_places(settings: Settings, log: Path | None = None) -> None:
    """Write a little wherever a session will write, and remove it; the store is made, nothing else stays.

    Args:
        settings: the session's.
        log: the file of ``--diffaccel-log``, or None.

    Raises:
        NoPlace: for the first that cannot be written.
    """
    for name in _WORK_FOLDERS:
        _try(f"the working folder {WORK_DIR}", WORK_DIR / name, "start where you may write, or mend its permissions")
    writes_golden = settings.gate is None or settings.update_golden
    files: dict[str, Path | None] = {
        "--golden": settings.golden if writes_golden else None,
        "--diffaccel-report": settings.report,
        "--picture-grid": settings.picture_grid,
        "--diffaccel-log": log,
    }
    for option, file in files.items():
        if file is not None:
            try_file(option, file)
    try:
        with Store.open(settings.store) as store:
            store.try_writing()
    except StoreError as error:
        raise NoPlace(f"--store: {error}") from error
    except SQLAlchemyError as error:
        reason = database_reason(error)
        raise NoPlace(f"--store: {settings.store!r} cannot be written: {reason}; give another --store") from error


def try_file(option: str, file: Path) -> None:
    """Write a little where a file will be written, and remove it.

    Args:
        option: what names the file.
        file: it and its folder need not be there yet.

    Raises:
        NoPlace: when it cannot be written.
    """
    if file.is_dir():
        raise NoPlace(f"{option}: {str(file)!r} is a folder; name a file")
    _try(f"{option}: {str(file)!r}", file.resolve().parent, "name a file elsewhere")


def _try(named: str, folder: Path, advice: str) -> None:
    """Write into a folder, or where it will be made.

    Args:
        named: what is to be written, as the message begins.
        folder: where.
        advice: what to do where it cannot be.

    Raises:
        NoPlace: when it cannot be.
    """
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    try:
        with NamedTemporaryFile(dir=there, prefix=".diffaccel-trial-") as file:
            file.write(_TRIAL)
            file.flush()
        for lock in there.glob("*.lock"):  # written in place, unlike all else: another user's is of no use
            if not os.access(lock, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(lock))
    except OSError as error:
        reason = f"{error.strerror or error} ({there})"
        raise NoPlace(f"{named} cannot be written: {reason}; make room, or {advice}") from error
