"""The isolation of one call, step by step, between the fork and the policy's first line."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 22, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 4, 2
CAPABILITY_VERSION_3 = 0x20080522
SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):  # struct sock_fprog
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _call(function: str, *arguments: Any) -> None:
    """Python 3.11 has neither os.unshare nor os.setns, and no Python has mount, capset or prctl."""
    if getattr(_libc, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    _call("unshare", flags)


def setns(fd: int, kind: int) -> None:
    _call("setns", fd, kind)


def die_with_parent() -> None:
    _call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def mount_tmpfs(path: str, size: int, files: int) -> None:
    """An empty file system of `size` bytes and `files` inodes over `path`."""
    options = f"size={size},nr_inodes={files},mode=0700".encode()
    _call(
        "mount",
        b"tmpfs",
        path.encode(),
        b"tmpfs",
        ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC),
        options,
    )


def set_limits(limits: dict[str, int]) -> None:
    """`limits`: name of the RLIMIT -> value, both soft and hard. SIGKILL, not SIGXCPU, ends a call where the two are equal."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def drop_capabilities() -> None:
    _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def rehearse(limits: list[str]) -> None:
    """Loads what the steps load lazily, before the first fork."""
    for function in ("unshare", "setns", "mount", "prctl", "capset"):
        getattr(_libc, function)
    for name in limits:
        limit = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(limit, resource.getrlimit(limit))


def landlock(abi: int, readable: list[str], writable: list[str]) -> Any:
    """The rules, to be enforced by `restrict`.

    Files: reading under `readable`, everything but executing and making devices under `writable`, nothing elsewhere. TCP: nothing.
    Every right the kernel's `abi` knows is handled, strictly: a kernel that knows fewer raises.
    """
    from landlockpy import flags, ruleset

    fs = flags.AccessFS
    special = fs.EXECUTE | fs.MAKE_CHAR | fs.MAKE_BLOCK | fs.MAKE_SOCK | fs.IOCTL_DEV
    every = flags.fs_for_abi(abi)
    rules = ruleset.Ruleset(
        handled_fs=every,
        handled_net=flags.net_for_abi(abi),
        scoped=flags.scope_for_abi(abi),
        best_effort=False,
    )
    for path in readable:
        rules.allow_path(path, fs.READ_FILE | fs.READ_DIR if os.path.isdir(path) else fs.READ_FILE)
    rules.allow_path("/dev/null", fs.WRITE_FILE)
    for path in writable:
        rules.allow_path(path, every & ~special)
    return rules


class Seccomp:
    """A BPF program, kept in memory ready to load: libseccomp compiles it once, in the server."""

    def __init__(self, program: bytes) -> None:
        self._code = ctypes.create_string_buffer(program, len(program))
        self._program = _Program(len(program) // 8, ctypes.cast(self._code, ctypes.c_void_p))

    def load(self) -> None:
        _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(self._program), 0, 0)
