"""Use the schemas of a third party's tools: within limits, and in a process that can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from axpo.limited.client import Limited, OverLimits
from axpo.texts import clean
from tool_server import schema_check
from tool_server.tool import ToolError, ToolUnavailable

MAX_SCHEMA = 32_768
"""Characters of a tool's schema. It is part of every prompt."""

MAX_DESCRIPTION = 8_192
"""Characters of a tool's description, likewise."""

MAX_DEPTH = 40
"""Objects and lists inside each other, in a schema or in arguments."""

_checker = Limited("schema check", schema_check.__file__)


def checker(schema: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """Return a check of arguments against a server's schema.

    The check takes milliseconds in another process, so it is not for an event loop. It raises
    ToolError if the arguments do not fit, or take too long to check.

    Raises:
        ToolUnavailable: the schema is no JSON schema, is too large, or takes too long to check.
    """
    _check_size(schema)
    try:
        fault = _checker.ask({"schema": schema})
        if fault is None:
            # References that double again and again are found out before any call.
            _checker.ask({"schema": schema, "arguments": {}})
    except OverLimits:
        raise ToolUnavailable("its schema takes too long to check, or too much memory") from None
    if fault is not None:
        raise ToolUnavailable(f"its schema is no JSON schema: {fault}")

    def check(written: Any) -> dict[str, Any]:
        arguments = an_object(written)
        try:
            fault = _checker.ask({"schema": schema, "arguments": arguments})
        except OverLimits:
            raise ToolError("the arguments take too long to check") from None
        if fault is not None:
            raise ToolError(fault)
        return arguments

    return check


def an_object(written: Any) -> dict[str, Any]:
    """Return what the policy wrote if it is an object, and not too deep; else raise ToolError."""
    if not isinstance(written, dict):
        raise ToolError("arguments must be an object")
    if too_deep(written):
        raise ToolError(f"arguments have more than {MAX_DEPTH} objects and lists inside each other")
    return written


def plain(schema: Any, hide: Callable[[str], str]) -> Any:
    """Return a schema whose texts any file and any tokenizer can hold.

    Args:
        schema: as the server sent it.
        hide: takes secrets out of a text.

    Raises:
        ToolUnavailable: it is too large.
    """
    _check_size(schema)
    return json.loads(hide(clean(json.dumps(schema, ensure_ascii=False))))


def plain_description(text: str | None) -> str:
    """Return a description in one line.

    Raises:
        ToolUnavailable: it is too long.
    """
    text = text or ""
    if len(text) > MAX_DESCRIPTION:
        raise ToolUnavailable(
            f"its description has {len(text):,} characters, at most {MAX_DESCRIPTION:,} are shown"
        )
    return clean(" ".join(text.split()))


def too_deep(value: Any) -> bool:
    """Return whether objects and lists are more than `MAX_DEPTH` inside each other."""
    pending = [(value, 1)]
    while pending:
        container, depth = pending.pop()
        if isinstance(container, dict):
            container = list(container.values())
        if not isinstance(container, list):
            continue
        if depth > MAX_DEPTH:
            return True
        pending += [(part, depth + 1) for part in container]
    return False


def _check_size(schema: Any) -> None:
    if too_deep(schema):
        raise ToolUnavailable(
            f"its schema has more than {MAX_DEPTH} objects and lists inside each other"
        )
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA:
        raise ToolUnavailable(f"its schema has {size:,} characters, at most {MAX_SCHEMA:,} fit")
