"""
Limits that a process puts on itself, once, before it touches a file that it does not trust.

Every limit holds against native code too: the kernel enforces it. What a platform lacks is left
out, and the answer of `confine` says so.
"""

import contextlib
import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SECCOMP_RET_ALLOW: Final = 0x7FFF0000
_SECCOMP_RET_EPERM: Final = 0x00050000 | 1
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_FORBIDDEN_CALLS: Final = {
    # socket, connect, fork, vfork, execve, ptrace, execveat
    "x86_64": (0xC000003E, (41, 42, 57, 58, 59, 101, 322)),
    # socket, connect, execve, ptrace, execveat
    "aarch64": (0xC00000B7, (198, 203, 221, 117, 281)),
}


def confine(*, memory_bytes: int, niceness: int) -> list[str]:
    """
    Take away from this process what reading a PDF does not need.

    Args:
        memory_bytes: Address space beyond what the process takes now.
        niceness: Added to the process's own, so that urgent work comes first.

    Returns:
        What is in force, of `memory`, `files`, `core`, `parent` (dies with it) and `network`
        (neither sockets nor other programs).
    """
    in_force = []
    if _lower(resource.RLIMIT_FSIZE, 0):
        in_force.append("files")
    if _lower(resource.RLIMIT_CORE, 0):
        in_force.append("core")
    with contextlib.suppress(OSError):
        os.nice(niceness)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            in_force.append("parent")
        if _forbid_calls(libc):
            in_force.append("network")
        if _lower(resource.RLIMIT_AS, _address_space_bytes() + memory_bytes):
            in_force.append("memory")
    return in_force


def allow_cpu(seconds: float) -> None:
    """
    Let this process use `seconds` more of CPU time; then SIGXCPU kills it.

    The kernel counts whole seconds, so that it may get up to one more.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not tell."""
    return _memory_pages(1) * resource.getpagesize()


def _address_space_bytes() -> int:
    return _memory_pages(0) * resource.getpagesize()


def _memory_pages(field: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[field])
    except (OSError, IndexError, ValueError):
        return 0


def _lower(limit: int, value: int) -> bool:
    _, hard = resource.getrlimit(limit)
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(limit, (wanted, wanted))
    except (OSError, ValueError):
        return False
    return True


class _FilterProgram(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _forbid_calls(libc: ctypes.CDLL) -> bool:
    """
    Make sockets and other programs fail with EPERM, for good.

    Source:
        Linux, Documentation/userspace-api/seccomp_filter.rst; numbers from the kernel's tables.
    """
    if platform.machine() not in _FORBIDDEN_CALLS:
        return False
    architecture, calls = _FORBIDDEN_CALLS[platform.machine()]
    allow, deny = len(calls), len(calls) + 1
    steps = [
        (_LOAD_WORD, 0, 0, 4),  # seccomp_data.arch
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _SECCOMP_RET_ALLOW),
        (_LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        *((_JUMP_IF_EQUAL, deny - i - 1, 0, call) for i, call in enumerate(calls)),
        (_RETURN, 0, 0, _SECCOMP_RET_ALLOW),
        (_RETURN, 0, 0, _SECCOMP_RET_EPERM),
    ]
    assert len(steps) == allow + 6  # noqa: S101 - jumps are counted by hand
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = _FilterProgram(len(steps), code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
