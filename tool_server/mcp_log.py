"""What the SDK of MCP may log of a stranger's server.

It logs a traceback for every line that it cannot read. That repeats the line, which may hold a key
or orders for a terminal, and a server can write such lines without end.
"""

from __future__ import annotations

import logging

from axpo.texts import one_line

LOGGERS = (
    "client",
    "mcp.client.stdio",
    "mcp.client.streamable_http",
    "mcp.shared.dispatcher",
    "mcp.shared.jsonrpc_dispatcher",
)
"""Those of the SDK: a filter counts for one logger, not for those below it."""

MOST = 20
"""Records of each logger in one process. The first ones say what is wrong."""


class Bounded(logging.Filter):
    """Let through so many records, each without what the server wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._left = MOST

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record, after its exception was reduced to the kind."""
        self._left -= 1
        if self._left < 0:
            return False
        kind = record.exc_info[0] if record.exc_info else None
        # Not its arguments: they may be the server's, too.
        text = str(record.msg) if kind is None else f"{record.msg}: {kind.__name__}"
        record.msg, record.args = one_line(text), ()
        record.exc_info = record.exc_text = None
        return True


def bound() -> None:
    """Bound what the SDK logs in this process; once is enough."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, Bounded) for known in logger.filters):
            logger.addFilter(Bounded())
