"""The error that a user can act on."""

from __future__ import annotations


class AxpoError(Exception):
    """One line that names the field, row or path at fault, and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """
