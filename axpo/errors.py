"""The error that a user can act on."""

from __future__ import annotations

from axpo.texts import printable


class AxpoError(Exception):
    """One line that names the field, row or path at fault, and what was expected.

    The command line prints it without a traceback and exits with code 2. It may repeat what a file
    or a server says, so it holds nothing that a terminal would obey.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
