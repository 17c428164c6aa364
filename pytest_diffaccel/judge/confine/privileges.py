"""Gives up what a process may do beyond an ordinary one: new privileges, and those of root (Linux)."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping

_PR_SET_NO_NEW_PRIVS = 38
# capset(2) by architecture (its unistd.h), and the version of its structures that has 64 capabilities.
_CAPSET: Mapping[str, int] = {"x86_64": 126, "aarch64": 91}
_VERSION_3 = 0x20080522


def refuse_new_privileges() -> bool:
    """Give up what set-user-id programs could add, for ever; what every unprivileged restriction asks for first."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError):
        return False
    return int(prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), 0, 0)) == 0


def drop_capabilities() -> bool:
    """Give up every capability, which root has and others lack: setting clocks, raising priorities, others' files.

    Returns:
        Whether none is left.
    """
    number = _CAPSET.get(platform.machine())
    if number is None:
        return False
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, in two halves
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, header, none)) == 0
