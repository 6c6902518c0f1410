"""Run a module as a program that ends when the process that started it ends, even by a kill.

    python -m axpo.evaluation.served PARENT MODULE ARGUMENTS...

A judge's server would otherwise keep its memory when an evaluation is killed, and the evaluation
could not go on.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> None:
    """Tie this process to its parent, and become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # It may have ended before it could be watched.
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended")
    sys.argv = [module, *sys.argv[3:]]
    # As `python -m module`: processes that it spawns find it under its own name.
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
