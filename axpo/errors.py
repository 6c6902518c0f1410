"""The error a user can act on."""

from __future__ import annotations


class AxpoError(Exception):
    """One line that names the field, row or path at fault and what was expected. The CLI prints it without a traceback, exit code 2."""
