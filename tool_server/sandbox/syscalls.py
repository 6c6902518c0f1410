"""The system calls that a call may make: an allow-list, compiled to BPF by libseccomp.

It holds what numpy, scipy, pandas, sympy, matplotlib, PIL, threads and asyncio were seen to need,
and harmless relatives of those. Absent on purpose:

- starting processes
- sockets, except pairs of unix sockets, with which asyncio wakes itself
- memfd_create and System V shared memory, which both escape RLIMIT_AS
- chown and extended attributes, which Landlock does not cover
- kill; raise and abort use tgkill
- flock, which locks files that can only be read; a write lock of fcntl needs the right to write
- changing limits: RLIMITs can be read, but the server alone knows how a call ended if the call
  cannot lower its own

Some are allowed with some arguments only: see `_rules`.
"""

from __future__ import annotations

import errno
import tempfile
from typing import Any

from tool_server.tool import ToolUnavailable

ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev lseek close dup dup2 dup3
fsync fdatasync ftruncate truncate fallocate fadvise64 copy_file_range sendfile
open openat creat stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2
readlink readlinkat getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat
rename renameat renameat2 link linkat symlink symlinkat
getdents getdents64 utime utimes utimensat futimesat chmod fchmod fchmodat umask
mmap mprotect munmap mremap brk madvise msync membarrier rseq arch_prctl
futex futex_waitv set_tid_address set_robust_list get_robust_list
sched_yield sched_getaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min getcpu getpriority
getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups
getpgrp getpgid getsid capget
getrlimit getrusage times sysinfo uname
time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep
alarm getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete
timerfd_create timerfd_settime timerfd_gettime eventfd eventfd2
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
poll ppoll select pselect6 pipe pipe2
shutdown getsockopt getsockname getpeername
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend
sigaltstack tgkill pause restart_syscall
getrandom exit exit_group wait4 waitid
"""

IOCTLS = {
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "TCGETS": 0x5401,
    "TIOCGWINSZ": 0x5413,
}
"""What pipes and isatty need; TIOCSTI and its like are not here."""

PRCTLS = {"PR_SET_NAME": 15, "PR_GET_NAME": 16}
"""Names of threads."""

FCNTLS = {
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_GETLK": 5,
    "F_SETLK": 6,
    "F_SETLKW": 7,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37,
    "F_OFD_SETLKW": 38,
    "F_DUPFD_CLOEXEC": 1030,
    "F_GETPIPE_SZ": 1032,
}
"""F_SETPIPE_SZ is not here: large pipes use up what all pipes of a user may have."""

THREAD_FLAGS = {
    "CLONE_VM": 0x100,
    "CLONE_FILES": 0x400,  # else each thread has a table of RLIMIT_NOFILE descriptors
    "CLONE_SIGHAND": 0x800,
    "CLONE_THREAD": 0x10000,
}
"""What every new thread shares with the others."""

FORBIDDEN_FLAGS = {
    "CLONE_PTRACE": 0x2000,
    "CLONE_VFORK": 0x4000,
    "CLONE_NEWNS": 0x20000,
    "CLONE_UNTRACED": 0x800000,
    "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000,
    "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
    "CLONE_IO": 0x80000000,
}
"""What no new thread has."""

LOW_32_BITS = 0xFFFFFFFF

AF_UNIX = 1
MSG_OOB = 1

WITH_SOME_ARGUMENTS = (
    *("clone", "prlimit64", "close_range", "fcntl", "ioctl", "prctl"),
    *("socketpair", "sendto", "recvfrom"),
)

COUNT = len(ALLOWED.split()) + len(WITH_SOME_ARGUMENTS)
"""System calls that a call may make."""

LIBSECCOMP_ADVICE = (
    "pyseccomp needs libseccomp.so.2: apt install libseccomp2 (Debian, Ubuntu), "
    "dnf install libseccomp (Fedora, RHEL)"
)


def program() -> bytes:
    """Return the filter as BPF.

    A call that is not allowed fails with EPERM. One of another ABI (x32, int 0x80) kills.

    Raises:
        ToolUnavailable: libseccomp is not there.
    """
    try:
        import pyseccomp as seccomp  # type: ignore[import-untyped]
    except (ImportError, RuntimeError) as error:
        raise ToolUnavailable(f"no seccomp filter: {error}; {LIBSECCOMP_ADVICE}") from error

    rules = _rules(seccomp)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _rules(seccomp: Any) -> Any:
    """Return the filter; `seccomp` is the module `pyseccomp`."""
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for name in ALLOWED.split():
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        # Newer architectures have no poll, open, ... of their own: the newer calls replaced them.
        if number >= 0:
            rules.add_rule(seccomp.ALLOW, number)
    # glibc falls back from clone3, whose flags a filter cannot see, to clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    required = sum(THREAD_FLAGS.values())
    looked_at = required + sum(FORBIDDEN_FLAGS.values())
    a_thread = seccomp.Arg(0, seccomp.MASKED_EQ, looked_at, required)
    rules.add_rule(seccomp.ALLOW, "clone", a_thread)
    # No new limit: limits are only read.
    rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(2, seccomp.EQ, 0))
    # No flags: CLOSE_RANGE_UNSHARE makes a second table of descriptors.
    no_flags = seccomp.Arg(2, seccomp.MASKED_EQ, LOW_32_BITS, 0)
    rules.add_rule(seccomp.ALLOW, "close_range", no_flags)
    for name, allowed in (("fcntl", FCNTLS), ("ioctl", IOCTLS)):
        for request in allowed.values():
            # The kernel reads 32 bits of the request, so the filter compares as many.
            same = seccomp.Arg(1, seccomp.MASKED_EQ, LOW_32_BITS, request)
            rules.add_rule(seccomp.ALLOW, name, same)
    for operation in PRCTLS.values():
        same = seccomp.Arg(0, seccomp.EQ, operation)
        rules.add_rule(seccomp.ALLOW, "prctl", same)
    _allow_pairs_of_sockets(rules, seccomp)
    return rules


def _allow_pairs_of_sockets(rules: Any, seccomp: Any) -> None:
    """Allow pairs of unix sockets, each end of which reaches the other one only."""
    # For any other family the kernel makes the sockets, and loads the module that has them, before
    # it says that there are no pairs of it.
    unix = seccomp.Arg(0, seccomp.MASKED_EQ, LOW_32_BITS, AF_UNIX)
    rules.add_rule(seccomp.ALLOW, "socketpair", unix)
    # Urgent bytes between unix sockets have been a way into the kernel (CVE-2025-38236).
    not_urgent = seccomp.Arg(3, seccomp.MASKED_EQ, MSG_OOB, 0)
    rules.add_rule(seccomp.ALLOW, "recvfrom", not_urgent)
    # Without an address: a pair of datagrams could send to named sockets, which Landlock does not
    # cover.
    rules.add_rule(seccomp.ALLOW, "sendto", not_urgent, seccomp.Arg(4, seccomp.EQ, 0))
