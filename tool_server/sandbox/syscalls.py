"""The system calls that a call may make: an allow-list, compiled to BPF by libseccomp.

It holds what numpy, scipy, pandas, sympy, matplotlib, PIL, threads and asyncio were seen to need,
and harmless relatives of those. Absent on purpose:

- starting processes
- sockets, except socketpair, with which asyncio wakes itself
- memfd_create and System V shared memory, which both escape RLIMIT_AS
- chown and extended attributes, which Landlock does not cover
- kill; raise and abort use tgkill
"""

from __future__ import annotations

import errno
import tempfile

from tool_server.tool import ToolUnavailable

ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev lseek close close_range dup dup2 dup3
fcntl flock fsync fdatasync ftruncate truncate fallocate fadvise64 copy_file_range sendfile
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
getrlimit setrlimit prlimit64 getrusage times sysinfo uname
time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep
alarm getitimer setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete
timerfd_create timerfd_settime timerfd_gettime eventfd eventfd2
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
poll ppoll select pselect6 pipe pipe2
socketpair sendto recvfrom shutdown getsockopt getsockname getpeername
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

CLONE_THREAD = 0x10000
LOW_32_BITS = 0xFFFFFFFF

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

    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for name in ALLOWED.split():
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        # Newer architectures have no poll, open, ... of their own: the newer calls replaced them.
        if number >= 0:
            rules.add_rule(seccomp.ALLOW, number)
    # glibc falls back from clone3, whose flags a filter cannot see, to clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    threads_only = seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_THREAD, CLONE_THREAD)
    rules.add_rule(seccomp.ALLOW, "clone", threads_only)
    for request in IOCTLS.values():
        # The kernel reads 32 bits of the request, so the filter compares as many.
        same = seccomp.Arg(1, seccomp.MASKED_EQ, LOW_32_BITS, request)
        rules.add_rule(seccomp.ALLOW, "ioctl", same)
    for operation in PRCTLS.values():
        same = seccomp.Arg(0, seccomp.EQ, operation)
        rules.add_rule(seccomp.ALLOW, "prctl", same)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
