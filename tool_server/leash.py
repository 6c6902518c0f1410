"""Runs a command that must not outlive its parent: `python -IS leash.py PARENT_PID PROGRAM ARGUMENT ...`

A program of a third party that speaks on stdin and stdout is meant to end with its stdin, and not every one does. Where the process
that started this one is killed, the kernel says so here, and the whole process group goes: this process, the command and what it
started. Standard library only: a start takes 20 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ORPHANED = signal.SIGRTMAX


def main(parent: int, command: list[str]) -> int:
    """The command's exit code; 128 and the signal's number where one ended it, as a shell has it."""
    awaited = {signal.SIGCHLD, ORPHANED}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the group: the command's to obey
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
