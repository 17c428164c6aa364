"""Which files a script's process may read and write, and that it may signal no other process (Linux).

Landlock(7) needs no privileges, covers everything below the folders named, and cannot be taken off again. A process
under it cannot read the memory or the environment of one that is not.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

# System calls, the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
# How many rights to files each version knows, the last one's for all later versions.
_RIGHTS = (13, 14, 15, 15, 16)
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11
_TCP_SINCE, _SCOPES_SINCE = 4, 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict_files(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Let this process read and write only what lies below these paths, for ever.

    Args:
        readable: files and folders to read and to load libraries from; those that do not exist are passed over.
        writable: files, devices and folders in which everything is allowed.

    Returns:
        Whether the kernel enforces it.
    """
    try:
        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (AttributeError, OSError):
        return False
    version = int(syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))
    if version < 1:
        return False
    everything = (1 << _RIGHTS[min(version, len(_RIGHTS)) - 1]) - 1
    ruleset = _Ruleset(
        everything, _ALL_TCP if version >= _TCP_SINCE else 0, _ALL_SCOPES if version >= _SCOPES_SINCE else 0
    )
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _TCP_SINCE else 8
    rules = int(syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0))
    if rules < 0:
        return False
    try:
        read = _EXECUTE | _READ_FILE | _READ_DIR
        for paths, rights in ((readable, read), (writable, everything)):
            for path in paths:
                _allow(syscall, rules, path, rights)
        return int(syscall(_RESTRICT_SELF, rules, 0)) == 0
    finally:
        os.close(rules)


def _allow(syscall: ctypes._NamedFuncPointer, rules: int, path: Path, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
        syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(_Beneath(rights, folder)), 0)
    finally:
        os.close(folder)
