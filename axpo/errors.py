"""The error that a user can act on, and errors of code that is not ours."""

from __future__ import annotations

from axpo.texts import printable


class AxpoError(Exception):
    """One line that names the field, row or path at fault, and what was expected.

    The command line prints it without a traceback and exits with code 2. It may repeat what a file
    or a server says, so it holds nothing that a terminal would obey.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def ordinary(raised: BaseException) -> Exception:
    """Return what somebody's code raised, as an error that ends nothing but its call.

    `sys.exit` in a user's function, or in a library that it calls, would end the event loop that
    serves everybody. A future refuses StopIteration, and its waiter would wait for ever.
    """
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    error = RuntimeError(f"{type(raised).__name__}: {raised}")
    error.__cause__ = raised
    return error
