"""The folder of a script's process: what it may hold, and how it goes whatever a script has made of it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_diffaccel.judge.confine.limits import Limits

_BLOCK = 512  # bytes; unit of st_blocks
_MB = 2**20


class FolderTooFull(Exception):
    """A script wrote more than it may; the message says what."""


def check_use(folder: Path, process: int, limits: Limits) -> None:
    """Add up what lies below ``folder``, and what ``process`` has deleted and holds open.

    Raises:
        FolderTooFull: when it is more than the limits allow, or lies where it cannot be counted.
    """
    used, entries, waiting = _deleted(process), 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    used += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if entries > limits.folder_entries:
                        raise FolderTooFull(f"wrote more than {limits.folder_entries} files")
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError as error:
            raise FolderTooFull(f"hides files: {error.strerror}") from error
    if used > limits.folder_mb * _MB:
        raise FolderTooFull(f"wrote {used // _MB} MB; {limits.folder_mb} MB are allowed")


def _deleted(process: int) -> int:
    """Bytes of files that no folder names any more; 0 where that cannot be seen."""
    used = 0
    with contextlib.suppress(OSError), os.scandir(f"/proc/{process}/fd") as found:
        for entry in found:
            with contextlib.suppress(OSError):
                file = entry.stat()
                if stat.S_ISREG(file.st_mode) and file.st_nlink == 0:
                    used += file.st_blocks * _BLOCK
    return used


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, gone when the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="diffaccel-judge-"))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder in which nobody works any more, however deep it is and whatever rights it denies.

    ``shutil.rmtree`` descends by recursion, which ends at a folder of a thousand levels. Here every folder is first
    moved to the top, where all names are the judge's; links are removed, never followed.
    """
    paths, moved = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()], 0
    while paths:
        opened = paths.pop()
        opened.chmod(stat.S_IRWXU)
        for entry in list(os.scandir(opened)):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, stat.S_IRWXU)  # moving a folder writes into it
            moved += 1
            paths.append(folder / f"moved-{moved}")
            os.rename(entry.path, paths[-1])
        opened.rmdir()
    for file in list(folder.iterdir()):
        file.unlink()
    folder.rmdir()
