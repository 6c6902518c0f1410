"""Run a command that must not outlive its parent.

    python -IS leash.py PARENT_PID PROGRAM ARGUMENT ...

A third party's program that speaks on stdin and stdout is meant to end with its stdin, but not
every one does. If the process that started this one is killed, the kernel tells us, and we kill
the whole process group: this process, the command and what it started.

Standard library only: a start takes 20 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ORPHANED = signal.SIGRTMAX


def main(parent: int, command: list[str]) -> int:
    """Run the command and return its exit code.

    A command that a signal ended gives 128 plus the signal's number, as in a shell.
    """
    awaited = {signal.SIGCHLD, ORPHANED}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # SIGTERM is sent to the whole group; it is for the command to obey.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ORPHANED, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        return 1
    child = os.posix_spawnp(
        command[0], command, os.environ, setsigmask=[], setsigdef=[signal.SIGTERM]
    )
    while True:
        if signal.sigwait(awaited) == ORPHANED:
            os.killpg(0, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
