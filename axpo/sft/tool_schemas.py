"""Read the tools of a demonstration, and find what a table format put into its objects.

In a table all objects of a column have the same keys: those that an object did not have are null.
Where a row comes from such a table, the nulls are left out (`axpo.tasks.tables`). A JSON file that
was made of one still has them. There a null is refused if it cannot be meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from axpo.tasks.lines import parse_json
from axpo.texts import shown

_INVENTED = "a table format may have put it there: leave it out"


def json_of(value: Any, where: str) -> Any:
    """Return a value that may be written as JSON text.

    Args:
        value: of a column.
        where: the column, for messages.

    Raises:
        ValueError: it is a text, but no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value) if value.strip() else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tools of a row, as they go into its prompt.

    Raises:
        ValueError: they are no list of tools with names, or a schema has a null in it.
    """
    tools = json_of(row.get("tools"), "tools")
    if tools is None:
        return []
    are_objects = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    if not are_objects:
        raise ValueError(f"tools: expected a list of objects, found {shown(tools)}")
    for number, tool in enumerate(tools):
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            found = shown(function)
            raise ValueError(f"tools[{number}]: expected a function with a name, found {found}")
        _check_schema(function.get("parameters"), f"tools[{number}].parameters")
    return tools


def check_calls(messages: Sequence[Any], tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if a call has a null for an argument that its tool does not have."""
    known = {}
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters")
        known[function["name"]] = _properties(schema)
    for place, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") or call
            arguments = _arguments(function.get("arguments"))
            expected = known.get(function.get("name"))
            if expected is None:
                continue
            for name, value in arguments.items():
                if value is None and name not in expected:
                    raise ValueError(
                        f"messages[{place}].tool_calls[{number}].arguments.{name}: null, but the "
                        f"tool has no such argument; {_INVENTED}"
                    )


def _arguments(written: Any) -> Mapping[str, Any]:
    """Return the arguments of a call; none if they are no object, which is refused elsewhere."""
    if isinstance(written, str):
        try:
            written = parse_json(written)
        except ValueError:
            return {}
    return written if isinstance(written, Mapping) else {}


def _properties(schema: Any) -> Mapping[str, Any] | None:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else None


def _check_schema(schema: Any, where: str) -> None:
    """Raise ValueError if a property of a schema is null, which no schema may be."""
    properties = _properties(schema) or {}
    for name, inner in properties.items():
        place = f"{where}.properties.{name}"
        if inner is None:
            raise ValueError(f"{place}: null, expected a schema; {_INVENTED}")
        _check_schema(inner, place)
