"""Tracebacks as the policy reads them: the frames of its own code only."""

from __future__ import annotations

import os
import traceback

NAME = "<python>"
"""The file name of the policy's code, in the frames of a traceback."""

HINT = (
    "The sandbox has no network and starts no processes; "
    "files can be written in the working directory only.\n"
)
LONGEST_CHAIN = 10


def explain(error: BaseException) -> None:
    """Write the traceback to stderr.

    It leaves out the frames of the sandbox and of libraries, and exceptions that never left a
    library.
    """
    try:
        report = traceback.TracebackException.from_exception(error, compact=True)
        _keep_own_frames(report)
        text = "".join(report.format())
    except BaseException:  # out of memory or of stack, or an exception whose own methods raise
        text = f"{type(error).__name__}\n"
    # Also if the code caught the refusal and raised something else.
    if any(_refused(link) for link in _chain(error)):
        text += HINT
    os.write(2, text.encode("utf-8", "backslashreplace"))


def _keep_own_frames(report: traceback.TracebackException) -> None:
    report.stack[:] = [frame for frame in report.stack if frame.filename == NAME]
    for name in ("__cause__", "__context__"):
        before = getattr(report, name)
        if before is None:
            continue
        _keep_own_frames(before)
        if not before.stack:
            setattr(report, name, None)


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error, then what it was raised from or during, and so on; at most ten."""
    chain = [error]
    while len(chain) < LONGEST_CHAIN:
        before = chain[-1].__cause__ or chain[-1].__context__
        if before is None:
            break
        chain.append(before)
    return chain


def _refused(error: BaseException) -> bool:
    """Return whether the sandbox refused something.

    A file that is not found has a name; what multiprocessing was refused has none.
    """
    if isinstance(error, PermissionError):
        return True
    return isinstance(error, FileNotFoundError) and error.filename is None
