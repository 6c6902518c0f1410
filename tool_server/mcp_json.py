"""Let the SDK of MCP read what servers in JavaScript write: texts with half a surrogate pair.

A text that was cut in the middle of a character is spelled so in JSON. The SDK's parser refuses the
message as a whole and drops it. The call would wait until its deadline for an answer that has come.
"""

from __future__ import annotations

import json
from typing import Any

from axpo.texts import clean

_ADAPTER = "jsonrpc_message_adapter"


class _Lenient:
    """The SDK's parser of messages, which is asked again with whole characters."""

    def __init__(self, strict: Any) -> None:
        self._strict = strict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strict, name)

    def validate_json(self, data: str | bytes, **options: Any) -> Any:
        """Return the message; raise ValueError if it is none."""
        try:
            return self._strict.validate_json(data, **options)
        except ValueError:
            whole = _with_whole_characters(data)
            if whole is None:
                raise
        return self._strict.validate_json(whole, **options)


def install() -> None:
    """Give the SDK this parser, in this process; once is enough."""
    import mcp_types
    from mcp.client import streamable_http

    for module in (mcp_types, streamable_http):  # where its two transports look it up
        known = getattr(module, _ADAPTER)
        if not isinstance(known, _Lenient):
            setattr(module, _ADAPTER, _Lenient(known))


def _with_whole_characters(data: str | bytes) -> str | None:
    """Return JSON with U+FFFD for each half of a pair; None if that changes nothing."""
    try:
        read = json.dumps(json.loads(data), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    whole = clean(read)
    return None if whole == read else whole
