"""The isolation of one call, step by step, between the fork and the policy's first line."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Sequence
from typing import Any

# sched.h
CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# sys/mount.h
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8

# sys/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2

# linux/capability.h
CAPABILITY_VERSION_3 = 0x20080522

SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """A BPF program as the kernel takes it: struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _call(function: str, *arguments: Any) -> None:
    """Call a function of libc that returns 0 on success.

    Python 3.11 has neither os.unshare nor os.setns, and no Python has mount, capset or prctl.
    """
    if getattr(_libc, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Give this process namespaces of its own; the pid namespace is for its children."""
    _call("unshare", flags)


def setns(fd: int, kind: int) -> None:
    """Join the namespace of `kind` that the process behind the pidfd is in."""
    _call("setns", fd, kind)


def become(user: int) -> None:
    """Change to a user, and to the group of the same number. A later `die_with_parent` counts."""
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def join(groups: Sequence[int]) -> None:
    """Move this process into control groups, given the descriptors of the files to write to."""
    for group in groups:
        os.write(group, b"0")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    _call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def mount_tmpfs(path: str, size: int, files: int) -> None:
    """Mount an empty file system of `size` bytes and `files` inodes over `path`."""
    options = f"size={size},nr_inodes={files},mode=0700".encode()
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", flags, options)


def set_limits(limits: dict[str, int]) -> None:
    """Set resource limits: name of the RLIMIT -> value.

    The soft and the hard limit are equal, so a call that uses up its CPU time gets SIGKILL, which
    it cannot catch, and not SIGXCPU. Where the server itself may have less, a call has no more.
    """
    for name, value in limits.items():
        limit = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(limit, (value, value))


def drop_capabilities() -> None:
    """Give up every capability, and the way to get one by starting a program."""
    _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _call("capset", header, nothing)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def rehearse(limits: list[str]) -> None:
    """Load before the first fork what the steps load lazily."""
    for function in ("unshare", "setns", "mount", "prctl", "capset"):
        getattr(_libc, function)
    for name in limits:
        limit = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(limit, resource.getrlimit(limit))


def landlock(abi: int, readable: list[str], writable: list[str]) -> Any:
    """Return the Landlock rules of a call; its `restrict` enforces them.

    Every right that the kernel's `abi` knows is handled. A kernel that knows fewer raises: the
    rules are never weakened to fit. TCP is not allowed at all.

    Args:
        abi: version of Landlock.
        readable: files and folders under which the code may read.
        writable: folders under which it may do everything but execute and make devices.
    """
    from landlockpy import flags, ruleset

    fs = flags.AccessFS
    # Not even the working directory gives these.
    special = fs.EXECUTE | fs.MAKE_CHAR | fs.MAKE_BLOCK | fs.MAKE_SOCK | fs.IOCTL_DEV
    every = flags.fs_for_abi(abi)
    rules = ruleset.Ruleset(
        handled_fs=every,
        handled_net=flags.net_for_abi(abi),
        scoped=flags.scope_for_abi(abi),
        best_effort=False,
    )
    for path in readable:
        # The kernel refuses a folder's rights on a file.
        rights = fs.READ_FILE | fs.READ_DIR if os.path.isdir(path) else fs.READ_FILE
        rules.allow_path(path, rights)
    # Libraries open it to throw output away.
    rules.allow_path("/dev/null", fs.WRITE_FILE)
    for path in writable:
        rules.allow_path(path, every & ~special)
    return rules


class Seccomp:
    """A BPF program in memory, ready to load: libseccomp compiles it once, in the server."""

    def __init__(self, program: bytes) -> None:
        # The kernel reads the code through a pointer, so both must live on.
        self._code = ctypes.create_string_buffer(program, len(program))
        address = ctypes.cast(self._code, ctypes.c_void_p)
        self._program = _Program(len(program) // 8, address)

    def load(self) -> None:
        """Filter the system calls of this process from now on."""
        _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(self._program), 0, 0)
