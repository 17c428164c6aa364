"""Which system calls a script's process may make: nothing that reaches beyond it, into others or the network (Linux).

A filter of seccomp(2) needs no privileges and cannot be taken off again. Threads stay possible.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
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
    tgkill: int
    refused: tuple[int, ...]


# What is refused altogether, by its number on x86-64 and on AArch64, which lacks some.
_REFUSED = """
new processes and programs: fork 57 -, vfork 58 -, execve 59 221, execveat 322 281
the network: socket 41 198
memory and files of other processes: ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271
signals to them: kill 62 129, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240
both, by a descriptor: pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424
their share of the processors: setpriority 141 140, sched_setparam 142 118, sched_setscheduler 144 119
the same: sched_setaffinity 203 122, sched_setattr 314 274
their share of disk and memory: ioprio_set 251 30, migrate_pages 256 238, move_pages 279 239, process_madvise 440 440
memory that no limit counts: memfd_create 319 279, memfd_secret 447 447, shmget 29 194, shmat 30 196
queues between processes: msgget 68 186, semget 64 190, mq_open 240 180
keys that the kernel keeps for a user: add_key 248 217, request_key 249 218, keyctl 250 219
limits and namespaces: setrlimit 160 164, unshare 272 97, setns 308 268, mount 165 40
ways around this filter: bpf 321 280, userfaultfd 323 282, io_uring_setup 425 425, perf_event_open 298 241
"""


def _refused(place: int) -> tuple[int, ...]:
    calls = [call.split() for line in _REFUSED.split("\n") for call in line.partition(": ")[2].split(", ") if call]
    return tuple(int(call[1 + place]) for call in calls if call[1 + place] != "-")


_CALLS: Mapping[str, _Calls] = {
    "x86_64": _Calls(0xC000003E, 56, 302, 234, _refused(0)),
    "aarch64": _Calls(0xC00000B7, 220, 261, 131, _refused(1)),
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


def filter_system_calls() -> bool:
    """Refuse the calls above in this process, for ever, with EPERM.

    Returns:
        Whether the kernel took the filter; False on another architecture, too.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None:
        return False
    instructions = _instructions(calls)
    filters = (_Filter * len(instructions))(*(_Filter(*fields) for fields in instructions))
    program = _Program(len(instructions), filters)
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, OSError):
        return False
    address = ctypes.c_ulong(ctypes.addressof(program))
    return int(prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER_MODE), address, 0, 0)) == 0


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
    # tgkill signals this process's own threads, and only those.
    own = os.getpid()
    program += [(_EQUAL, 0, 4, calls.tgkill), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, own), refuse]
    program += [(_RETURN, 0, 0, _ALLOW)]
    # prlimit64 reads limits, and sets none: its third argument is a null pointer, in both halves.
    program += [(_EQUAL, 0, 5, calls.prlimit64), (_LOAD, 0, 0, _THIRD_ARGUMENT), (_EQUAL, 0, 2, 0)]
    program += [(_LOAD, 0, 0, _THIRD_ARGUMENT + 4), (_EQUAL, 1, 0, 0), refuse]
    return [*program, (_RETURN, 0, 0, _ALLOW)]
