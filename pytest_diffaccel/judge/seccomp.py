"""Which system calls a script's process may make: no new processes, programs, connections or limits (Linux).

A filter of seccomp(2) needs no privileges and cannot be taken off again. Threads stay possible.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_CLONE_THREAD = 0x00010000
# Values of struct sock_filter's code: load a word, jump if equal / if a bit is set / if at least, return.
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# struct seccomp_data: number, architecture, instruction pointer, six arguments of 8 bytes.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 32
_X32_CALLS = 0x40000000

_Instruction: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Calls:
    """System call numbers of one architecture (its unistd.h) and its AUDIT_ARCH value."""

    architecture: int
    clone: int
    prlimit64: int
    refused: tuple[int, ...]


# refused: fork, vfork; execve, execveat; socket; ptrace, process_vm_readv, process_vm_writev; kill, tkill,
# pidfd_open, pidfd_getfd, pidfd_send_signal; unshare, setns, mount; setrlimit; bpf, userfaultfd, io_uring_setup.
_CALLS: Mapping[str, _Calls] = {
    "x86_64": _Calls(
        0xC000003E,
        56,
        302,
        (57, 58, 59, 322, 41, 101, 310, 311, 62, 200, 434, 438, 424, 272, 308, 165, 160, 321, 323, 425),
    ),
    "aarch64": _Calls(
        0xC00000B7,
        220,
        261,
        (221, 281, 198, 117, 270, 271, 129, 130, 434, 438, 424, 97, 268, 40, 164, 280, 282, 425),
    ),
}
_CLONE3 = 435  # the same on every architecture


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filters", ctypes.POINTER(_Filter)))


def refuse_new_privileges() -> bool:
    """Give up what set-user-id programs could add, for ever; what every unprivileged restriction asks for first."""
    return _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0) == 0


def filter_system_calls() -> bool:
    """Refuse the calls above in this process, for ever, with EPERM.

    Returns:
        Whether the kernel took the filter; False on another architecture, too.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None:
        return False
    instructions = _instructions(calls)
    filters = (_Filter * len(instructions))(*(_Filter(*one) for one in instructions))
    program = _Program(len(instructions), filters)
    return _prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.addressof(program)) == 0


def _prctl(option: int, value: int, address: int) -> int:
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError):
        return -1
    return int(prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(address), 0, 0))


def _instructions(calls: _Calls) -> Sequence[_Instruction]:
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, calls.architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if calls.architecture == _CALLS["x86_64"].architecture:
        program += [(_AT_LEAST, 0, 1, _X32_CALLS), (_RETURN, 0, 0, _KILL)]
    # Its flags lie behind a pointer, which a filter cannot read; without it, libraries fall back to clone.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number in calls.refused:
        program += [(_EQUAL, 0, 1, number), refuse]
    # clone makes threads, and only threads.
    program += [(_EQUAL, 0, 4, calls.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse]
    program += [(_RETURN, 0, 0, _ALLOW)]
    # prlimit64 reads limits, and sets none: its third argument is a null pointer, in both halves.
    program += [(_EQUAL, 0, 5, calls.prlimit64), (_LOAD, 0, 0, _THIRD_ARGUMENT), (_EQUAL, 0, 2, 0)]
    program += [(_LOAD, 0, 0, _THIRD_ARGUMENT + 4), (_EQUAL, 1, 0, 0), refuse]
    return [*program, (_RETURN, 0, 0, _ALLOW)]
